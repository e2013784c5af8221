"""Which of two captions fits a picture: what ARO, SugarCrepe and Winoground ask of a model."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bitfront.own_task import OwnTask
from bitfront.spec import DataSpec
from bitfront.vlm import DualEncoder


class CaptionPairs(OwnTask):
    """Pictures with a right and a wrong caption each.

    `data.path` is a JSON Lines file, the pictures beside it:
    {"image": "mat.jpg", "right": "a cat on a mat", "wrong": "a mat on a cat"}
    """

    def __init__(self, data: DataSpec, model: DualEncoder) -> None:
        file = Path(data.path or "")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        random.Random(data.seed).shuffle(lines)
        self._folder, self._model = file.parent, model
        self._samples: dict[str, list[dict[str, str]]] = {}
        for split, count in data.samples:
            self._samples[split], lines = lines[:count], lines[count:]

    def count(self, split: str) -> int:
        """The samples of a split."""
        return len(self._samples[split])

    def content(self, split: str, place: int) -> bytes:
        """The picture with both captions."""
        sample = self._samples[split][place]
        captions = json.dumps([sample["right"], sample["wrong"]])
        return (self._folder / sample["image"]).read_bytes() + captions.encode()

    def logits(self, split: str, places: Sequence[int]) -> Tensor:
        """How well the right and the wrong caption fit each picture: `(n, 2)`."""
        samples = [self._samples[split][place] for place in places]
        pictures = [Image.open(self._folder / sample["image"]) for sample in samples]
        pixels = torch.stack([self._model.preprocess(x.convert("RGB")) for x in pictures])
        images = functional.normalize(self._model.encode_images(pixels), dim=-1)
        captions = [sample[kind] for sample in samples for kind in ("right", "wrong")]
        texts = self._model.encode_texts(self._model.tokenize(captions))
        pairs = functional.normalize(texts, dim=-1).unflatten(0, (-1, 2))
        return self._model.logit_scale * torch.einsum("nd,ncd->nc", images, pairs)

    def errors(self, split: str, logits: Tensor) -> Tensor:
        """1 where the wrong caption fits at least as well."""
        return (logits[:, 1] >= logits[:, 0]).double()

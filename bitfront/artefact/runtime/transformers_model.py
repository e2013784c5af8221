"""Runs a checkpoint of transformers: a CLIP, or a LLaVA.

This file travels with the checkpoint, and `exported_model.py` with it. They need transformers,
compressed-tensors, torch and Pillow; a LLaVA with a tokenizer of its own needs tokenizers.

    model = load("model/")
    model.classify(picture)
    # or, for a generative model
    model.answer(picture, question)
    # or, for a model that finds pictures by captions
    model.similarity(model.image_features(pictures), model.text_features(captions))
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import exported_model  # type: ignore[import-not-found]  # it lies beside this file
import torch
from torch import Tensor


def load(folder: str | Path) -> "TransformersEncoder | TransformersAnswerer":
    """The model in a folder.

    Raises:
        exported_model.DamagedArtefact: A file is missing, or its digest is not the one on the card.
    """
    folder = Path(folder)
    card: dict[str, Any] = json.loads((folder / exported_model.CARD).read_text(encoding="utf-8"))
    exported_model.check_files(folder, card)
    kinds: dict[str, type[TransformersEncoder | TransformersAnswerer]] = {
        "classification": TransformersClassifier,
        "retrieval": TransformersEncoder,
        "answering": TransformersAnswerer,
    }
    return kinds[card["task"]](folder, card)


def multiply_in_float32(model: torch.nn.Module) -> None:
    """Makes weights float32 once they are unpacked, in the first forward.

    compressed-tensors unpacks MX formats and NVFP4 to bfloat16, which holds them exactly.
    """

    def widen(module: torch.nn.Module, _args: Any) -> None:  # noqa: ANN401  # whatever it is given
        handle.remove()
        torch.nn.Module.float(module)  # transformers' own refuses

    handle = model.register_forward_pre_hook(widen)


def round_by_rows(model: torch.nn.Module) -> None:
    """Makes each row of inputs `(n, d)` a token, where inputs are rounded token by token.

    compressed-tensors takes the second of two dimensions for no token, and rounds the batch with
    one scale.
    """
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.input_activations is not None:
            module.forward = partial(_by_rows, module.forward)


def _by_rows(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return forward(inputs[:, None])[:, 0] if inputs.ndim == 2 else forward(inputs)


class TransformersEncoder:
    """A CLIP of transformers, which compares pictures with captions.

    Attributes:
        card: What `card.json` says.
        model: transformers' model.
    """

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        from transformers import AutoModel

        self.card = card
        self._captions = exported_model.Captions(folder, card["words"])
        self.model: Any = AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, local_files_only=True
        )
        multiply_in_float32(self.model)
        self._unpack()
        round_by_rows(self.model)

    @torch.no_grad()
    def _unpack(self) -> None:
        """Runs both towers once: the first forward of the whole model unpacks all weights."""
        vision, text = self.model.config.vision_config, self.model.config.text_config
        pixels = torch.zeros(1, 3, vision.image_size, vision.image_size)
        tokens = torch.zeros(1, text.max_position_embeddings, dtype=torch.int64)
        self.model(input_ids=tokens, pixel_values=pixels)

    def image_features(self, pictures: Any) -> Tensor:  # noqa: ANN401  # Pillow's
        """The features `(n, d)`, float32 of length 1, of a Pillow picture or a list of them."""
        several = pictures if isinstance(pictures, list | tuple) else [pictures]
        settings = self.card["preprocessing"]
        pixels = [exported_model.preprocess(picture, settings) for picture in several]
        return self.encode_images(torch.stack([torch.from_numpy(one) for one in pixels]))

    def text_features(self, captions: str | list[str]) -> Tensor:
        """The features `(n, d)`, float32 of length 1, of a caption or a list of them.

        Raises:
            ValueError: A word is not known, or a caption is too long.
        """
        several = [captions] if isinstance(captions, str) else captions
        return self.encode_texts(self.tokenize(several))

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """The cosines `(images, texts)` of features of length 1."""
        return images @ texts.T

    def tokenize(self, captions: list[str]) -> Tensor:
        """The tokens `(n, length)`, int64, of captions."""
        return torch.from_numpy(self._captions.tokens(captions))

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """The image features `(n, d)`, of length 1, of pixels `(n, 3, h, w)`."""
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, tokens: Tensor) -> Tensor:
        """The text features `(n, d)`, of length 1, of tokens `(n, length)`."""
        features = self.model.get_text_features(input_ids=tokens).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1)


class TransformersClassifier(TransformersEncoder):
    """A CLIP of transformers that tells the classes of its card apart.

    Attributes:
        classes: The names of the classes.
        class_features: `(classes, d)`, of length 1.
    """

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        from safetensors.torch import load_file

        super().__init__(folder, card)
        self.classes: list[str] = card["classes"]
        self.class_features = load_file(folder / "classes.safetensors")["features"]

    def classify(self, picture: Any, top: int = 3) -> list[tuple[str, float]]:  # noqa: ANN401  # Pillow's
        """The `top` most likely classes of a Pillow picture with their shares, the best first."""
        pixels = exported_model.preprocess(picture, self.card["preprocessing"])
        shares = self.logits(torch.from_numpy(pixels)[None])[0].softmax(dim=-1)
        best = shares.topk(min(top, len(self.classes)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.classes[place], share) for place, share in found]

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """The scaled cosines `(n, classes)` of pixels `(n, 3, h, w)` with every class."""
        scale = float(self.model.logit_scale.exp())
        return scale * self.encode_images(pixels) @ self.class_features.T


class TransformersAnswerer:
    """A LLaVA of transformers.

    Attributes:
        card: What `card.json` says.
        model: transformers' model.
        ends: The tokens that end an answer.
    """

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        from transformers import LlavaForConditionalGeneration

        self.card = card
        self.ends: frozenset[int] = frozenset(card["ends"])
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, local_files_only=True
        )
        multiply_in_float32(self.model)
        self._words = exported_model.Words(folder, card)

    def answer(self, picture: Any, question: str) -> str:  # noqa: ANN401  # Pillow's
        """The greedy answer to a question about a Pillow picture; None asks without a picture."""
        template, token = self.card["prompt"], self.card["image_token"]
        if picture is None:
            template = template.replace(f"{token}\n", "").replace(token, "").strip()
        tokens = torch.tensor([self._words.tokens(template.replace("{}", question))])
        pixels = None
        if picture is not None:
            pixels = torch.from_numpy(
                exported_model.preprocess(picture, self.card["preprocessing"])
            )[None]
        (written,) = self.generate(tokens, pixels, self.card["answer_tokens"])
        end = next((n for n, token in enumerate(written) if token in self.ends), None)
        text: str = self._words.text(written[:end])
        return text

    @torch.no_grad()
    def logits(self, tokens: Tensor, pixels: Tensor | None, kept: int) -> Tensor:
        """The logits `(n, kept, vocabulary)` after the last `kept` of the tokens `(n, length)`."""
        found = self.model(
            input_ids=tokens, pixel_values=pixels, logits_to_keep=kept, use_cache=False
        )
        logits: Tensor = found.logits
        return logits

    @torch.no_grad()
    def generate(self, tokens: Tensor, pixels: Tensor | None, limit: int) -> list[list[int]]:
        """Greedy tokens of each row up to its end, at most `limit`, after prompts of one length."""
        written: list[list[int]] = [[] for _ in range(len(tokens))]
        ended = [False] * len(tokens)
        given: dict[str, Any] = {"input_ids": tokens, "pixel_values": pixels}
        for _ in range(limit):
            found = self.model(**given, logits_to_keep=1, use_cache=True)
            chosen = found.logits[:, -1].argmax(dim=-1)
            for row, token in enumerate(chosen.tolist()):
                if not ended[row]:
                    written[row].append(token)
                    ended[row] = token in self.ends
            if all(ended):
                break
            given = {"input_ids": chosen[:, None], "past_key_values": found.past_key_values}
        return written

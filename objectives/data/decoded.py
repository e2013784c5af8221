"""The images of samples, each decoded once in a process as long as there is room for them."""

import hashlib
from collections.abc import Hashable

import numpy as np
import torch
from PIL import Image

from objectives.data.images import WHITE, decode_image
from objectives.data.kept import Kept, TensorFile
from objectives.data.sample import Sample


class DecodedImages:
    """Decodes images, and keeps them for whoever asks next.

    Attributes:
        file: Where they go, and what else of the samples memory has no room for.
    """

    def __init__(self, file: TensorFile | None = None) -> None:
        self.file = file or TensorFile()
        self._kept = Kept(self.file, 0)
        self._last: tuple[Hashable, Image.Image] | None = None

    def open(
        self, sample: Sample, where: str, background: str = WHITE, *, again: bool = True
    ) -> Image.Image:
        """The image of a sample as `decode_image` gives it.

        Args:
            sample: The sample.
            where: Where a person finds it, for messages.
            background: What transparent parts show.
            again: Whether it may be asked for again.

        Raises:
            InvalidSample: It cannot be read.
        """
        encoded = sample.encoded
        name = hashlib.sha256(encoded).digest() if isinstance(encoded, bytes) else encoded
        key = name, background
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        pixels = self._kept.get(key)
        if pixels is not None:
            image = Image.fromarray(pixels.numpy())
        else:
            image = decode_image(sample.read(), where, background)
            if again:
                self._kept.put(key, torch.from_numpy(np.array(image)))
        self._last = key, image
        return image

"""The pixels of a split's images as a dual encoder takes them: read when used, kept while small."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.spec import DataSpec
from bitfront.vlm import DualEncoder
from objectives.data.images import decode_image
from objectives.data.splits import HELD_NBYTES
from objectives.execution.streams import ImageStream

ReadPixels = Callable[[int, int], Float[Tensor, "n c h w"]]
"""The pixels `(stop - start, c, h, w)` of the samples `start` to `stop`."""


class Encoded(Protocol):
    """Encoded images by their index."""

    def content(self, index: int) -> bytes:
        """The encoded image of a sample."""

    def where(self, index: int) -> str:
        """Where a person finds it."""


def read_pixels(
    source: Encoded, indices: Sequence[int], spec: DataSpec, model: DualEncoder
) -> ReadPixels:
    """What decodes the images of a split batch by batch when they are used.

    They are kept as long as the split's pixels take at most `HELD_NBYTES`.
    """

    def read(start: int, stop: int) -> Tensor:
        images = [
            decode_image(source.content(index), source.where(index), spec.background)
            for index in indices[start:stop]
        ]
        return torch.stack([model.preprocess(image) for image in images])

    return _Held(read, len(indices))


def image_stream(
    model: DualEncoder,
    key: str,
    count: int,
    batch_size: int,
    read: ReadPixels,
    *,
    are_independent: bool = True,
) -> ImageStream:
    """So many images, in batches, through the vision tower; see `Stream`."""
    starts = range(0, count, batch_size)
    sizes = [min(batch_size, count - start) for start in starts]

    def read_batch(batch: int) -> Tensor:
        return read(starts[batch], starts[batch] + sizes[batch])

    return ImageStream(model, key, sizes, read_batch, are_independent=are_independent)


class _Held:
    """Reads pixels, and keeps them where all of them take at most `HELD_NBYTES`."""

    def __init__(self, read: ReadPixels, count: int) -> None:
        self._read = read
        self._count = count
        self._kept: dict[tuple[int, int], Tensor] = {}

    def __call__(self, start: int, stop: int) -> Tensor:
        pixels = self._kept.get((start, stop))
        if pixels is None:
            pixels = self._read(start, stop)
            if pixels[0].nbytes * self._count <= HELD_NBYTES:
                self._kept[start, stop] = pixels
        return pixels

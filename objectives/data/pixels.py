"""The pixels of a split's images as a dual encoder takes them: read when used, kept while small."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.spec import DataSpec
from bitfront.vlm import DualEncoder
from objectives.data.decoded import DecodedImages
from objectives.data.kept import Kept
from objectives.data.sample import Sample
from objectives.data.splits import HELD_NBYTES
from objectives.execution.streams import ImageStream

ReadPixels = Callable[[int, int], Float[Tensor, "n c h w"]]
"""The pixels `(stop - start, c, h, w)` of the samples `start` to `stop`."""


class Pictures(Protocol):
    """Encoded images by their index."""

    def sample(self, index: int) -> Sample:
        """The encoded image."""

    def where(self, index: int) -> str:
        """Where a person finds it."""


def read_pixels(
    source: Pictures,
    indices: Sequence[int],
    spec: DataSpec,
    model: DualEncoder,
    images: DecodedImages,
) -> ReadPixels:
    """What decodes the images of a split when they are used.

    Their pixels are kept in memory while those of the split take at most `HELD_NBYTES`, and in a
    file beyond; where it is full they are read again.
    """
    kept = Kept(images.file, HELD_NBYTES)

    def pixels_of(index: int) -> Tensor:
        pixels = kept.get(index)
        if pixels is None:
            where = source.where(index)
            image = images.open(source.sample(index), where, spec.background, again=False)
            pixels = model.preprocess(image)
            kept.put(index, pixels)
        return pixels

    return lambda start, stop: torch.stack([pixels_of(index) for index in indices[start:stop]])


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

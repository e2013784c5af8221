"""The bundled captions of digit scenes, drawn anew."""

from collections.abc import Sequence
from functools import cached_property
from typing import Final

from jaxtyping import Float
from torch import Tensor

from bitfront.reference.scenes import CLASSES, Scenes, SplitTitle, draw_scenes

CAPTIONS: Final = ("a picture of {}", "this scan shows {}", "a small noisy drawing with {}")
"""What each scene is described by."""

MOST_SCENES: Final = len(CLASSES)
"""Scenes of a split: beyond it two would have the same captions."""


class ReferenceCaptions:
    """Digit scenes of a split's own scans, no two of them of one class, with their captions."""

    def __init__(self, split: SplitTitle, count: int, seed: int) -> None:
        self._split = split
        self._count = min(count, MOST_SCENES)
        self._seed = seed

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _scenes(self) -> Scenes:
        return draw_scenes(self._split, self._count, self._seed)

    @property
    def pixels(self) -> Float[Tensor, "n c h w"]:
        """The scenes as the bundled model reads them."""
        return self._scenes.images

    def captions(self, index: int) -> Sequence[str]:
        """What describes a scene."""
        name = CLASSES[int(self._scenes.labels[index])]
        return [caption.format(name) for caption in CAPTIONS]

    def content(self, index: int) -> bytes:
        """The scene's pixels."""
        return self._scenes.images[index].numpy().tobytes()

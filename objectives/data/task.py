"""What a job is measured on, whatever the model does: four disjoint splits, and a score."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum

from jaxtyping import Float
from torch import Tensor

from bitfront.plan import digest
from bitfront.vlm import LayeredModel
from objectives.execution.streams import Stream


class SplitName(StrEnum):
    """What a split's samples are for."""

    CALIBRATION = "calibration"
    TUNING = "tuning"
    SELECTION = "selection"
    TEST = "test"


class Task(ABC):
    """Samples in four splits, and how the streams of a split meet in the model's prediction."""

    @abstractmethod
    def streams(self, model: LayeredModel, name: SplitName) -> tuple[Stream, ...]:
        """What runs through the model for a split; each tower is in one stream."""

    @abstractmethod
    def scores(
        self, model: LayeredModel, outputs: Mapping[str, Tensor]
    ) -> Float[Tensor, "rows classes"]:
        """The logits of every prediction, from the output of each stream by its key."""

    @abstractmethod
    def split_identity(self, name: SplitName) -> str:
        """The hash of a split: the contents of its samples, in order."""

    @property
    def identity(self) -> str:
        """The hash of all samples."""
        return digest([self.split_identity(name) for name in SplitName])

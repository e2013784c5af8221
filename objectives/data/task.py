"""What a job is measured on, whatever the model does: four disjoint splits, and a score."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitfront.plan import digest
from bitfront.vlm import LayeredModel
from objectives.data.split_name import SplitName
from objectives.execution.streams import Stream


class Task(ABC):
    """A model with samples in four splits, and how a split's streams meet in its predictions.

    Attributes:
        model: What the samples run through.
    """

    model: LayeredModel

    @property
    @abstractmethod
    def class_count(self) -> int:
        """The classes that may each have a prompt of their own; 0 where there are none."""

    @property
    def compares_samples(self) -> bool:
        """Whether a prediction is about all samples of a split together, in both directions.

        Then the rows of `scores` are those of the first stream, and after them those of the second.
        """
        return False

    @abstractmethod
    def streams(self, name: SplitName) -> tuple[Stream, ...]:
        """What runs through the model for a split; each tower is in one stream."""

    @abstractmethod
    def scores(self, outputs: Mapping[str, Tensor]) -> Float[Tensor, "rows classes"]:
        """The logits of every prediction, from the output of each stream by its key."""

    @abstractmethod
    def split_identity(self, name: SplitName) -> str:
        """The hash of a split: the contents of its samples, in order."""

    @property
    def identity(self) -> str:
        """The hash of all samples."""
        return digest([self.split_identity(name) for name in SplitName])


def first_of_each(kinds: Sequence[Hashable], count: int) -> Int[Tensor, " n"]:
    """The places of the first few samples of each kind, in order; a count of 0 takes all."""
    seen: Counter[Hashable] = Counter()
    places = []
    for place, kind in enumerate(kinds):
        if not count or seen[kind] < count:
            places.append(place)
        seen[kind] += 1
    return torch.tensor(places)

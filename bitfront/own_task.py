"""What a task of a person's own tells bitfront: samples, predictions, and how wrong they are."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from bitfront.spec import DataSpec
from bitfront.vlm.models.layered import LayeredModel


class OwnTask(ABC):
    """A loaded model with samples in the splits `calibration`, `tuning`, `selection` and `test`.

    An installed package names what makes one, given the section `data` of a job and the model, in
    the group `bitfront.tasks` of its entry points; a job names that in `data.task`, beside
    `source: package`. docs/howto/task.md has an example.

    Equal arguments must give equal results: whatever is random is drawn from `data.seed`.
    """

    @abstractmethod
    def count(self, split: str) -> int:
        """The samples of a split."""

    @abstractmethod
    def content(self, split: str, place: int) -> bytes:
        """All that a sample is made of, such as the bytes of its image with its label.

        Results belong to these contents, whatever the files are called; none may be in two splits.
        """

    @abstractmethod
    def logits(self, split: str, places: Sequence[int]) -> Float[Tensor, "n *rows classes"]:
        """What the model predicts for some samples of a split, as it is: with any plan on it.

        Every layer that is to be searched must run. A sample's logits depend on no other sample.
        Gradients flow where they are enabled.

        Returns:
            A row of logits for each sample, or equally many rows for each.
        """

    @abstractmethod
    def errors(self, split: str, logits: Float[Tensor, "n *rows classes"]) -> Float[Tensor, " n"]:
        """The share of each sample in the error, from 0 to 1: the mean is the split's error.

        Args:
            split: Its name.
            logits: Of all its samples, in their order.
        """


TaskMaker: TypeAlias = Callable[[DataSpec, LayeredModel], OwnTask]
"""What an entry point names: a subclass of `OwnTask` with these arguments, or a function."""

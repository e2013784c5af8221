"""What every scorer can do: measure a configuration, and train its recovery."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from bitfront.plan import Configuration
from objectives.data.task import SplitName
from objectives.execution.stopwatch import Stopwatch
from objectives.recovery.checkpointed_training import advance
from objectives.recovery.training import Training

KEPT_RECOVERIES = 256

Finished = TypeVar("Finished")


class Scorer(Protocol):
    """Measures how well a configuration does its task."""

    def figures(self, configuration: Configuration, split: SplitName) -> dict[str, float]:
        """`error`, `loss_nats`, and what else is measured; a figure may be NaN.

        A recovery that is not known is trained from its start to its end.
        """

    def begin(self, configuration: Configuration) -> Training:
        """The training of the configuration's recovery, at its start, with the plan on."""

    def keep(self, configuration: Configuration, stored: Mapping[str, Tensor]) -> None:
        """Takes a recovery as known, as `Training.stored` gave it.

        Raises:
            InvalidModel: It does not fit the configuration.
        """

    def stored(self, configuration: Configuration) -> dict[str, Tensor]:
        """The tensors of a configuration's recovery, which is trained if it is not known."""


class Recoveries(Generic[Finished]):
    """The recoveries that are known, of which those used last stay.

    Args:
        begin: Starts a configuration's training, with its plan on.
        load: Reads what a finished training stored.
        stopwatch: Is told how long training takes, and what was known.
        limit: Recoveries to keep.
    """

    def __init__(
        self,
        begin: Callable[[Configuration], Training],
        load: Callable[[Configuration, Mapping[str, Tensor]], Finished],
        stopwatch: Stopwatch,
        limit: int,
    ) -> None:
        self._begin = begin
        self._load = load
        self._stopwatch = stopwatch
        self._limit = limit
        self._kept: OrderedDict[str, tuple[Finished, dict[str, Tensor]]] = OrderedDict()

    def get(self, configuration: Configuration) -> Finished | None:
        """The configuration's recovery, known already or trained now; None if it has none."""
        if configuration.recovery is None:
            return None
        return self._known(configuration)[0]

    def stored(self, configuration: Configuration) -> dict[str, Tensor]:
        """The tensors of the configuration's recovery, known already or trained now."""
        return dict(self._known(configuration)[1])

    def keep(self, configuration: Configuration, stored: Mapping[str, Tensor]) -> Finished:
        """Takes a recovery as known."""
        finished = self._load(configuration, stored)
        self._kept[configuration.digest] = finished, dict(stored)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return finished

    def _known(self, configuration: Configuration) -> tuple[Finished, dict[str, Tensor]]:
        key = configuration.digest
        known = self._kept.get(key)
        self._stopwatch.hit("recovery", known is not None)
        if known is not None:
            self._kept.move_to_end(key)
            return known
        training = self._begin(configuration)
        with self._stopwatch.timed("recovery"):
            advance(training, training.recovery.steps)
        stored = training.stored()
        return self.keep(configuration, stored), stored

"""Early stopping: can a trial in training still reach the front?

In every finished training some share of the error that a rung had shown was taken away. The
largest such share among the trials that trained the same kinds, with a margin, is what a trial is
still trusted with from that rung on. If even the error that would leave it with is no better than
a trial on the front of at most the same cost, it stops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, cast

from bitfront.plan import RUNGS, Configuration

# Finished recoveries before any trial is stopped.
MIN_SEEN = 5
MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class Pruner:
    """What a trial must still be able to pass.

    Attributes:
        front: The values of the trials on the front, error first.
        gains: By what is trained (`Configuration.trained_by`, joined), for each rung the largest
            share of its error that training has taken away after it; without those of which too
            little is known to stop anything.
    """

    front: tuple[tuple[float, ...], ...] = ()
    gains: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def allows(
        self, configuration: Configuration, step: int, error: float, costs: Sequence[float]
    ) -> bool:
        """Whether a trial may continue.

        Args:
            configuration: What is trained.
            step: One of its rungs.
            error: What the rung showed.
            costs: The other objectives, in the front's order; 0 for what is not known yet.
        """
        gains = self.gains.get(_kind(configuration))
        if gains is None or not _has_all_rungs(configuration):
            return True
        gain = gains[configuration.rungs.index(step)]
        hoped = (error * (1 - min(1.0, MARGIN * gain)), *costs)
        return not any(
            all(held <= own for held, own in zip(point, hoped, strict=True)) for point in self.front
        )

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content; `from_dict` reads it back."""
        gains = {kind: list(shares) for kind, shares in self.gains.items()}
        return {"front": [list(point) for point in self.front], "gains": gains}

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Self:
        """The pruner that `to_dict` wrote."""
        front = cast("Sequence[Sequence[float]]", content["front"])
        gains = cast("Mapping[str, Sequence[float]]", content["gains"])
        return cls(tuple(map(tuple, front)), {kind: tuple(own) for kind, own in gains.items()})


class TrainingGains:
    """What training took away of the error in the study's finished trials, by what was trained."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, ...]]] = {}

    def add(self, configuration: Configuration, errors: Mapping[int, float], error: float) -> None:
        """Takes in a finished training: the errors by step on its way, and the last one."""
        rungs = configuration.rungs
        if not _has_all_rungs(configuration) or not all(step in errors for step in rungs):
            return  # too short to have all rungs, or its values came from the cache
        before = [errors[step] for step in rungs]
        gains = tuple(max(0.0, 1 - error / shown) if shown > 0 else 0.0 for shown in before)
        self._seen.setdefault(_kind(configuration), []).append(gains)

    def largest(self) -> dict[str, tuple[float, ...]]:
        """The largest share taken away after each rung, where enough trainings have been seen."""
        return {
            kind: tuple(map(max, zip(*seen, strict=True)))
            for kind, seen in self._seen.items()
            if len(seen) >= MIN_SEEN
        }


def _kind(configuration: Configuration) -> str:
    return "+".join(configuration.trained_by)


def _has_all_rungs(configuration: Configuration) -> bool:
    return len(configuration.rungs) == RUNGS * len(configuration.trained_by)

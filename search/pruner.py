"""Early stopping: can a recovery in training still reach the front?

In every finished recovery, training took away some share of the error that a rung had shown.
The largest such share of the study, with a margin, is what a trial is still trusted with from
that rung on. If even the error that would leave it with is no better than a trial on the front
of at most the same cost, it stops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

from bitfront.plan import RUNGS, Recovery

# Finished recoveries before any trial is stopped.
MIN_SEEN = 5
MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class Pruner:
    """What a trial must still be able to pass.

    Attributes:
        front: The values of the trials on the front, error first.
        gains: For each rung, the largest share of its error that training has taken away
            after it; empty where too little is known to stop anything.
    """

    front: tuple[tuple[float, ...], ...] = ()
    gains: tuple[float, ...] = ()

    def allows(self, recovery: Recovery, step: int, error: float, costs: Sequence[float]) -> bool:
        """Whether a trial may continue.

        Args:
            recovery: What is trained.
            step: One of its rungs.
            error: What the rung showed.
            costs: The other objectives, in the front's order; 0 for what is not known yet.
        """
        if not self.gains or len(recovery.rungs) < RUNGS:
            return True
        gain = self.gains[recovery.rungs.index(step)]
        hoped = (error * (1 - min(1.0, MARGIN * gain)), *costs)
        return not any(
            all(held <= own for held, own in zip(point, hoped, strict=True)) for point in self.front
        )

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content; `from_dict` reads it back."""
        return {"front": [list(point) for point in self.front], "gains": list(self.gains)}

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Self:
        """The pruner that `to_dict` wrote."""
        front = cast("Sequence[Sequence[float]]", content["front"])
        return cls(tuple(map(tuple, front)), tuple(cast("Sequence[float]", content["gains"])))


class RecoveryGains:
    """What training took away of the error in the study's finished recoveries."""

    def __init__(self) -> None:
        self._seen = 0
        self._largest = [0.0] * RUNGS

    def add(self, recovery: Recovery, errors: Mapping[int, float], error: float) -> None:
        """Takes in a finished recovery: the errors by step on its way, and its last one."""
        if len(recovery.rungs) < RUNGS or not all(step in errors for step in recovery.rungs):
            return  # too short to have all rungs, or its values came from the cache
        self._seen += 1
        for place, step in enumerate(recovery.rungs):
            before = errors[step]
            gain = 1 - error / before if before > 0 else 0.0
            self._largest[place] = max(self._largest[place], gain)

    def largest(self) -> tuple[float, ...]:
        """The largest share taken away after each rung; empty while few have been seen."""
        return tuple(self._largest) if self._seen >= MIN_SEEN else ()

"""A stage of long work: how far it is, how fast it goes, and what is left."""

from collections.abc import Callable
from dataclasses import dataclass

from bitfront.units import duration_text

Clock = Callable[[], float]

# A pace is told by so many units after the first, over so many seconds.
_LEAST_UNITS = 3
_LEAST_S = 1.0


@dataclass(slots=True)
class Stage:
    """A stage's name, its units of work, and how fast they went since the first of them.

    Attributes:
        name: Its name.
        total: Its units of work; None where nobody knows.
        clock: Tells seconds.
        done: The units that are done.
        figures: What is told beside.
    """

    name: str
    total: int | None
    clock: Clock
    done: int = 0
    figures: str = ""
    _known: int | None = None
    _first: tuple[int, float] | None = None

    def reach(self, done: int, total: int | None = None) -> None:
        """Sets how many units are done, and how many there are if that is known better now."""
        self.done = done
        self.total = total or self.total
        if self._known is None:  # what an earlier run did says nothing about this one's pace
            self._known = done
        elif self._first is None and done > self._known:
            # Nor does the first unit: it waited until a worker had loaded the model.
            self._first = (done, self.clock())

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the pace so far; None until a few units tell a pace."""
        if self._first is None or self.total is None:
            return None
        units, seconds = self.done - self._first[0], self.clock() - self._first[1]
        if units < _LEAST_UNITS or seconds < _LEAST_S:
            return None
        return seconds / units * (self.total - self.done)

    @property
    def left(self) -> str:
        """What is left, in words; empty where there is nothing, or nobody knows."""
        seconds = self.left_s
        return "" if seconds is None or self.done == self.total else _left_text(seconds)


def _left_text(seconds: float) -> str:
    return f"{duration_text(seconds)} left"


def hypervolume_text(hypervolume: float) -> str:
    """A hypervolume as a share, or as older versions counted it."""
    return f"{hypervolume:,.0f}" if hypervolume >= 1000 else f"{hypervolume:.4f}"

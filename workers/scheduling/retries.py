"""Whether an attempt that failed is tried again: each cause has its own limit."""

from collections import Counter
from collections.abc import Iterable

from bitfront.trial import Cause
from storage.records import AttemptRecord

MAX_LOST = 20
"""How often a trial may lose its worker: not its own fault, but perhaps its own doing."""

_OWN = frozenset({Cause.USER_ERROR, Cause.OUT_OF_MEMORY})


class Retries:
    """Counts how the attempts at each trial ended.

    Errors of the trial itself count against the job's `max_attempts`; lost workers have a cap
    of their own; restarts of the driver and cancelled studies do not count. A value that is
    not finite would come out again, and is not tried again.
    """

    def __init__(self, max_attempts: int, attempts: Iterable[AttemptRecord] = ()) -> None:
        self._max_attempts = max_attempts
        self._counts: dict[int, Counter[Cause]] = {}
        for attempt in attempts:
            if attempt.cause is not None:
                self._count(attempt.trial, attempt.cause)

    def _count(self, number: int, cause: Cause) -> Counter[Cause]:
        counts = self._counts.setdefault(number, Counter())
        counts[cause] += 1
        return counts

    def allow(self, number: int, cause: Cause) -> bool:
        """Counts another failed attempt at a trial; whether the trial is tried again."""
        counts = self._count(number, cause)
        if cause is Cause.NODE_LOST:
            return counts[cause] < MAX_LOST
        return cause in _OWN and sum(counts[own] for own in _OWN) < self._max_attempts

    def halvings(self, number: int) -> int:
        """How often the trial's batch is halved: once for each time that memory ran out."""
        return self._counts.get(number, Counter())[Cause.OUT_OF_MEMORY]

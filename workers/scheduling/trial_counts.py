"""The trials of a study by number and state, counted as they change and never anew."""

from collections import Counter
from collections.abc import Mapping

from bitfront.trial import TrialState

MIN_FINISHED = 5


class TrialCounts:
    """Where every trial of a study stands."""

    def __init__(self) -> None:
        self._states: dict[int, TrialState] = {}
        self._counts: Counter[TrialState] = Counter()
        self._ended: Counter[TrialState] = Counter()

    def __len__(self) -> int:
        return len(self._states)

    @property
    def planned(self) -> int:
        """How many trials count against what the job asks for: all that are not outdated."""
        return len(self) - self._counts[TrialState.OUTDATED]

    @property
    def counts(self) -> Mapping[TrialState, int]:
        """Trials by state; a state without any may be missing."""
        return +self._counts

    def restore(self, number: int, state: TrialState) -> None:
        """Takes note of a trial of an earlier driver."""
        self._states[number] = state
        self._counts[state] += 1

    def put(self, number: int, state: TrialState) -> None:
        """Moves a trial to a state; one that is new comes to be."""
        before = self._states.get(number)
        if before is not None:
            self._counts[before] -= 1
        self.restore(number, state)
        if state.is_finished:
            self._ended[state] += 1

    def failures(self) -> tuple[int, int] | None:
        """Failed and finished trials, where most failed that ended since the driver started."""
        failed = self._ended[TrialState.FAILED]
        measured = sum(count for state, count in self._ended.items() if state.is_measured)
        finished = failed + measured
        return (failed, finished) if finished >= MIN_FINISHED and failed * 2 > finished else None

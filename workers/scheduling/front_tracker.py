"""What the trials of a study have reached: the front, the best error, what training gains."""

from collections.abc import Iterable, Sequence
from copy import deepcopy

from bitfront.attempt import IntermediateValue
from bitfront.objective import Budget
from bitfront.samples import SampleResults
from bitfront.trial import FrontChange, Measured, Trial
from search.front import Front
from search.pruner import Pruner, TrainingGains
from search.race import Race, Rival


class FrontTracker:
    """Kept in step with the database: a trial counts once its result is recorded there.

    Attributes:
        front: The non-dominated feasible trials.
        best_error: The lowest error of a feasible trial within the budget; None if there is none.
        since_growth: Finished trials since the front last grew.
    """

    def __init__(
        self, objectives: Sequence[str], reference: Sequence[float], budget: Budget
    ) -> None:
        """Starts with nothing known.

        Args:
            objectives: Their names, the error first.
            reference: The hypervolume's reference point, in the order of the objectives.
            budget: Up to which the best error counts.
        """
        self._objectives = tuple(objectives)
        self._budget = budget
        self._intermediates: dict[int, dict[int, float]] = {}
        self._gains = TrainingGains()
        self._race = Race()
        self.front = Front(reference)
        self.best_error: float | None = None
        self.since_growth = 0

    def _values(self, trial: Trial) -> tuple[float, ...]:
        """The objective values in their order."""
        return tuple(trial.values[objective] for objective in self._objectives)

    def with_trial(self, trial: Trial) -> tuple[Front, FrontChange]:
        """The front as it will be with one more trial, and what that changes."""
        if not trial.is_feasible:
            return self.front, FrontChange((), (), self.front.hypervolume)
        front = deepcopy(self.front)
        return front, front.add(trial.number, self._values(trial))

    def restore(self, trial: Trial) -> None:
        """Takes in a complete trial of an earlier driver."""
        if trial.is_feasible:
            self.front.add(trial.number, self._values(trial))
        self._note(trial)

    def complete(self, trial: Trial, front: Front, change: FrontChange) -> None:
        """Takes in a trial that is recorded now, with the front that was recorded with it."""
        self.front = front
        self.since_growth = 0 if change.added else self.since_growth + 1
        self._note(trial)

    def prune(self) -> None:
        """Takes in a trial that stopped early."""
        self.since_growth += 1

    def report(self, number: int, shown: IntermediateValue) -> None:
        """Takes in what the recovery of a trial showed in training."""
        self._intermediates.setdefault(number, {})[shown.step] = shown.value

    def pruner(self) -> Pruner:
        """What a recovery that is trained now must be able to pass."""
        return Pruner(self.front.points, self._gains.largest())

    def race(self) -> Race:
        """What a trial that is evaluated now must keep up with."""
        return self._race

    def restore_race(self, trials: Iterable[Measured]) -> None:
        """Takes in what came out for the samples of an earlier driver's trials."""
        self._race = Race.of(
            Rival(trial.number, tuple(map(trial.values.__getitem__, self._objectives[1:])), samples)
            for trial in trials
            if (samples := trial.samples) is not None and not trial.has_recovery
        )

    def enter(self, trial: Trial, samples: SampleResults | None) -> None:
        """Takes in what came out for the samples of a complete trial."""
        if samples is not None and trial.is_feasible and not trial.configuration.trained_by:
            rival = Rival(trial.number, self._values(trial)[1:], samples)
            self._race = Race.of([*self._race.rivals, rival])

    def _note(self, trial: Trial) -> None:
        error = trial.values["error"]
        fits = self._budget.holds(trial.values)
        if fits and trial.is_feasible:
            self.best_error = error if self.best_error is None else min(error, self.best_error)
        if trial.configuration.trained_by:
            self._gains.add(trial.configuration, self._intermediates.get(trial.number, {}), error)

"""What the trials of a study have reached: the front, the best error, what recoveries gain."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

from bitfront.plan import Configuration
from bitfront.trial import FrontChange, is_feasible
from search.front import Front
from search.pruner import Pruner, RecoveryGains


@dataclass(frozen=True, slots=True)
class Measured:
    """A complete trial.

    Attributes:
        number: The trial's.
        configuration: What was evaluated.
        values: Objective name to value.
        constraints: Constraint name to its excess; at most 0 where it holds.
    """

    number: int
    configuration: Configuration
    values: Mapping[str, float]
    constraints: Mapping[str, float]

    @property
    def is_feasible(self) -> bool:
        """Whether it holds every constraint of the job."""
        return is_feasible(self.constraints)


class FrontTracker:
    """Kept in step with the database: a trial counts once its result is recorded there.

    Attributes:
        front: The non-dominated feasible trials.
        best_error: The lowest error of a feasible trial within the budget; None if there is none.
        since_growth: Finished trials since the front last grew.
    """

    def __init__(
        self, objectives: Sequence[str], reference: Sequence[float], budget_nbytes: float
    ) -> None:
        """Starts with nothing known.

        Args:
            objectives: Their names, the error first.
            reference: The hypervolume's reference point, in the order of the objectives.
            budget_nbytes: The size up to which the best error counts.
        """
        self._objectives = tuple(objectives)
        self._budget_nbytes = budget_nbytes
        self._stages: dict[int, dict[int, float]] = {}
        self._gains = RecoveryGains()
        self.front = Front(reference)
        self.best_error: float | None = None
        self.since_growth = 0

    def values(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """The objective values in their order."""
        return tuple(values[objective] for objective in self._objectives)

    def with_trial(self, trial: Measured) -> tuple[Front, FrontChange]:
        """The front as it will be with one more trial, and what that changes."""
        if not trial.is_feasible:
            return self.front, FrontChange((), (), self.front.hypervolume)
        front = deepcopy(self.front)
        return front, front.add(trial.number, self.values(trial.values))

    def recall(self, trial: Measured) -> None:
        """Takes in a complete trial of an earlier driver."""
        if trial.is_feasible:
            self.front.add(trial.number, self.values(trial.values))
        self._note(trial)

    def complete(self, trial: Measured, front: Front, change: FrontChange) -> None:
        """Takes in a trial that is recorded now, with the front that was recorded with it."""
        self.front = front
        self.since_growth = 0 if change.added else self.since_growth + 1
        self._note(trial)

    def prune(self) -> None:
        """Takes in a trial that stopped early."""
        self.since_growth += 1

    def report(self, number: int, step: int, error: float) -> None:
        """Takes in what a recovery in training showed after `step` optimiser steps."""
        self._stages.setdefault(number, {})[step] = error

    def pruner(self) -> Pruner:
        """What a recovery that is trained now must be able to pass."""
        return Pruner(self.front.points, self._gains.largest())

    def _note(self, trial: Measured) -> None:
        error = trial.values["error"]
        fits = trial.values.get("nbytes", 0) <= self._budget_nbytes
        if fits and trial.is_feasible:
            self.best_error = error if self.best_error is None else min(error, self.best_error)
        recovery = trial.configuration.recovery
        if recovery is not None:
            self._gains.add(recovery, self._stages.get(trial.number, {}), error)

"""Trials, and the attempts at them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Self

from bitfront.plan import Distillation, Recovery
from bitfront.trial import Cause, Origin, Trial, TrialState
from service.http.models.content import Content, Values
from storage.records import (
    AttemptRecord,
)


class Configuration(Content):
    """What a trial evaluates: the precision of each layer, such as `w4a8`, and what is trained."""

    plan: dict[str, str]
    distil: Distillation | None
    recovery: Recovery | None
    digest: str


class TrialRow(Content):
    """A trial; `values` are of the selection split, `test_values` of the test split."""

    study: str
    number: int
    state: TrialState
    origin: Origin
    baseline: str | None
    attempts: int
    values: Values
    test_values: Values
    constraints: Values
    feasible: bool
    cached: bool
    cause: Cause | None
    message: str | None
    seconds: float | None
    worker: str | None
    started_at: datetime | None
    finished_at: datetime | None
    configuration: Configuration

    @classmethod
    def of(cls, trial: Trial, names: Mapping[int, str]) -> Self:
        """The row of a trial.

        Args:
            trial: The trial.
            names: Trial numbers to names of uniform baselines.
        """
        configuration = trial.configuration
        return cls(
            study=trial.study,
            number=trial.number,
            state=trial.state,
            origin=trial.origin,
            baseline=names.get(trial.number),
            attempts=trial.attempts,
            values=dict(trial.values),
            test_values=dict(trial.test_values),
            constraints=dict(trial.constraints),
            feasible=trial.is_feasible,
            cached=trial.is_cached,
            cause=trial.cause,
            message=trial.message,
            seconds=trial.seconds,
            worker=trial.worker,
            started_at=trial.started_at,
            finished_at=trial.finished_at,
            configuration=Configuration(
                plan=configuration.plan.to_dict(),
                distil=configuration.plan.distil,
                recovery=configuration.recovery,
                digest=configuration.digest,
            ),
        )


class TrialPage(Content):
    """Some trials by number; `next_after` is what `after` has to be for those that follow."""

    trials: tuple[TrialRow, ...]
    next_after: int | None


class AttemptRow(Content):
    """An attempt at a trial; `cause` says why it ended without a result."""

    trial: int
    attempt: int
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    worker: str | None
    cause: Cause | None
    message: str | None
    traceback: str | None

    @classmethod
    def of(cls, record: AttemptRecord) -> Self:
        """The row of an attempt."""
        return cls(
            trial=record.trial,
            attempt=record.attempt,
            started_at=record.started_at,
            finished_at=record.finished_at,
            seconds=record.seconds,
            worker=record.worker,
            cause=record.cause,
            message=record.message,
            traceback=record.traceback,
        )


class Attempts(Content):
    """Every attempt at a trial, in order."""

    attempts: tuple[AttemptRow, ...]

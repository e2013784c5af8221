"""Trials: one configuration of a study with its state and its measured values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from bitfront.plan import Configuration

if TYPE_CHECKING:
    from bitfront.samples import SampleResults


class TrialState(StrEnum):
    """Where a trial stands; a complete, failed or pruned one changes only to outdated.

    A pruned trial stopped, since it could not reach the front any more. A cancelled trial has
    no result: when its study is resumed, it runs again. An outdated trial ended before a change
    of the model, the data or the job was accepted: it keeps its values, but cannot be compared
    with later trials.
    """

    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PRUNED = "pruned"
    OUTDATED = "outdated"

    @property
    def is_finished(self) -> bool:
        """Whether the trial ended, and counts among the trials of its study."""
        return self not in (TrialState.RUNNING, TrialState.OUTDATED)

    @property
    def is_measured(self) -> bool:
        """Whether the trial was evaluated, to its end or as far as there was hope."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED)


class StudyState(StrEnum):
    """Where a study stands; a paused one has a driver that waits to be told to resume."""

    PROFILING = "profiling"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Origin(StrEnum):
    """Who proposed a trial's configuration."""

    BASELINE = "baseline"
    PROGRAM = "program"
    WARM_START = "warm_start"
    REFINEMENT = "refinement"
    SAMPLER = "sampler"

    @property
    def is_raced(self) -> bool:
        """Whether a job that races trials may stop these: nobody learns of cells from them."""
        return self in (Origin.REFINEMENT, Origin.SAMPLER)


class Cause(StrEnum):
    """Why an attempt ended without a result."""

    USER_ERROR = "user_error"
    OUT_OF_MEMORY = "out_of_memory"
    INVALID_METRIC = "invalid_metric"
    NODE_LOST = "node_lost"
    DRIVER_RESTART = "driver_restart"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What evaluating a configuration on one split yields.

    Attributes:
        values: Objective name to finite value; all are minimised.
        metrics: Further finite figures for a person: bytes by part, bits per weight,
            seconds by stage, cache hits.
        samples: What comes out for each sample; None where it was not kept.
    """

    values: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: "SampleResults | None" = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration that is worth a trial.

    Attributes:
        configuration: What is to be evaluated.
        origin: Who proposes it.
        params: The sampler's own parameters; empty for a plan outside of its space.
    """

    configuration: Configuration
    origin: Origin
    params: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluated configuration of a study.

    Attributes:
        study: Its study.
        number: Counts from 0 within the study; used once.
        configuration: What is evaluated.
        origin: Who proposed it.
        params: The sampler's own parameters; empty for a plan outside of its space.
        state: Where it stands.
        attempts: How many were started; goes up with every restart.
        values: What was measured on the selection split, by name: the objectives, and for a
            stored trial whatever else has a column; empty until complete.
        constraints: Constraint name to its excess; at most 0 where it holds.
        metrics: Further figures of the evaluation.
        test_values: Objective name to value on the test split, once the front is finished.
        is_cached: Whether its values came from the cache of evaluations.
        cause: Why it failed or was cancelled; None otherwise.
        message: What its last attempt said when it ended without a result.
        seconds: How long its last attempt took.
        worker: Who made its last attempt.
        started_at: When it was first started; None until it is stored.
        finished_at: When it ended; None while it runs.
    """

    study: str
    number: int
    configuration: Configuration
    origin: Origin
    params: Mapping[str, int | float | str] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    attempts: int = 1
    values: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    test_values: Mapping[str, float] = field(default_factory=dict)
    is_cached: bool = False
    cause: Cause | None = None
    message: str | None = None
    seconds: float | None = None
    worker: str | None = None
    started_at: datetime | None = field(default=None, compare=False)
    finished_at: datetime | None = field(default=None, compare=False)

    @classmethod
    def of(cls, study: str, number: int, proposal: Proposal) -> Self:
        """A new trial of what was proposed."""
        return cls(study, number, proposal.configuration, proposal.origin, proposal.params)

    def completed(self, evaluation: Evaluation, constraints: Mapping[str, float]) -> Self:
        """The trial with its values; `constraints` maps names to their excess."""
        return replace(
            self,
            state=TrialState.COMPLETE,
            values=evaluation.values,
            metrics=evaluation.metrics,
            constraints=constraints,
        )

    @property
    def is_feasible(self) -> bool:
        """Whether it holds every constraint of the job; only a complete one can break some."""
        return is_feasible(self.constraints)


def is_feasible(constraints: Mapping[str, float]) -> bool:
    """Whether no constraint, name to excess, is broken."""
    return all(excess <= 0 for excess in constraints.values())


@dataclass(frozen=True, slots=True)
class Measured:
    """What a choice among complete trials that hold their job's limits needs of one.

    Attributes:
        study: Its study.
        number: Its number there.
        values: What was measured on the selection split, by the name of the figure.
        has_recovery: Whether something of it is trained: its plan, or P4Q.
        samples: What came out for each selection sample; None where it was not kept.
    """

    study: str
    number: int
    values: Mapping[str, float]
    has_recovery: bool = False
    samples: "SampleResults | None" = None

    @property
    def place(self) -> tuple[str, int]:
        """Its study and number, which name it."""
        return self.study, self.number


@dataclass(frozen=True, slots=True)
class FrontChange:
    """What one completed trial does to the front of its study.

    Attributes:
        added: Numbers that join the front (none or the new one).
        removed: Numbers that the new one dominates.
        hypervolume: Of the front afterwards, as a share of the box up to the reference point.
    """

    added: tuple[int, ...]
    removed: tuple[int, ...]
    hypervolume: float

"""Trials: one configuration of a study with its state and its measured values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bitfront.plan import Configuration


class TrialState(StrEnum):
    """Where a trial stands; a complete, failed or pruned one never changes again.

    A pruned trial stopped, since it could not reach the front any more. A cancelled trial has
    no result: when its study is resumed, it runs again.
    """

    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PRUNED = "pruned"

    @property
    def is_finished(self) -> bool:
        """Whether the trial will not change any more."""
        return self is not TrialState.RUNNING

    @property
    def is_measured(self) -> bool:
        """Whether the trial was evaluated, to its end or as far as there was hope."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED)


class StudyState(StrEnum):
    """Where a study stands; a paused one has a driver that waits to be told to go on."""

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
    SAMPLER = "sampler"


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
        metrics: Further finite figures for the report: bytes by part, bits per weight,
            seconds by stage, cache hits.
    """

    values: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluated configuration of a study.

    Attributes:
        number: Counts from 0 within the study; used once.
        configuration: What is evaluated.
        origin: Who proposed it.
        params: The sampler's own parameters; empty for a plan outside of its space.
        state: Where it stands.
        attempt: Counts from 1; goes up with every restart.
        values: Objective name to value on the selection split; empty until complete.
        constraints: Constraint name to its excess; at most 0 where it holds.
        metrics: Further figures of the evaluation.
        test_values: Objective name to value on the test split, once the front is finished.
        cause: Why it failed; None otherwise.
    """

    number: int
    configuration: Configuration
    origin: Origin
    params: Mapping[str, int | float | str]
    state: TrialState = TrialState.RUNNING
    attempt: int = 1
    values: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    test_values: Mapping[str, float] = field(default_factory=dict)
    cause: str | None = None

    @property
    def is_feasible(self) -> bool:
        """Whether it holds every constraint of the job."""
        return is_feasible(self.constraints)


def is_feasible(constraints: Mapping[str, float]) -> bool:
    """Whether no constraint, name to excess, is broken."""
    return all(excess <= 0 for excess in constraints.values())


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

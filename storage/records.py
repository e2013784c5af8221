"""What storage hands out: frozen records, free of SQL."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from bitfront.errors import SpecError
from bitfront.layers import Block, Layer
from bitfront.objective import BY_LIMIT
from bitfront.profile import Cell, LayerEntropy
from bitfront.trial import Cause, Measured, Origin, StudyState, Trial, TrialState

if TYPE_CHECKING:
    from bitfront.spec import JobSpec

Json = Mapping[str, object]
"""Plain JSON content with finite numbers."""


class Request(StrEnum):
    """What a client asks of the driver that runs a study."""

    STOP = "stop"
    PAUSE = "pause"
    CANCEL = "cancel"


class EventKind(StrEnum):
    """What happened to a study."""

    CREATED = "created"
    ACQUIRED = "acquired"
    TAKEN_OVER = "taken_over"
    RELEASED = "released"
    REQUESTED = "requested"
    STATE = "state"
    CHANGED = "changed"
    PROFILED = "profiled"
    PRUNED = "pruned"
    STARTED = "started"
    COMPLETED = "completed"
    STOPPED_EARLY = "stopped_early"
    ATTEMPT_FAILED = "attempt_failed"
    FAILED = "failed"
    RESTARTED = "restarted"
    CANCELLED = "cancelled"
    TESTED = "tested"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to a study, until another driver takes it over."""

    study_id: int
    name: str
    owner: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study as it is stored.

    Attributes:
        name: Its name, unique in the database.
        state: Where it stands.
        spec_json: The job specification as canonical JSON.
        provenance: What it was made of: hashes of model and data, versions, device, host.
        created_at: When it was submitted.
        updated_at: When anything about it was last written.
        epoch: Goes up with every driver that takes the study.
        owner: The driver that holds the lease; None when nobody runs it.
        lease_s: How long the owner may give no sign of life, in seconds.
        heartbeat_at: The owner's last sign of life.
        heartbeat_age_s: Seconds since then when the study was read, by the database's clock;
            negative where that clock was set back.
        request: What a client asked of the driver, not yet cleared.
        message: Why it is in its state, for a person.
        reference: The hypervolume's reference point, objective name to value.
        correlation: Rank correlation between the proxy and the measured error.
    """

    name: str
    state: StudyState
    spec_json: str
    provenance: Mapping[str, str]
    created_at: datetime
    updated_at: datetime
    epoch: int
    owner: str | None
    lease_s: float | None
    heartbeat_at: datetime | None
    heartbeat_age_s: float | None = field(compare=False)
    request: Request | None
    message: str | None
    reference: Mapping[str, float] | None
    correlation: float | None

    @property
    def spec(self) -> "JobSpec":
        """The job specification, parsed."""
        # Imported here because pydantic takes longer to import than a query takes to run.
        from bitfront.spec import JobSpec

        return JobSpec.model_validate_json(self.spec_json)

    @property
    def planned_trials(self) -> int:
        """How many trials the job asks for."""
        return cast("int", json.loads(self.spec_json)["stop"]["trials"])


@dataclass(frozen=True, slots=True)
class StudySummary:
    """One line of the list of studies; ages are in seconds, by the database's clock."""

    name: str
    state: StudyState
    model: str
    owner: str | None
    lease_s: float | None
    heartbeat_age_s: float | None = field(compare=False)
    created_at: datetime
    updated_at: datetime
    updated_age_s: float = field(compare=False)
    planned_trials: int
    counts: Mapping[TrialState, int]
    best_error: float | None
    front_size: int


@dataclass(frozen=True, slots=True)
class FailureCount:
    """How many attempts ended by one cause, and what the last of them said."""

    cause: Cause
    count: int
    message: str


@dataclass(frozen=True, slots=True)
class Status:
    """How far a study is.

    Attributes:
        study: The study itself.
        counts: Trials by state; every state is there.
        cells: Cells that this study measured.
        best_error: The lowest error among complete, feasible trials.
        front_size: Trials on the front.
        hypervolume: The last one recorded.
        seconds: Time that the complete and pruned trials took, all workers together.
        failures: Attempts that yielded nothing, by cause, the most frequent first.
    """

    study: StudyRecord
    counts: Mapping[TrialState, int]
    cells: int
    best_error: float | None
    front_size: int
    hypervolume: float | None
    seconds: float
    failures: tuple[FailureCount, ...]

    @property
    def finished(self) -> int:
        """Trials that will not change any more."""
        return sum(count for state, count in self.counts.items() if state.is_finished)

    @property
    def progress(self) -> float:
        """The share of the planned trials that is finished, in [0, 1]."""
        return min(1.0, self.finished / self.study.planned_trials)


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that a resumed study finds other than it was recorded."""

    name: str
    recorded: str
    found: str

    def __str__(self) -> str:
        return f"{self.name} was {self.recorded}, is {self.found}"


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """A study's layers and blocks, without its cells."""

    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    entropies: tuple[LayerEntropy, ...]
    fixed_nbytes: int


@dataclass(frozen=True, slots=True)
class OptionRecord:
    """One option of a block after pruning: its cell, whether it survives, and the proof.

    The `certificate` of an estimated cell names the score under `estimated_by`.
    """

    cell: Cell
    survives: bool
    certificate: Json


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """An attempt as it is stored; `cause` says why it ended without a result, if it did."""

    trial: int
    attempt: int
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    worker: str | None
    cause: Cause | None
    message: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a study's log."""

    id: int
    at: datetime
    kind: EventKind
    trial: int | None
    content: Json


@dataclass(frozen=True, slots=True)
class LogLine:
    """An event, and the attempt that it is about.

    Attributes:
        event: What happened.
        attempt: Which attempt at the trial; None where it is about no attempt, or unknown.
        worker: Who made the attempt, where the event ends one.
        seconds: How long the attempt took, where the event ends one.
        traceback: Of the attempt that the event ends; read only for one trial.
    """

    event: Event
    attempt: int | None
    worker: str | None
    seconds: float | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class ModelFronts:
    """The fronts of all studies of one model, to be compared.

    Attributes:
        studies: The studies that have a front, the oldest first.
        objectives: What every one of them minimised, and measured alike.
        trials: The trials on their fronts.
    """

    studies: tuple[str, ...]
    objectives: tuple[str, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class StudyVersion:
    """What differs whenever a query of a study's trials may have another answer.

    Whatever is written about a trial or the front adds an event.

    Attributes:
        made_at: When the study was made: another one may have had its name before.
        state: Where it stands.
        last_event: The number of its last event; 0 where there is none.
    """

    made_at: datetime
    state: StudyState
    last_event: int


@dataclass(frozen=True, slots=True)
class ShownTrial:
    """What a picture of complete trials needs of one.

    Attributes:
        number: Its number in the study.
        origin: Who proposed it.
        values: Its figures on the selection split.
        test_values: Its objectives on the test split, where they were measured.
        has_recovery: Whether something of it is trained: its plan, or P4Q.
    """

    number: int
    origin: Origin
    values: Mapping[str, float]
    test_values: Mapping[str, float]
    has_recovery: bool


@dataclass(frozen=True, slots=True)
class MeasuredTrials:
    """What a choice among the trials of a study, or of several comparable ones, looks at.

    Attributes:
        objectives: The study's; the error and bytes for several studies.
        trials: All complete ones that hold their job's limits, study by study, by number.
    """

    objectives: tuple[str, ...]
    trials: tuple[Measured, ...]


@dataclass(frozen=True, slots=True, init=False)
class Limits:
    """Upper limits of a query, as in `Limits(max_nbytes=40e6, max_error=0.1)`.

    Attributes:
        given: The limits that are set, by the name of the figure.
    """

    given: Mapping[str, float]

    def __init__(self, **limits: float | None) -> None:
        """Takes the limits by their names, `max_nbytes` and its like; None means no limit.

        Raises:
            SpecError: A figure has no such limit, or a limit is not a positive number.
        """
        given: dict[str, float] = {}
        for name, limit in limits.items():
            if name not in BY_LIMIT:
                raise SpecError(f"{name} is not a limit: there are {', '.join(BY_LIMIT)}")
            if limit is None:
                continue
            if not (math.isfinite(limit) and limit > 0):
                raise SpecError(f"{name} must be a positive number, got {limit}")
            given[BY_LIMIT[name].name] = limit
        object.__setattr__(self, "given", given)

    def excess(self, values: Mapping[str, float]) -> float | None:
        """The shares by which values exceed the limits, summed; 0 where they hold all of them.

        None where a limited figure was not measured.
        """
        if not values.keys() >= self.given.keys():
            return None
        return math.fsum(max(0.0, values[name] / limit - 1) for name, limit in self.given.items())

    def hold(self, values: Mapping[str, float]) -> bool:
        """Whether every limited figure was measured and is within its limit."""
        return all(name in values and values[name] <= most for name, most in self.given.items())

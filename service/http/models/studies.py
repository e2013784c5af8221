"""Studies: a line of each, the status of one, and what its driver is asked for."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from bitfront.trial import Cause, StudyState
from service.http.models.content import Content, Counts
from service.views.status import is_driven, is_interrupted
from storage.records import (
    Request,
    Status,
    StudySummary,
)


class StudyLine(Content):
    """A study in the list of all; `front` counts the trials on it.

    `interrupted` says that the study is unfinished and that nobody runs it.
    """

    name: str
    state: StudyState
    interrupted: bool
    driven: bool
    model: str
    planned_trials: int
    trials: Counts
    front: int
    best_error: float | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, study: StudySummary) -> Self:
        """The line of a study."""
        return cls(
            name=study.name,
            state=study.state,
            interrupted=is_interrupted(study),
            driven=is_driven(study),
            model=study.model,
            planned_trials=study.planned_trials,
            trials=dict(study.counts),
            front=study.front_size,
            best_error=study.best_error,
            created_at=study.created_at,
            updated_at=study.updated_at,
        )


class Studies(Content):
    """All studies, the newest first."""

    studies: tuple[StudyLine, ...]


class Failure(Content):
    """How many attempts ended by a cause, and what the last of them said."""

    cause: Cause
    count: int
    message: str


class StudyStatus(Content):
    """How far a study is; times are in seconds.

    `best_error_at_budget` is the lowest error within the job's limit on its second objective, or
    within a quarter of what full precision takes. `remaining_s` is estimated from the trials that
    were finished since the driver began; absent where that cannot be said.
    """

    name: str
    state: StudyState
    interrupted: bool
    driven: bool
    owner: str | None
    heartbeat_age_s: float | None
    request: Request | None
    message: str | None
    planned_trials: int
    finished_trials: int
    progress: float = Field(ge=0, le=1)
    remaining_s: float | None
    trials: Counts
    front: int
    best_error: float | None
    best_error_at_budget: float | None
    hypervolume: float | None
    correlation: float | None
    cells: int
    worker_s: float
    failures: tuple[Failure, ...]
    provenance: dict[str, str]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(
        cls, status: Status, best_error_at_budget: float | None, remaining_s: float | None
    ) -> Self:
        """The status, with what takes further queries."""
        study = status.study
        return cls(
            name=study.name,
            state=study.state,
            interrupted=is_interrupted(study),
            driven=is_driven(study),
            owner=study.owner,
            heartbeat_age_s=study.heartbeat_age_s,
            request=study.request,
            message=study.message,
            planned_trials=study.planned_trials,
            finished_trials=status.finished,
            progress=status.progress,
            remaining_s=remaining_s,
            trials=dict(status.counts),
            front=status.front_size,
            best_error=status.best_error,
            best_error_at_budget=best_error_at_budget,
            hypervolume=status.hypervolume,
            correlation=study.correlation,
            cells=status.cells,
            worker_s=status.seconds,
            failures=tuple(
                Failure(cause=one.cause, count=one.count, message=one.message)
                for one in status.failures
            ),
            provenance=dict(study.provenance),
            created_at=study.created_at,
            updated_at=study.updated_at,
        )


class Submitted(Content):
    """A study whose driver was started; `warnings` and `notes` are of the check before it."""

    study: str
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Asked(Content):
    """What a study's driver was asked for, and what follows."""

    study: str
    request: Request | None
    consequence: str


class Resume(BaseModel):
    """How a study goes on; what is not given stays as it was."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trials: int | None = Field(None, ge=1, le=10_000_000)
    workers: int | None = Field(None, ge=1, le=4096)
    accept_changes: bool = False

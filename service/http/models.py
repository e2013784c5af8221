"""What the routes answer: every field with its type and its unit."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from bitfront.layers import LayerKind, Tower
from bitfront.plan import Recovery
from bitfront.trial import Cause, Origin, StudyState, Trial, TrialState
from search.choice import Peer, Ranking
from search.estimate import Estimate
from service.views.choosing import Answer as BestAnswer
from service.views.choosing import FullPrecision
from service.views.logs import line_dict
from service.views.status import is_driven, is_interrupted
from service.views.targets import Deployable
from storage.artefacts import ArtefactRecord
from storage.records import (
    AttemptRecord,
    EventKind,
    LogLine,
    OptionRecord,
    ProfileRecord,
    Request,
    Status,
    StudySummary,
)

Values = dict[str, float]
"""Figures by name, such as `error` and `nbytes`; those that were not measured are absent."""

Counts = dict[TrialState, int]

_JSON: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


class Content(BaseModel):
    """A part of an answer; it does not change."""

    model_config = ConfigDict(frozen=True)


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


class Configuration(Content):
    """What a trial evaluates: the precision of each layer, such as `w4a8`, and the recovery."""

    plan: dict[str, str]
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
                recovery=configuration.recovery,
                digest=configuration.digest,
            ),
        )


class TrialPage(Content):
    """Some trials by number; `next_after` is what `after` has to be for those that follow."""

    trials: tuple[TrialRow, ...]
    next_after: int | None


class EstimatedError(Content):
    """An error that was estimated from all trials, with its standard error."""

    error: float
    standard_error: float

    @classmethod
    def of(cls, estimate: Estimate | None) -> Self | None:
        """The estimate, where there is one."""
        if estimate is None:
            return None
        return cls(error=estimate.error, standard_error=estimate.standard_error)


class RankedTrial(Content):
    """A trial, and its estimated error where it has one."""

    trial: TrialRow
    estimate: EstimatedError | None


class Interval(Content):
    """The 95 % interval of an error."""

    low: float
    high: float


class FullPrecisionRow(Content):
    """Full precision as the study measured it, with the intervals of its errors by split."""

    trial: TrialRow
    intervals: dict[str, Interval]

    @classmethod
    def of(cls, full: FullPrecision, names: Mapping[int, str]) -> Self:
        """The row of full precision."""
        found = {split: full.interval(split) for split in ("selection", "test")}
        return cls(
            trial=TrialRow.of(full.trial, names),
            intervals={
                split: Interval(low=ends[0], high=ends[1])
                for split, ends in found.items()
                if ends is not None
            },
        )


class Front(Content):
    """The front of a study, lowest error first, and full precision beside it."""

    by: Ranking
    objectives: tuple[str, ...]
    trials: tuple[RankedTrial, ...]
    full_precision: FullPrecisionRow | None


class NotToldApart(Content):
    """A trial whose error cannot be told from that of the best one.

    `p` is McNemar's probability; `samples_needed` is absent for more than could be counted.
    """

    number: int
    p: float
    samples_needed: int | None

    @classmethod
    def of(cls, peer: Peer) -> Self:
        """What is said of a peer."""
        needed = peer.samples_needed
        return cls(
            number=peer.trial.number,
            p=peer.comparison.error_p,
            samples_needed=int(needed) if math.isfinite(needed) else None,
        )


class DeploymentTarget(Content):
    """A runtime that takes the configuration, and how many layers it has no kernel for."""

    target: str
    artefact: str
    without_kernel: int
    layers: int

    @classmethod
    def of(cls, found: Deployable) -> Self:
        """What is said of a target."""
        return cls(
            target=found.target,
            artefact=found.artefact,
            without_kernel=found.without_kernel,
            layers=found.layers,
        )


class Best(Content):
    """The best trial within limits, on how many samples it was compared, and with which ones."""

    by: Ranking
    limits: Values
    best: RankedTrial
    samples: int
    not_told_apart: tuple[NotToldApart, ...]
    targets: tuple[DeploymentTarget, ...]

    @classmethod
    def of(
        cls,
        answer: BestAnswer,
        by: Ranking,
        limits: Mapping[str, float],
        names: Mapping[int, str],
        targets: list[Deployable],
    ) -> Self:
        """The answer to a query."""
        return cls(
            by=by,
            limits=dict(limits),
            best=RankedTrial(
                trial=TrialRow.of(answer.trial, names), estimate=EstimatedError.of(answer.estimate)
            ),
            samples=answer.samples,
            not_told_apart=tuple(map(NotToldApart.of, answer.peers)),
            targets=tuple(map(DeploymentTarget.of, targets)),
        )


class HypervolumePoint(Content):
    """The front's hypervolume after so many complete trials, as a share of the box to the left."""

    completed: int
    hypervolume: float


class HypervolumeHistory(Content):
    """How the front's hypervolume grew; it is measured from `reference`."""

    reference: Values | None
    points: tuple[HypervolumePoint, ...]


class LayerRow(Content):
    """A layer, in order of execution; `block` is absent where it is in none."""

    name: str
    tower: Tower
    kind: LayerKind
    rows: int
    columns: int
    block: str | None
    entropy: float | None
    dependency: float | None


class CellRow(Content):
    """An option of a block: precisions joined by `+`, its size, its cost, its effect in error.

    `error` is in nats for an output KL, and an estimate where it was not `measured`; `latency_s` is
    in seconds a sample. `survives` says whether the search may take it.
    """

    block: str
    option: str
    nbytes: int
    bit_operations: float
    latency_s: float | None
    error: float
    measured: bool
    survives: bool

    @classmethod
    def of(cls, record: OptionRecord) -> Self:
        """The row of an option."""
        cell = record.cell
        return cls(
            block=cell.block,
            option=str(cell.option),
            nbytes=cell.nbytes,
            bit_operations=cell.bit_operations,
            latency_s=cell.latency_s,
            error=cell.error,
            measured=not cell.is_estimate,
            survives=record.survives,
        )


class Profile(Content):
    """The sensitivities of a study's model: layers, and the measured cells of its blocks."""

    fixed_nbytes: int
    layers: tuple[LayerRow, ...]
    cells: tuple[CellRow, ...]

    @classmethod
    def of(cls, profile: ProfileRecord, options: list[OptionRecord]) -> Self:
        """The profile of a study."""
        entropies = {entropy.layer: entropy for entropy in profile.entropies}
        blocks = {layer: block.name for block in profile.blocks for layer in block.layers}
        layers = []
        for layer in profile.layers:
            known = entropies.get(layer.name)
            layers.append(
                LayerRow(
                    name=layer.name,
                    tower=layer.tower,
                    kind=layer.kind,
                    rows=layer.rows,
                    columns=layer.columns,
                    block=blocks.get(layer.name),
                    entropy=None if known is None else known.entropy,
                    dependency=None if known is None else known.dependency,
                )
            )
        return cls(
            fixed_nbytes=profile.fixed_nbytes,
            layers=tuple(layers),
            cells=tuple(map(CellRow.of, options)),
        )


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


class Artefact(Content):
    """A model that was built from a trial.

    `available` says whether its folder is on this machine, within the folders that are given to
    jobs, so that it can be downloaded.
    """

    id: str
    trial: int
    target: str
    nbytes: int
    files: dict[str, str]
    verification: dict[str, JsonValue]
    created_at: datetime | None
    available: bool

    @classmethod
    def of(cls, name: str, record: ArtefactRecord, *, is_available: bool) -> Self:
        """What is said of an artefact."""
        return cls(
            id=name,
            trial=record.trial,
            target=record.target,
            nbytes=record.nbytes,
            files=dict(record.files),
            verification=_JSON.validate_python(dict(record.verification)),
            created_at=record.created_at,
            available=is_available,
        )


class Artefacts(Content):
    """What was built from a study's trials, oldest first."""

    artefacts: tuple[Artefact, ...]


class LogEntry(Content):
    """A line of a study's log; `text` says in words what happened."""

    id: int
    at: datetime
    event: EventKind
    text: str
    trial: int | None
    attempt: int | None
    worker: str | None
    seconds: float | None

    @classmethod
    def of(cls, study: str, line: LogLine) -> Self:
        """The entry of a line."""
        event = line.event
        return cls(
            id=event.id,
            at=event.at,
            event=event.kind,
            text=str(line_dict(study, line)["text"]),
            trial=event.trial,
            attempt=line.attempt,
            worker=line.worker,
            seconds=line.seconds,
        )


class Log(Content):
    """Some lines of a study's log; `next_after` is what `after` has to be for those that follow."""

    lines: tuple[LogEntry, ...]
    next_after: int | None


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


class Point(Content):
    """A complete trial in the plane of two figures.

    `low` and `high` are the ends of the 95 % interval of its error on the selection split.
    """

    trial: int
    origin: Origin
    baseline: str | None
    has_recovery: bool
    on_front: bool
    values: Values
    low: float | None
    high: float | None
    estimate: float | None
    test_error: float | None


class Points(Content):
    """The complete trials of a study, by number; of very many, the front and some of the others."""

    objectives: tuple[str, ...]
    complete: int
    points: tuple[Point, ...]


class LayerErrors(Content):
    """A layer, and the error of the model's output by the layer's weight bits."""

    layer: str
    tower: str
    block: str
    errors: dict[int, float]


class ProxyPoint(Content):
    """A trial without recovery: the summed error of its cells, and its measured error."""

    trial: int
    proxy: float
    error: float


class Sensitivity(Content):
    """How much each layer suffers from few bits, and how well that foretells a trial's error.

    `correlation` is Spearman's, as the study's driver recorded it.
    """

    measure: str
    layers: tuple[LayerErrors, ...]
    pairs: tuple[ProxyPoint, ...]
    correlation: float | None

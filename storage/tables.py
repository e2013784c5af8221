"""The tables: typed models with their constraints; nothing of them leaves this package."""

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, mapped_column
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from bitfront.layers import LayerKind, Tower
from bitfront.objective import FIGURES, OBJECTIVES
from bitfront.profile import StageArtefactKind
from bitfront.trial import Cause, Origin, StudyState, TrialState
from storage.records import Request

_GREATEST = "1.7976931348623157e308"


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone: SQLite keeps UTC as text, PostgreSQL a timestamptz."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, _: Dialect) -> datetime | None:
        """The stored time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Now(FunctionElement[datetime]):
    """The database's own clock, which every driver of a study shares."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(Now)
def _now_by_default(_: Now, __: SQLCompiler, **___: object) -> str:
    return "clock_timestamp()"


@compiles(Now, "sqlite")
def _now_in_sqlite(_: Now, __: SQLCompiler, **___: object) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f', 'now')"


def _one_of(column: str, names: Iterable[str]) -> CheckConstraint:
    listed = ", ".join(f"'{name}'" for name in names)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def _finite(column: str, least: str = f"-{_GREATEST}") -> CheckConstraint:
    # PostgreSQL sorts NaN above every number, so the upper bound refuses it as well.
    return CheckConstraint(f"{column} BETWEEN {least} AND {_GREATEST}", name=f"{column}_finite")


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can find it again."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as a class attribute
        str: Text(),
        float: Double(),
        datetime: UtcDateTime(),
        dict[str, object]: JSON(none_as_null=True),
        list[str]: JSON(),
    }


class Model(Base):
    """A model that was searched, by the hash of its architecture and weights."""

    __tablename__ = "model"

    id: Mapped[int] = mapped_column(primary_key=True)
    identity: Mapped[str] = mapped_column(unique=True)
    source: Mapped[str]
    name: Mapped[str]


class Study(Base):
    """All trials of a job, and the lease of the driver that runs it."""

    __tablename__ = "study"
    __table_args__ = (
        _one_of("state", StudyState),
        _one_of("request", Request),
        CheckConstraint("correlation BETWEEN -1 AND 1", name="correlation_finite"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str]
    message: Mapped[str | None]
    model_id: Mapped[int | None] = mapped_column(ForeignKey("model.id"), index=True)
    spec: Mapped[dict[str, object]]
    spec_digest: Mapped[str]
    objectives: Mapped[list[str]]  # all are minimised; the first is error
    fixed_nbytes: Mapped[int | None] = mapped_column(BigInteger)
    reference: Mapped[dict[str, object] | None]  # objective name -> value
    correlation: Mapped[float | None]
    epoch: Mapped[int]
    owner: Mapped[str | None]
    lease_s: Mapped[float | None]
    heartbeat_at: Mapped[datetime | None]
    request: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=Now())
    updated_at: Mapped[datetime] = mapped_column(default=Now())


class Provenance(Base):
    """One thing that a study was made of: a hash, a version, a device."""

    __tablename__ = "provenance"

    study_id: Mapped[int] = mapped_column(
        ForeignKey("study.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Block(Base):
    """Neighbouring layers of a study that are searched together."""

    __tablename__ = "block"
    __table_args__ = (
        UniqueConstraint("study_id", "name"),
        UniqueConstraint("study_id", "position"),
        _one_of("tower", Tower),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"))
    position: Mapped[int]
    name: Mapped[str]
    tower: Mapped[str]


class Layer(Base):
    """One weight matrix of a study's model, with its measured entropies."""

    __tablename__ = "layer"
    __table_args__ = (
        UniqueConstraint("study_id", "name"),
        UniqueConstraint("study_id", "position"),
        _one_of("tower", Tower),
        _one_of("kind", LayerKind),
        _finite("entropy"),
        _finite("dependency"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"))
    block_id: Mapped[int | None] = mapped_column(
        ForeignKey("block.id", ondelete="SET NULL"), index=True
    )
    block_position: Mapped[int | None]
    position: Mapped[int]
    name: Mapped[str]
    tower: Mapped[str]
    kind: Mapped[str]
    rows: Mapped[int]
    columns: Mapped[int]
    positions: Mapped[int]
    source: Mapped[str]
    scope: Mapped[str]
    entropy: Mapped[float | None]
    dependency: Mapped[float | None]


class Cell(Base):
    """The measured cost and error of one option, for every study that has its key."""

    __tablename__ = "cell"
    __table_args__ = (
        Index(None, "model", "data", "quantizer"),
        CheckConstraint("nbytes >= 0", name="nbytes_positive"),
        _finite("error", "0"),
        _finite("bit_operations", "0"),
        _finite("latency_s", "0"),
        _finite("token_s", "0"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str]
    data: Mapped[str]
    quantizer: Mapped[str]
    block: Mapped[str]
    precisions: Mapped[str]  # such as w4a8+w3a8
    nbytes: Mapped[int] = mapped_column(BigInteger)
    bit_operations: Mapped[float]
    latency_s: Mapped[float | None]
    token_s: Mapped[float | None]
    error: Mapped[float]
    seconds: Mapped[float]
    study_id: Mapped[int | None] = mapped_column(
        ForeignKey("study.id", ondelete="SET NULL"), index=True
    )
    created_at: Mapped[datetime] = mapped_column(default=Now())


class Option(Base):
    """An option of a block after pruning: whether it survives, and the proof."""

    __tablename__ = "option"
    __table_args__ = (
        UniqueConstraint("block_id", "precisions"),
        _finite("error", "0"),
        _finite("bit_operations", "0"),
        _finite("latency_s", "0"),
        _finite("token_s", "0"),
        CheckConstraint("kv_nbytes >= 0", name="kv_nbytes_positive"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    block_id: Mapped[int] = mapped_column(ForeignKey("block.id", ondelete="CASCADE"))
    precisions: Mapped[str]
    nbytes: Mapped[int] = mapped_column(BigInteger)
    bit_operations: Mapped[float]
    latency_s: Mapped[float | None]
    token_s: Mapped[float | None]
    kv_nbytes: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[float]
    survives: Mapped[bool]
    certificate: Mapped[dict[str, object]]


_ELIGIBLE = ("study_id", "state", "feasible")
"""What every query for the best asks of a trial first."""


_FIGURE_COLUMNS = (
    *(figure.name for figure in FIGURES),
    *(figure.test_name for figure in OBJECTIVES),
)


class Trial(Base):
    """One configuration of a study with its state and its figures, all of them minimised.

    Every figure is a column, and every objective has a second one for the test split.
    """

    __tablename__ = "trial"
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        UniqueConstraint("study_id", "configuration_digest"),
        *(Column(name, Double) for name in _FIGURE_COLUMNS),
        Index("ix_trial_lowest_error", *_ELIGIBLE, "error", "nbytes", "number"),
        Index("ix_trial_fewest_nbytes", *_ELIGIBLE, "nbytes", "error", "number"),
        Index("ix_trial_in_state", "study_id", "state", "number"),
        Index("ix_trial_of_origin", "study_id", "origin", "number"),
        _one_of("state", TrialState),
        _one_of("origin", Origin),
        _one_of("cause", Cause),
        CheckConstraint("number >= 0", name="number_counts"),
        CheckConstraint("attempt >= 1", name="attempt_counts"),
        CheckConstraint(
            "state = 'outdated' OR (state = 'complete') = (error IS NOT NULL)",
            name="complete_has_error",
        ),
        CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished_has_time"),
        *map(_finite, _FIGURE_COLUMNS),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"))
    number: Mapped[int]
    state: Mapped[str]
    attempt: Mapped[int]
    origin: Mapped[str]
    configuration_digest: Mapped[str]  # of an outdated trial with its number behind it
    feasible: Mapped[bool] = mapped_column(default=False)  # set once it is complete
    cached: Mapped[bool] = mapped_column(default=False)
    cause: Mapped[str | None]
    seconds: Mapped[float | None]
    worker: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=Now())
    finished_at: Mapped[datetime | None]
    params: Mapped[dict[str, object]]
    constraints: Mapped[dict[str, object] | None]
    metrics: Mapped[dict[str, object] | None]
    configuration: Mapped[dict[str, object]]

    @classmethod
    def figure(cls, name: str) -> InstrumentedAttribute[float | None]:
        """The column of a figure; `test_` before its name is that of the test split."""
        column: InstrumentedAttribute[float | None] = getattr(cls, name)
        return column


class TrialSamples(Base):
    """What came out for each sample of a split, packed; see `bitfront.samples`.

    Apart from the trials, so that whoever reads those reads no blobs.
    """

    __tablename__ = "trial_samples"
    __table_args__ = (CheckConstraint("split IN ('selection', 'test')", name="split_known"),)

    trial_id: Mapped[int] = mapped_column(
        ForeignKey("trial.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    split: Mapped[str] = mapped_column(primary_key=True)
    results: Mapped[bytes]


class Attempt(Base):
    """One try at a trial; a cause says why it ended without a result."""

    __tablename__ = "attempt"
    __table_args__ = (
        UniqueConstraint("trial_id", "number"),
        _one_of("cause", Cause),
        CheckConstraint("number >= 1", name="number_counts"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    trial_id: Mapped[int] = mapped_column(ForeignKey("trial.id", ondelete="CASCADE"))
    number: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(default=Now())
    finished_at: Mapped[datetime | None]
    seconds: Mapped[float | None]
    worker: Mapped[str | None]
    cause: Mapped[str | None]
    message: Mapped[str | None]
    traceback: Mapped[str | None]


class Intermediate(Base):
    """The error that a trial's recovery in training showed after so many optimiser steps."""

    __tablename__ = "intermediate"
    __table_args__ = (_finite("error", "0"), CheckConstraint("step >= 0", name="step_counts"))

    trial_id: Mapped[int] = mapped_column(
        ForeignKey("trial.id", ondelete="CASCADE"), primary_key=True
    )
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    error: Mapped[float]
    reported_at: Mapped[datetime] = mapped_column(default=Now())


class Front(Base):
    """A trial that no other trial of its study dominates."""

    __tablename__ = "front"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey("trial.id", ondelete="CASCADE"), primary_key=True
    )
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), index=True)
    since: Mapped[datetime] = mapped_column(default=Now())


class Hypervolume(Base):
    """The front's hypervolume after so many complete trials."""

    __tablename__ = "hypervolume"
    __table_args__ = (_finite("hypervolume", "0"),)

    study_id: Mapped[int] = mapped_column(
        ForeignKey("study.id", ondelete="CASCADE"), primary_key=True
    )
    completed: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    hypervolume: Mapped[float]
    at: Mapped[datetime] = mapped_column(default=Now())


class Event(Base):
    """One line of a study's log; rows are only ever added."""

    __tablename__ = "event"
    __table_args__ = (Index(None, "study_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(default=Now())
    kind: Mapped[str]
    trial: Mapped[int | None]  # the trial's number
    content: Mapped[dict[str, object]]


class Evaluation(Base):
    """The values of an evaluation under the hash of all that it depends on."""

    __tablename__ = "evaluation"

    key: Mapped[str] = mapped_column(primary_key=True)
    objectives: Mapped[dict[str, object]]  # objective name -> value
    metrics: Mapped[dict[str, object]]
    samples: Mapped[bytes | None]  # packed; those of earlier versions have none
    seconds: Mapped[float]
    study_id: Mapped[int | None] = mapped_column(
        ForeignKey("study.id", ondelete="SET NULL"), index=True
    )
    created_at: Mapped[datetime] = mapped_column(default=Now())


class StageArtefact(Base):
    """What a stage found out apart from cells, under the hash of all that it depends on."""

    __tablename__ = "stage_artefact"
    __table_args__ = (_one_of("kind", StageArtefactKind),)

    key: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    content: Mapped[dict[str, object]]
    seconds: Mapped[float]
    study_id: Mapped[int | None] = mapped_column(
        ForeignKey("study.id", ondelete="SET NULL"), index=True
    )
    created_at: Mapped[datetime] = mapped_column(default=Now())


class Tuning(Base):
    """An experiment over a recovery's settings for one plan, by the hash of what it depends on."""

    __tablename__ = "tuning"
    __table_args__ = (UniqueConstraint("study_id", "digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"))
    digest: Mapped[str]
    settings: Mapped[dict[str, object]]
    created_at: Mapped[datetime] = mapped_column(default=Now())


class TuningSample(Base):
    """One recovery that an experiment trains."""

    __tablename__ = "tuning_sample"
    __table_args__ = (
        UniqueConstraint("tuning_id", "number"),
        _one_of("state", TrialState),
        CheckConstraint("number >= 0", name="number_counts"),
        CheckConstraint("attempt >= 1", name="attempt_counts"),
        CheckConstraint("nbytes >= 0", name="nbytes_positive"),
        CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished_has_time"),
        _finite("test_error", "0"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    tuning_id: Mapped[int] = mapped_column(ForeignKey("tuning.id", ondelete="CASCADE"))
    number: Mapped[int]
    state: Mapped[str]
    attempt: Mapped[int]
    recovery: Mapped[dict[str, object]]
    nbytes: Mapped[int] = mapped_column(BigInteger)
    test_error: Mapped[float | None]
    message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=Now())
    finished_at: Mapped[datetime | None]


class TuningResult(Base):
    """The error on the selection split that a sample showed after so many optimiser steps."""

    __tablename__ = "tuning_result"
    __table_args__ = (_finite("error", "0"), CheckConstraint("step >= 1", name="step_counts"))

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("tuning_sample.id", ondelete="CASCADE"), primary_key=True
    )
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    error: Mapped[float]
    reported_at: Mapped[datetime] = mapped_column(default=Now())


class Artefact(Base):
    """A model that was built from a trial, and what it was seen to do."""

    __tablename__ = "artefact"
    __table_args__ = (
        UniqueConstraint("study_id", "path"),
        CheckConstraint("nbytes >= 0", name="nbytes_positive"),
        CheckConstraint("trial >= 0", name="trial_counts"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"))
    trial: Mapped[int]  # the trial's number
    target: Mapped[str]
    path: Mapped[str]
    nbytes: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[dict[str, object]]  # file name -> SHA-256
    verification: Mapped[dict[str, object]]
    created_at: Mapped[datetime] = mapped_column(default=Now())

"""Queries: fronts and their history, the best trial under limits, and how far a study is."""

import functools
import operator
from collections.abc import Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    RowMapping,
    Select,
    SQLColumnExpression,
    and_,
    case,
    func,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute

from bitfront.errors import SpecError
from bitfront.plan import canonical_json
from bitfront.trial import Cause, Origin, TrialState
from storage import studies
from storage.access import find_id
from storage.comparable_studies import comparable_studies, is_alike
from storage.records import Failure, Limits, ModelFronts, Progress, Result, Status, TrialRow
from storage.tables import Attempt, Cell, Front, Hypervolume, Study, Trial

_LIMITED = {
    "max_error": "error",
    "max_nbytes": "nbytes",
    "max_bits": "bits_per_weight",
    "max_bit_operations": "bit_operations",
    "max_latency_s": "latency_s",
}

_ELIGIBLE = and_(Trial.state == TrialState.COMPLETE, Trial.feasible)


def front(connection: Connection, name: str) -> list[Result]:
    """The study's non-dominated trials, the lowest error first."""
    study_id = find_id(connection, name)
    query = _results().join(Front, Front.trial_id == Trial.id).where(Front.study_id == study_id)
    ranked = query.order_by(Trial.error, Trial.nbytes, Trial.number)
    return [_result(row) for row in connection.execute(ranked)]


def model_fronts(connection: Connection, model: str) -> ModelFronts:
    """The fronts of all studies of a model, and what they can be compared by.

    Raises:
        SpecError: The model is unknown, or its studies measured on different data.
    """
    found = comparable_studies(connection, model)
    shared = [
        name for name in _LIMITED.values() if found and all(name in row.objectives for row in found)
    ]
    keys = [row.id for row in found]
    if "latency_s" in shared and not is_alike(connection, keys, "device"):
        shared.remove("latency_s")
    query = _results().join(Front, Front.trial_id == Trial.id).where(Front.study_id.in_(keys))
    ranked = query.order_by(Trial.error, Trial.nbytes, Trial.study_id, Trial.number)
    rows = [_result(row) for row in connection.execute(ranked)]
    return ModelFronts(tuple(row.name for row in found), tuple(shared), tuple(rows))


def best(
    connection: Connection, name: str | None, limits: Limits, model: str | None
) -> Result | None:
    """The feasible trial within the limits that is lowest in what is not limited."""
    scope, objectives = _scope(connection, name, limits, model)
    bounds = _bounds(limits)
    limited = {column.key for column, _ in bounds}
    first = next((name for name in objectives if name not in limited), objectives[0])
    order = [getattr(Trial, name) for name in dict.fromkeys((first, *objectives, "nbytes"))]
    within = [column <= limit for column, limit in bounds]
    return _first(connection, [scope, _ELIGIBLE, *within], order)


def nearest(
    connection: Connection, name: str | None, limits: Limits, model: str | None
) -> Result | None:
    """The feasible trial with the smallest relative excess over the limits, summed."""
    scope, _ = _scope(connection, name, limits, model)
    bounds = _bounds(limits)
    measured = [column.is_not(None) for column, _ in bounds]
    over = [case((column > limit, column / limit - 1.0), else_=0.0) for column, limit in bounds]
    excess = [functools.reduce(operator.add, over)] if over else []
    order = [*excess, Trial.error, Trial.nbytes]
    return _first(connection, [scope, _ELIGIBLE, *measured], order)


def _first(
    connection: Connection,
    wanted: Sequence[ColumnElement[bool]],
    order: Sequence[SQLColumnExpression[float | None]],
) -> Result | None:
    # The key alone is ranked, mostly within an index; only then is the whole row read.
    ranked = select(Trial.id).where(*wanted).order_by(*order, Trial.number, Trial.study_id)
    query = _results().where(Trial.id == ranked.limit(1).scalar_subquery())
    row = connection.execute(query).one_or_none()
    return None if row is None else _result(row)


def hypervolumes(connection: Connection, name: str) -> list[Progress]:
    """The hypervolume after each trial that was counted, in order."""
    study_id = find_id(connection, name)
    columns = (Hypervolume.completed, Hypervolume.hypervolume, Hypervolume.at)
    query = select(*columns).where(Hypervolume.study_id == study_id)
    rows = connection.execute(query.order_by(Hypervolume.completed))
    return [Progress(row.completed, row.hypervolume, row.at) for row in rows]


def status(connection: Connection, name: str) -> Status:
    """How far the study is."""
    study_id = find_id(connection, name)
    by_state = (
        select(Trial.state, func.count()).where(Trial.study_id == study_id).group_by(Trial.state)
    )
    counts = {TrialState(state): count for state, count in connection.execute(by_state)}
    lowest = select(Trial.error).where(Trial.study_id == study_id, _ELIGIBLE)
    history = select(Hypervolume.hypervolume).where(Hypervolume.study_id == study_id)
    return Status(
        study=studies.read(connection, name),
        counts={state: counts.get(state, 0) for state in TrialState},
        cells=_count(connection, select(func.count()).where(Cell.study_id == study_id)),
        best_error=connection.scalar(lowest.order_by(Trial.error).limit(1)),
        front_size=_count(connection, select(func.count()).where(Front.study_id == study_id)),
        hypervolume=connection.scalar(history.order_by(Hypervolume.completed.desc()).limit(1)),
        seconds=connection.scalar(select(func.sum(Attempt.seconds)).where(_is_attempt_of(study_id)))
        or 0.0,
        failures=_failures(connection, study_id),
    )


def _count(connection: Connection, query: Select[int]) -> int:
    return connection.scalar(query) or 0


def _is_attempt_of(study_id: int) -> ColumnElement[bool]:
    return Attempt.trial_id.in_(select(Trial.id).where(Trial.study_id == study_id))


def _failures(connection: Connection, study_id: int) -> tuple[Failure, ...]:
    last = (
        select(Attempt.cause, func.count().label("count"), func.max(Attempt.id).label("id"))
        .where(_is_attempt_of(study_id), Attempt.cause.is_not(None))
        .group_by(Attempt.cause)
        .subquery()
    )
    query = select(last.c.cause, last.c.count, Attempt.message).join(last, last.c.id == Attempt.id)
    rows = connection.execute(query.order_by(last.c.count.desc(), last.c.cause))
    return tuple(Failure(Cause(cause), count, message or "") for cause, count, message in rows)


def _scope(
    connection: Connection, name: str | None, limits: Limits, model: str | None
) -> tuple[ColumnElement[bool], Sequence[str]]:
    if name is not None:
        study_id = find_id(connection, name)
        query = select(Study.objectives).where(Study.id == study_id)
        return Trial.study_id == study_id, connection.execute(query).scalar_one()
    if model is None:
        raise SpecError("name a study, or a model whose studies are meant")
    found = comparable_studies(connection, model, latency=limits.max_latency_s is not None)
    return Trial.study_id.in_([row.id for row in found]), ("error", "nbytes")


def _bounds(limits: Limits) -> list[tuple[InstrumentedAttribute[float | None], float]]:
    return [
        (getattr(Trial, column), getattr(limits, limit))
        for limit, column in _LIMITED.items()
        if getattr(limits, limit) is not None
    ]


def _results() -> Select[*tuple[object, ...]]:
    columns = (
        *(Trial.number, Trial.origin, Trial.error, Trial.nbytes, Trial.bits_per_weight),
        *(Trial.bit_operations, Trial.latency_s, Trial.test_error, Trial.test_latency_s),
        *(Trial.seconds, Trial.configuration, Study.name.label("study")),
    )
    return select(*columns).join(Study, Study.id == Trial.study_id)


def _result(row: Row[*tuple[object, ...]]) -> Result:
    return Result(
        study=row.study,
        number=row.number,
        origin=Origin(row.origin),
        error=row.error,
        nbytes=row.nbytes,
        bits_per_weight=row.bits_per_weight,
        bit_operations=row.bit_operations,
        latency_s=row.latency_s,
        test_error=row.test_error,
        test_latency_s=row.test_latency_s,
        seconds=row.seconds,
        configuration_json=canonical_json(row.configuration),
    )


_MEASURED = ("error", "nbytes", "bits_per_weight", "bit_operations", "latency_s")
_TESTED = ("error", "nbytes", "bit_operations", "latency_s")


def trial_rows(connection: Connection, name: str) -> list[TrialRow]:
    """Every trial of the study in whatever state, by number."""
    last = and_(Attempt.trial_id == Trial.id, Attempt.number == Trial.attempt)
    columns = (*Trial.__table__.c, Attempt.seconds.label("attempt_seconds"), Attempt.message)
    query = select(*columns).outerjoin(Attempt, last)
    ranked = query.where(Trial.study_id == find_id(connection, name)).order_by(Trial.number)
    return [_trial_row(name, row) for row in connection.execute(ranked).mappings()]


def _trial_row(study: str, row: RowMapping) -> TrialRow:
    values = {name: row[name] for name in _MEASURED if row[name] is not None}
    tested = {name: row[f"test_{name}"] for name in _TESTED if row[f"test_{name}"] is not None}
    return TrialRow(
        study=study,
        number=row["number"],
        state=TrialState(row["state"]),
        origin=Origin(row["origin"]),
        attempts=row["attempt"],
        values=values,
        test_values=tested,
        metrics=row["metrics"] or {},
        constraints=row["constraints"] or {},
        feasible=row["feasible"] if row["state"] == TrialState.COMPLETE else None,
        cached=row["cached"],
        cause=None if row["cause"] is None else Cause(row["cause"]),
        message=row["message"],
        seconds=row["attempt_seconds"] if row["seconds"] is None else row["seconds"],
        worker=row["worker"],
        started_at=row["created_at"],
        finished_at=row["finished_at"],
        configuration_json=canonical_json(row["configuration"]),
    )

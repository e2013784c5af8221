"""Queries: the front, its history, the best trial under limits, and how far a study is."""

import functools
import operator
from collections.abc import Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
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
from storage.records import Failure, Limits, Progress, Result, Status
from storage.tables import Attempt, Cell, Front, Hypervolume, Model, Study, Trial

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


def best(
    connection: Connection, name: str | None, limits: Limits, model: str | None
) -> Result | None:
    """The feasible trial within the limits that is lowest in what is not limited."""
    scope, objectives = _scope(connection, name, model)
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
    scope, _ = _scope(connection, name, model)
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
    ranked = select(Trial.id).where(*wanted).order_by(*order, Trial.number).limit(1)
    query = _results().where(Trial.id == ranked.scalar_subquery())
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
    connection: Connection, name: str | None, model: str | None
) -> tuple[ColumnElement[bool], Sequence[str]]:
    if name is not None:
        study_id = find_id(connection, name)
        query = select(Study.objectives).where(Study.id == study_id)
        return Trial.study_id == study_id, connection.execute(query).scalar_one()
    if model is None:
        raise SpecError("name a study, or a model whose studies are meant")
    model_id = _find_model(connection, model)
    studies_of_model = select(Study.id).where(Study.model_id == model_id)
    return Trial.study_id.in_(studies_of_model), ("error", "nbytes")


def _find_model(connection: Connection, model: str) -> int:
    query = select(Model.id, Model.identity, Model.name).order_by(Model.id)
    known = connection.execute(query).all()
    found = {key: identity for key, identity, name in known if model in (identity, name)}
    if len(found) == 1:
        return next(iter(found))
    if found:
        identities = ", ".join(found.values())
        raise SpecError(f"the name {model!r} stands for several models: name one of {identities}")
    names = ", ".join(sorted({name for _, _, name in known})) or "none"
    raise SpecError(f"no study has searched a model {model!r}; searched are: {names}")


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

"""Queries: fronts and their history, the best trial under limits, and how far a study is."""

import functools
import operator
from collections.abc import Collection, Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    SQLColumnExpression,
    and_,
    case,
    func,
    or_,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute

from bitfront.errors import SpecError
from bitfront.objective import FIGURES, OBJECTIVES
from bitfront.samples import SampleResults
from bitfront.trial import Cause, Origin, StudyState, TrialState
from bitfront.trial import Trial as TrialRecord
from storage import samples, studies, trials
from storage.access import find_id
from storage.comparable_studies import MEASURED_ON, comparable_studies, is_alike
from storage.records import (
    FailureCount,
    Limits,
    MeasuredTrials,
    ModelFronts,
    ShownTrial,
    Status,
    StudyVersion,
)
from storage.tables import Attempt, Cell, Event, Front, Hypervolume, Study, Trial

_ELIGIBLE = and_(Trial.state == TrialState.COMPLETE, Trial.feasible)
_ERROR = Trial.figure("error")
_NBYTES = Trial.figure("nbytes")


def front(connection: Connection, name: str) -> list[TrialRecord]:
    """The study's non-dominated trials, the lowest error first."""
    study_id = find_id(connection, name)
    query = trials.query().join(Front, Front.trial_id == Trial.id).where(Front.study_id == study_id)
    ranked = query.order_by(_ERROR, _NBYTES, Trial.number)
    return trials.records(connection, ranked)


def model_fronts(connection: Connection, model: str, limits: Limits) -> ModelFronts:
    """The fronts of all studies of a model, and what they can be compared by.

    Raises:
        SpecError: The model is unknown, or its studies measured on different data, or what is
            limited on different devices.
    """
    found = comparable_studies(connection, model, limits.given)
    keys = [row.id for row in found]
    one_device = all(is_alike(connection, keys, fact) for fact in MEASURED_ON)
    shared = [
        figure.name
        for figure in OBJECTIVES
        if found
        and all(figure.name in row.objectives for row in found)
        and (one_device or not figure.per_device)
    ]
    query = trials.query().join(Front, Front.trial_id == Trial.id).where(Front.study_id.in_(keys))
    ranked = query.order_by(_ERROR, _NBYTES, Trial.study_id, Trial.number)
    on_fronts = trials.records(connection, ranked)
    return ModelFronts(tuple(row.name for row in found), tuple(shared), tuple(on_fronts))


def best(
    connection: Connection, name: str | None, limits: Limits, model: str | None
) -> TrialRecord | None:
    """The feasible trial within the limits that is lowest in what is not limited."""
    scope, objectives = _scope(connection, name, limits, model)
    bounds = _bounds(limits)
    first = next((name for name in objectives if name not in limits.given), objectives[0])
    order = [Trial.figure(name) for name in dict.fromkeys((first, *objectives, "nbytes"))]
    within = [column <= limit for column, limit in bounds]
    return _first(connection, [scope, _ELIGIBLE, *within], order)


def nearest(
    connection: Connection, name: str | None, limits: Limits, model: str | None
) -> TrialRecord | None:
    """The feasible trial with the smallest relative excess over the limits, summed."""
    scope, _ = _scope(connection, name, limits, model)
    bounds = _bounds(limits)
    measured = [column.is_not(None) for column, _ in bounds]
    over = [case((column > limit, column / limit - 1.0), else_=0.0) for column, limit in bounds]
    excess = [functools.reduce(operator.add, over)] if over else []
    order = [*excess, _ERROR, _NBYTES]
    return _first(connection, [scope, _ELIGIBLE, *measured], order)


def _first(
    connection: Connection,
    wanted: Sequence[ColumnElement[bool]],
    order: Sequence[SQLColumnExpression[float | None]],
) -> TrialRecord | None:
    # The key alone is ranked, mostly within an index; only then is the whole row read.
    ranked = select(Trial.id).where(*wanted).order_by(*order, Trial.number, Trial.study_id)
    query = trials.query().where(Trial.id == ranked.limit(1).scalar_subquery())
    found = trials.records(connection, query)
    return found[0] if found else None


def measured(
    connection: Connection, name: str | None, limits: Limits, model: str | None
) -> MeasuredTrials | None:
    """What a choice among the trials of a study, or of a model's studies, looks at."""
    scope, objectives = _scope(connection, name, limits, model)
    if not samples.are_known(connection, scope):
        return None
    figures = tuple(figure.name for figure in FIGURES)
    return MeasuredTrials(tuple(objectives), tuple(samples.measured(connection, scope, figures)))


def baselines(connection: Connection, name: str) -> list[TrialRecord]:
    """The study's complete baselines, by number."""
    ours = Trial.study_id == find_id(connection, name)
    wanted = (ours, Trial.state == TrialState.COMPLETE, Trial.origin == Origin.BASELINE)
    return trials.records(connection, trials.query().where(*wanted).order_by(Trial.number))


def sample_results(connection: Connection, name: str, number: int) -> dict[str, SampleResults]:
    """What came out for each sample of a trial, by the split."""
    ours = Trial.study_id == find_id(connection, name)
    return samples.of_trial(connection, and_(ours, Trial.number == number))


def hypervolumes(connection: Connection, name: str) -> list[tuple[int, float]]:
    """The front's hypervolume after so many complete trials, in rising order."""
    query = select(Hypervolume.completed, Hypervolume.hypervolume).where(
        Hypervolume.study_id == find_id(connection, name)
    )
    ranked = query.order_by(Hypervolume.completed)
    return [(row.completed, row.hypervolume) for row in connection.execute(ranked)]


def trials_page(
    connection: Connection,
    name: str,
    states: Collection[TrialState] | None,
    after: int,
    limit: int,
) -> list[TrialRecord]:
    """Some of the study's trials, by number."""
    wanted = [Trial.study_id == find_id(connection, name), Trial.number > after]
    if states is not None:
        wanted.append(Trial.state.in_(sorted(states)))
    ranked = trials.query().where(*wanted).order_by(Trial.number).limit(limit)
    return trials.records(connection, ranked)


def spread(
    connection: Connection, name: str, most: int, also: Collection[int]
) -> tuple[int, list[ShownTrial]]:
    """How many trials are complete, and about `most` of them at equal distances by number."""
    complete = and_(Trial.study_id == find_id(connection, name), Trial.state == TrialState.COMPLETE)
    count = _count(connection, select(func.count()).where(complete))
    wanted = complete
    if count > most:
        evenly = Trial.number % -(-count // most) == 0
        wanted = and_(complete, or_(evenly, Trial.number.in_(sorted(also))))
    return count, trials.shown(connection, wanted)


def version(connection: Connection, name: str) -> StudyVersion:
    """What differs whenever a query of the study's trials may have another answer."""
    study_id = find_id(connection, name)
    last = select(func.max(Event.id)).where(Event.study_id == study_id).scalar_subquery()
    query = select(Study.created_at, Study.state, last).where(Study.id == study_id)
    made_at, state, event = connection.execute(query).one()
    return StudyVersion(made_at, StudyState(state), event or 0)


def last_event(connection: Connection, name: str) -> int:
    """The number of the study's last event; 0 where there is none."""
    query = select(func.max(Event.id)).where(Event.study_id == find_id(connection, name))
    return connection.scalar(query) or 0


def trials_at(connection: Connection, places: Sequence[tuple[str, int]]) -> list[TrialRecord]:
    """The trials at some studies and numbers, in that order."""
    found: dict[tuple[str, int], TrialRecord] = {}
    for name in dict.fromkeys(study for study, _ in places):
        numbers = [number for study, number in places if study == name]
        query = trials.query().where(
            Trial.study_id == find_id(connection, name), Trial.number.in_(numbers)
        )
        found |= {(row.study, row.number): row for row in trials.records(connection, query)}
    return [found[place] for place in places]


def status(connection: Connection, name: str) -> Status:
    """How far the study is."""
    study_id = find_id(connection, name)
    by_state = (
        select(Trial.state, func.count()).where(Trial.study_id == study_id).group_by(Trial.state)
    )
    counts = {TrialState(state): count for state, count in connection.execute(by_state)}
    lowest = select(_ERROR).where(Trial.study_id == study_id, _ELIGIBLE)
    history = select(Hypervolume.hypervolume).where(Hypervolume.study_id == study_id)
    return Status(
        study=studies.read(connection, name),
        counts={state: counts.get(state, 0) for state in TrialState},
        cells=_count(connection, select(func.count()).where(Cell.study_id == study_id)),
        best_error=connection.scalar(lowest.order_by(_ERROR).limit(1)),
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


def _failures(connection: Connection, study_id: int) -> tuple[FailureCount, ...]:
    last = (
        select(Attempt.cause, func.count().label("count"), func.max(Attempt.id).label("id"))
        .where(_is_attempt_of(study_id), Attempt.cause.is_not(None))
        .group_by(Attempt.cause)
        .subquery()
    )
    query = select(last.c.cause, last.c.count, Attempt.message).join(last, last.c.id == Attempt.id)
    rows = connection.execute(query.order_by(last.c.count.desc(), last.c.cause))
    return tuple(FailureCount(Cause(cause), count, message or "") for cause, count, message in rows)


def _scope(
    connection: Connection, name: str | None, limits: Limits, model: str | None
) -> tuple[ColumnElement[bool], Sequence[str]]:
    if name is not None:
        study_id = find_id(connection, name)
        query = select(Study.objectives).where(Study.id == study_id)
        return Trial.study_id == study_id, connection.execute(query).scalar_one()
    if model is None:
        raise SpecError("name a study, or a model whose studies are meant")
    found = comparable_studies(connection, model, limits.given)
    return Trial.study_id.in_([row.id for row in found]), ("error", "nbytes")


def _bounds(limits: Limits) -> list[tuple[InstrumentedAttribute[float | None], float]]:
    return [(Trial.figure(name), limit) for name, limit in limits.given.items()]

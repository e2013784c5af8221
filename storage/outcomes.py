"""Outcomes: how an attempt ended, written together with all that follows from it."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Update, and_, delete, func, insert, select, update

from bitfront.errors import InvalidMetric
from bitfront.objective import FIGURES
from bitfront.trial import Cause, Evaluation, FrontChange, TrialState, is_feasible
from storage import tables
from storage.access import find_id, guard
from storage.events import add_event, insert_new, storable
from storage.finite import finite
from storage.records import AttemptRecord, EventKind, Lease, Outcome
from storage.tables import Attempt, Front, Intermediate, Now, Study, Trial


def complete(
    connection: Connection, again: bool, lease: Lease, number: int, attempt: int, outcome: Outcome
) -> bool:
    """Completes a running attempt; False if it is no longer the one that runs.

    Raises:
        LeaseLost: Another driver has the study.
        InvalidMetric: An objective of the study is missing, or a number is not finite.
    """
    guard(connection, lease)
    columns = _value_columns(connection, lease, outcome)
    trial_id = connection.scalar(
        _running(lease, number, attempt)
        .values(columns)
        .values(state=TrialState.COMPLETE, finished_at=Now())
        .returning(Trial.id)
    )
    if trial_id is None:
        # The epoch is ours, so after a broken commit it can only be our own earlier try.
        return again and _is(TrialState.COMPLETE, connection, lease, number, attempt)
    _close(connection, trial_id, attempt, outcome.seconds, outcome.worker)
    _cache(connection, lease, outcome)
    content: dict[str, object] = {"values": finite(outcome.evaluation.values)}
    if outcome.front is not None:
        _change_front(connection, lease, outcome.front)
        content["hypervolume"] = outcome.front.hypervolume
    add_event(connection, lease.study_id, EventKind.COMPLETED, content, trial=number)
    return True


def _value_columns(connection: Connection, lease: Lease, outcome: Outcome) -> dict[str, object]:
    values = finite(outcome.evaluation.values)
    metrics = finite(outcome.evaluation.metrics)
    constraints = finite(outcome.constraints)
    finite({"seconds": outcome.seconds})
    objectives = connection.execute(
        select(Study.objectives).where(Study.id == lease.study_id)
    ).scalar_one()
    for name in objectives:
        if name not in values:
            raise InvalidMetric(name, "missing")
    measured = {**metrics, **values}
    return {
        **{figure.name: measured.get(figure.name) for figure in FIGURES},
        "metrics": metrics,
        "constraints": constraints,
        "feasible": is_feasible(constraints),
        "seconds": outcome.seconds,
        "worker": outcome.worker,
        "cached": outcome.cached,
    }


def _is(state: TrialState, connection: Connection, lease: Lease, number: int, attempt: int) -> bool:
    query = select(Trial.id).where(_attempt_in(state, lease, number, attempt))
    return connection.scalar(query) is not None


def _cache(connection: Connection, lease: Lease, outcome: Outcome) -> None:
    row = {
        "key": outcome.evaluation_key,
        "objectives": finite(outcome.evaluation.values),
        "metrics": finite(outcome.evaluation.metrics),
        "seconds": outcome.seconds,
        "study_id": lease.study_id,
    }
    insert_new(connection, tables.Evaluation, [row])


def _change_front(connection: Connection, lease: Lease, change: FrontChange) -> None:
    finite({"hypervolume": change.hypervolume})
    ours = Trial.study_id == lease.study_id
    left = select(Trial.id).where(ours, Trial.number.in_(change.removed))
    connection.execute(delete(Front).where(Front.trial_id.in_(left)))
    joined = select(Trial.id, Trial.study_id, Now()).where(ours, Trial.number.in_(change.added))
    connection.execute(insert(Front).from_select(["trial_id", "study_id", "since"], joined))
    completed = (
        select(func.count()).where(ours, Trial.state == TrialState.COMPLETE).scalar_subquery()
    )
    connection.execute(
        insert(tables.Hypervolume).values(
            study_id=lease.study_id, completed=completed, hypervolume=change.hypervolume
        )
    )


@dataclass(frozen=True, slots=True)
class Failed:
    """How an attempt failed, and whether the next one starts."""

    cause: Cause
    message: str
    traceback: str | None
    retry: bool
    seconds: float | None = None
    worker: str | None = None


def fail(
    connection: Connection, again: bool, lease: Lease, number: int, attempt: int, failed: Failed
) -> bool:
    """Ends a running attempt without a result; False if it is no longer the one that runs."""
    guard(connection, lease)
    ended: dict[str, object] = {"attempt": attempt + 1}
    if not failed.retry:
        ended = {"state": TrialState.FAILED, "cause": failed.cause, "finished_at": Now()}
    trial_id = connection.scalar(_running(lease, number, attempt).values(ended).returning(Trial.id))
    if trial_id is None:
        return again and _has_cause(connection, lease, number, attempt)
    message = storable(failed.message)
    traceback = None if failed.traceback is None else storable(failed.traceback)
    connection.execute(
        update(Attempt)
        .where(Attempt.trial_id == trial_id, Attempt.number == attempt)
        .values(finished_at=Now(), cause=failed.cause, message=message, traceback=traceback)
        .values(seconds=failed.seconds, worker=failed.worker)
    )
    if failed.retry:
        connection.execute(insert(Attempt).values(trial_id=trial_id, number=attempt + 1))
    kind = EventKind.ATTEMPT_FAILED if failed.retry else EventKind.FAILED
    content = {"attempt": attempt, "cause": failed.cause, "message": message}
    add_event(connection, lease.study_id, kind, content, trial=number)
    return True


def report(
    connection: Connection, lease: Lease, number: int, attempt: int, step: int, error: float
) -> bool:
    """Records what a running attempt showed; False if it is no longer the one that runs.

    Raises:
        LeaseLost: Another driver has the study.
        InvalidMetric: The error is not finite.
    """
    guard(connection, lease)
    finite({"error": error})
    trial_id = connection.scalar(
        select(Trial.id).where(_attempt_in(TrialState.RUNNING, lease, number, attempt))
    )
    if trial_id is None:
        return False
    # An attempt that goes on from a checkpoint may come by the same step again.
    own = (Intermediate.trial_id == trial_id, Intermediate.step == step)
    connection.execute(delete(Intermediate).where(*own))
    connection.execute(insert(Intermediate).values(trial_id=trial_id, step=step, error=error))
    return True


def prune(
    connection: Connection,
    again: bool,
    lease: Lease,
    number: int,
    attempt: int,
    seconds: float,
    worker: str | None,
) -> bool:
    """Ends a running attempt that stopped early; False if it is no longer the one that runs.

    Raises:
        LeaseLost: Another driver has the study.
        InvalidMetric: The seconds are not finite.
    """
    guard(connection, lease)
    finite({"seconds": seconds})
    trial_id = connection.scalar(
        _running(lease, number, attempt)
        .values(state=TrialState.PRUNED, finished_at=Now(), seconds=seconds, worker=worker)
        .returning(Trial.id)
    )
    if trial_id is None:
        return again and _is(TrialState.PRUNED, connection, lease, number, attempt)
    _close(connection, trial_id, attempt, seconds, worker)
    add_event(connection, lease.study_id, EventKind.STOPPED_EARLY, trial=number)
    return True


def intermediates(connection: Connection, name: str) -> dict[int, dict[int, float]]:
    """Trial number to step to the error it showed, of the trials that reported some."""
    rows = connection.execute(
        select(Trial.number, Intermediate.step, Intermediate.error)
        .join(Trial, Trial.id == Intermediate.trial_id)
        .where(Trial.study_id == find_id(connection, name))
        .order_by(Trial.number, Intermediate.step)
    )
    found: dict[int, dict[int, float]] = {}
    for number, step, error in rows:
        found.setdefault(number, {})[step] = error
    return found


def _running(lease: Lease, number: int, attempt: int) -> Update:
    return update(Trial).where(_attempt_in(TrialState.RUNNING, lease, number, attempt))


def _attempt_in(state: TrialState, lease: Lease, number: int, attempt: int) -> ColumnElement[bool]:
    """Whether a row is the lease's trial of that number, in that state and at that attempt."""
    return and_(
        Trial.study_id == lease.study_id,
        Trial.number == number,
        Trial.attempt == attempt,
        Trial.state == state,
    )


def _close(
    connection: Connection, trial_id: int, attempt: int, seconds: float, worker: str | None
) -> None:
    """Notes when an attempt ended that yielded something, and who made it."""
    connection.execute(
        update(Attempt)
        .where(Attempt.trial_id == trial_id, Attempt.number == attempt)
        .values(finished_at=Now(), seconds=seconds, worker=worker)
    )


def _has_cause(connection: Connection, lease: Lease, number: int, attempt: int) -> bool:
    query = (
        select(Attempt.id)
        .join(Trial, Trial.id == Attempt.trial_id)
        .where(Trial.study_id == lease.study_id, Trial.number == number)
        .where(Attempt.number == attempt, Attempt.cause.is_not(None))
    )
    return connection.scalar(query) is not None


def find_evaluation(connection: Connection, key: str) -> Evaluation | None:
    """The evaluation under a key, whichever study it was made for."""
    table = tables.Evaluation
    query = select(table.objectives, table.metrics).where(table.key == key)
    row = connection.execute(query).one_or_none()
    return None if row is None else Evaluation(row.objectives, row.metrics)


def attempts(
    connection: Connection, name: str, numbers: Collection[int] | None
) -> list[AttemptRecord]:
    """Every attempt at the study's trials, or at some of them, by trial and attempt."""
    query = (
        select(*Attempt.__table__.c, Trial.number.label("trial"))
        .join(Trial, Trial.id == Attempt.trial_id)
        .where(Trial.study_id == find_id(connection, name))
    )
    if numbers is not None:
        query = query.where(Trial.number.in_(list(numbers)))
    return [
        AttemptRecord(
            trial=row.trial,
            attempt=row.number,
            started_at=row.started_at,
            finished_at=row.finished_at,
            seconds=row.seconds,
            worker=row.worker,
            cause=None if row.cause is None else Cause(row.cause),
            message=row.message,
            traceback=row.traceback,
        )
        for row in connection.execute(query.order_by(Trial.number, Attempt.number))
    ]

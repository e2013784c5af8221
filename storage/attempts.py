"""Attempts: how each ended, written together with all that follows from it."""

from collections.abc import Collection, Mapping

from sqlalchemy import ColumnElement, Connection, Update, and_, delete, func, insert, select, update

from bitfront.attempt import Attempt, Evaluated, Failed, IntermediateValue, Pruned
from bitfront.errors import InvalidMetric
from bitfront.objective import FIGURES
from bitfront.trial import Cause, Evaluation, FrontChange, TrialState, is_feasible
from storage import tables
from storage.access import find_id, guard
from storage.events import add_event, insert_new, storable
from storage.finite import finite
from storage.records import AttemptRecord, EventKind, Lease
from storage.samples import add_samples, read_samples
from storage.tables import Front, Intermediate, Now, Study, Trial


def complete(
    connection: Connection,
    again: bool,
    lease: Lease,
    attempt: Attempt,
    result: Evaluated,
    constraints: Mapping[str, float],
    front: FrontChange | None,
) -> bool:
    """Completes a running attempt; False if it is no longer the one that runs.

    Raises:
        LeaseLost: Another driver has the study.
        InvalidMetric: An objective of the study is missing, or a number is not finite.
    """
    guard(connection, lease)
    columns = _value_columns(connection, lease, result, constraints)
    trial_id = connection.scalar(
        _running(lease, attempt)
        .values(columns)
        .values(state=TrialState.COMPLETE, finished_at=Now())
        .returning(Trial.id)
    )
    if trial_id is None:
        # The epoch is ours, so after a broken commit it can only be our own earlier try.
        return again and _is(TrialState.COMPLETE, connection, lease, attempt)
    _close(connection, trial_id, attempt, result)
    if result.evaluation.samples is not None:
        add_samples(connection, trial_id, "selection", result.evaluation.samples)
    _cache(connection, lease, attempt, result)
    content: dict[str, object] = {"values": finite(result.evaluation.values)}
    if front is not None:
        _change_front(connection, lease, front)
        content["hypervolume"] = front.hypervolume
    add_event(connection, lease.study_id, EventKind.COMPLETED, content, trial=attempt.trial.number)
    return True


def _value_columns(
    connection: Connection, lease: Lease, result: Evaluated, constraints: Mapping[str, float]
) -> dict[str, object]:
    values = finite(result.evaluation.values)
    metrics = finite(result.evaluation.metrics)
    excesses = finite(constraints)
    finite({"seconds": result.seconds})
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
        "constraints": excesses,
        "feasible": is_feasible(excesses),
        "seconds": result.seconds,
        "worker": result.worker or None,
        "cached": result.is_cached,
    }


def _is(state: TrialState, connection: Connection, lease: Lease, attempt: Attempt) -> bool:
    query = select(Trial.id).where(_attempt_in(state, lease, attempt))
    return connection.scalar(query) is not None


def _cache(connection: Connection, lease: Lease, attempt: Attempt, result: Evaluated) -> None:
    samples = result.evaluation.samples
    row = {
        "key": attempt.evaluation_key,
        "objectives": finite(result.evaluation.values),
        "metrics": finite(result.evaluation.metrics),
        "samples": None if samples is None else samples.packed,
        "seconds": result.seconds,
        "study_id": lease.study_id,
    }
    if samples is not None:
        # One of an earlier version, which kept none, gives way.
        bare = tables.Evaluation.samples.is_(None)
        key = tables.Evaluation.key == attempt.evaluation_key
        connection.execute(delete(tables.Evaluation).where(key, bare))
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


def fail(
    connection: Connection,
    again: bool,
    lease: Lease,
    attempt: Attempt,
    failed: Failed,
    retry: bool,
) -> bool:
    """Ends a running attempt without a result; False if it is no longer the one that runs."""
    guard(connection, lease)
    ended: dict[str, object] = {"attempt": attempt.number + 1}
    if not retry:
        ended = {"state": TrialState.FAILED, "cause": failed.cause, "finished_at": Now()}
    trial_id = connection.scalar(_running(lease, attempt).values(ended).returning(Trial.id))
    if trial_id is None:
        return again and _has_cause(connection, lease, attempt)
    message = storable(failed.message)
    traceback = storable(failed.traceback) if failed.traceback else None
    connection.execute(
        _attempt_row(trial_id, attempt)
        .values(finished_at=Now(), cause=failed.cause, message=message, traceback=traceback)
        .values(seconds=failed.seconds or None, worker=failed.worker or None)
    )
    if retry:
        row = insert(tables.Attempt).values(trial_id=trial_id, number=attempt.number + 1)
        connection.execute(row)
    kind = EventKind.ATTEMPT_FAILED if retry else EventKind.FAILED
    content = {"attempt": attempt.number, "cause": failed.cause, "message": message}
    add_event(connection, lease.study_id, kind, content, trial=attempt.trial.number)
    return True


def report(
    connection: Connection, lease: Lease, attempt: Attempt, shown: IntermediateValue
) -> bool:
    """Records what a running attempt showed; False if it is no longer the one that runs.

    Raises:
        LeaseLost: Another driver has the study.
        InvalidMetric: The error is not finite.
    """
    guard(connection, lease)
    finite({"error": shown.value})
    trial_id = connection.scalar(
        select(Trial.id).where(_attempt_in(TrialState.RUNNING, lease, attempt))
    )
    if trial_id is None:
        return False
    # An attempt that resumes from a checkpoint may come by the same step again.
    own = (Intermediate.trial_id == trial_id, Intermediate.step == shown.step)
    connection.execute(delete(Intermediate).where(*own))
    row = {"trial_id": trial_id, "step": shown.step, "error": shown.value}
    connection.execute(insert(Intermediate).values(row))
    return True


def prune(
    connection: Connection, again: bool, lease: Lease, attempt: Attempt, result: Pruned
) -> bool:
    """Ends a running attempt that stopped early; False if it is no longer the one that runs.

    Raises:
        LeaseLost: Another driver has the study.
        InvalidMetric: The seconds are not finite.
    """
    guard(connection, lease)
    finite({"seconds": result.seconds})
    trial_id = connection.scalar(
        _running(lease, attempt)
        .values(state=TrialState.PRUNED, finished_at=Now())
        .values(seconds=result.seconds, worker=result.worker or None)
        .returning(Trial.id)
    )
    if trial_id is None:
        return again and _is(TrialState.PRUNED, connection, lease, attempt)
    _close(connection, trial_id, attempt, result)
    trial = attempt.trial.number
    add_event(connection, lease.study_id, EventKind.STOPPED_EARLY, trial=trial)
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


def _running(lease: Lease, attempt: Attempt) -> Update:
    return update(Trial).where(_attempt_in(TrialState.RUNNING, lease, attempt))


def _attempt_in(state: TrialState, lease: Lease, attempt: Attempt) -> ColumnElement[bool]:
    """Whether a row is the attempt's trial of the lease, in that state and at that attempt."""
    return and_(
        Trial.study_id == lease.study_id,
        Trial.number == attempt.trial.number,
        Trial.attempt == attempt.number,
        Trial.state == state,
    )


def _attempt_row(trial_id: int, attempt: Attempt) -> Update:
    return update(tables.Attempt).where(
        tables.Attempt.trial_id == trial_id, tables.Attempt.number == attempt.number
    )


def _close(
    connection: Connection, trial_id: int, attempt: Attempt, result: Evaluated | Pruned
) -> None:
    """Notes when an attempt ended that yielded something, and who made it."""
    connection.execute(
        _attempt_row(trial_id, attempt).values(
            finished_at=Now(), seconds=result.seconds, worker=result.worker or None
        )
    )


def _has_cause(connection: Connection, lease: Lease, attempt: Attempt) -> bool:
    table = tables.Attempt
    query = (
        select(table.id)
        .join(Trial, Trial.id == table.trial_id)
        .where(Trial.study_id == lease.study_id, Trial.number == attempt.trial.number)
        .where(table.number == attempt.number, table.cause.is_not(None))
    )
    return connection.scalar(query) is not None


def find_evaluation(connection: Connection, key: str) -> Evaluation | None:
    """The evaluation under a key, whichever study it was made for."""
    table = tables.Evaluation
    query = select(table.objectives, table.metrics, table.samples).where(table.key == key)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    samples = None if row.samples is None else read_samples(row.samples)
    return Evaluation(row.objectives, row.metrics, samples)


def attempts(
    connection: Connection, name: str, numbers: Collection[int] | None
) -> list[AttemptRecord]:
    """Every attempt at the study's trials, or at some of them, by trial and attempt."""
    table = tables.Attempt
    query = (
        select(*table.__table__.c, Trial.number.label("trial"))
        .join(Trial, Trial.id == table.trial_id)
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
        for row in connection.execute(query.order_by(Trial.number, table.number))
    ]

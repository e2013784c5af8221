"""Trials: one row a configuration, written before it is dispatched, never under two numbers."""

from collections.abc import Collection, Mapping

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Text,
    and_,
    cast,
    delete,
    insert,
    select,
    update,
)

from bitfront.errors import DatabaseError
from bitfront.objective import BY_NAME, FIGURES, OBJECTIVES
from bitfront.plan import Configuration
from bitfront.samples import SampleResults
from bitfront.trial import Cause, Origin, TrialState
from bitfront.trial import Trial as TrialRecord
from storage.access import find_id, guard
from storage.events import add_event
from storage.finite import finite
from storage.records import EventKind, Lease, ShownTrial
from storage.samples import add_samples
from storage.tables import Attempt, Front, Hypervolume, Intermediate, Now, Study, Trial


def start(connection: Connection, lease: Lease, trial: TrialRecord) -> None:
    """Records a new trial and its first attempt as running; repeating it changes nothing."""
    guard(connection, lease)
    numbers = {f"parameter {k}": v for k, v in trial.params.items() if not isinstance(v, str)}
    finite(numbers)
    digest = trial.configuration.digest
    if _has_started(connection, lease, trial, digest):
        return
    row = {
        "study_id": lease.study_id,
        "number": trial.number,
        "state": TrialState.RUNNING,
        "attempt": 1,
        "origin": trial.origin,
        "configuration": trial.configuration.to_dict(),
        "configuration_digest": digest,
        "params": dict(trial.params),
    }
    trial_id = connection.scalar(insert(Trial).values(row).returning(Trial.id))
    connection.execute(insert(Attempt).values(trial_id=trial_id, number=1))
    content = {"origin": trial.origin}
    add_event(connection, lease.study_id, EventKind.STARTED, content, trial=trial.number)


def _has_started(connection: Connection, lease: Lease, trial: TrialRecord, digest: str) -> bool:
    columns = (Trial.number, Trial.configuration_digest, Trial.state, Trial.attempt)
    of_study = select(*columns).where(Trial.study_id == lease.study_id)
    # Two lookups, each in its own index: with OR the planner reads the whole study.
    same_number = of_study.where(Trial.number == trial.number)
    same = same_number.union(of_study.where(Trial.configuration_digest == digest))
    wanted = (trial.number, digest, TrialState.RUNNING, 1)
    stored = connection.execute(same.order_by("number")).all()
    if not stored:
        return False
    if len(stored) == 1 and tuple(stored[0]) == wanted:
        return True
    row = stored[0]
    what = "configuration" if row.configuration_digest == digest else "number"
    raise DatabaseError(
        f"trial {trial.number} of study {lease.name} has the {what} of trial {row.number}, "
        f"which is {row.state} already"
    )


def read(
    connection: Connection, name: str, states: Collection[TrialState] | None
) -> list[TrialRecord]:
    """The study's trials by number, only those in some states if any are named."""
    study_id = find_id(connection, name)
    ours = Trial.study_id == study_id
    return _select(connection, ours if states is None else ours & _in(states))


def _in(states: Collection[TrialState]) -> ColumnElement[bool]:
    return Trial.state.in_(sorted(states))


def _select(connection: Connection, wanted: ColumnElement[bool]) -> list[TrialRecord]:
    return records(connection, query().where(wanted).order_by(Trial.number))


def query() -> Select[*tuple[object, ...]]:
    """All that is stored of trials, to be narrowed and ordered, for `records` to read."""
    last = and_(Attempt.trial_id == Trial.id, Attempt.number == Trial.attempt)
    columns = (
        *(*Trial.__table__.c, Study.name.label("study")),
        *(Attempt.seconds.label("attempt_seconds"), Attempt.message),
    )
    joined = select(*columns).join(Study, Study.id == Trial.study_id)
    return joined.outerjoin(Attempt, last)


def records(connection: Connection, wanted: Select[*tuple[object, ...]]) -> list[TrialRecord]:
    """The trials that a narrowed `query` finds."""
    return [_record(row) for row in connection.execute(wanted).mappings()]


def _record(row: RowMapping) -> TrialRecord:
    return TrialRecord(
        study=row["study"],
        number=row["number"],
        configuration=Configuration.from_dict(row["configuration"]),
        origin=Origin(row["origin"]),
        params=row["params"],
        state=TrialState(row["state"]),
        attempts=row["attempt"],
        values=_known({figure.name: row[figure.name] for figure in FIGURES}),
        constraints=row["constraints"] or {},
        metrics=row["metrics"] or {},
        test_values=_known({figure.name: row[figure.test_name] for figure in OBJECTIVES}),
        is_cached=row["cached"],
        cause=None if row["cause"] is None else Cause(row["cause"]),
        message=row["message"],
        seconds=row["attempt_seconds"] if row["seconds"] is None else row["seconds"],
        worker=row["worker"],
        started_at=row["created_at"],
        finished_at=row["finished_at"],
    )


def shown(connection: Connection, wanted: ColumnElement[bool]) -> list[ShownTrial]:
    """Some complete trials by number, without their configurations."""
    recovery = Trial.configuration["recovery"].as_string().label("recovery")
    distil = Trial.configuration["distil"].as_string().label("distil")
    names = (*(f.name for f in FIGURES), *(f.test_name for f in OBJECTIVES))
    columns = (Trial.number, Trial.origin, recovery, distil, *map(Trial.figure, names))
    rows = connection.execute(select(*columns).where(wanted).order_by(Trial.number))
    return [
        ShownTrial(
            row["number"],
            Origin(row["origin"]),
            _known({figure.name: row[figure.name] for figure in FIGURES}),
            _known({figure.name: row[figure.test_name] for figure in OBJECTIVES}),
            has_recovery=row["recovery"] is not None or row["distil"] is not None,
        )
        for row in rows.mappings()
    ]


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def fence(connection: Connection, lease: Lease) -> list[TrialRecord]:
    """Gives every running or cancelled trial a new attempt; results of the old one are refused."""
    guard(connection, lease)
    running = _open(connection, lease, TrialState.RUNNING)
    _close_attempts(connection, running, Cause.DRIVER_RESTART)
    again = running | _open(connection, lease, TrialState.CANCELLED)
    if again:
        connection.execute(
            update(Trial)
            .where(Trial.id.in_(list(again)))
            .values(
                state=TrialState.RUNNING,
                cause=None,
                finished_at=None,
                attempt=Trial.attempt + 1,
            )
        )
        connection.execute(
            insert(Attempt),
            [{"trial_id": key, "number": attempt + 1} for key, (_, attempt) in again.items()],
        )
        for key, (number, attempt) in again.items():
            cause = Cause.DRIVER_RESTART if key in running else Cause.CANCELLED
            content = {"attempt": attempt + 1, "cause": cause}
            add_event(connection, lease.study_id, EventKind.RESTARTED, content, trial=number)
    ours = Trial.study_id == lease.study_id
    return _select(connection, ours & _in({TrialState.RUNNING}))


def outdate(connection: Connection, lease: Lease) -> int:
    """Marks every trial that has ended as outdated, and empties the front; how many there were.

    What runs or was cancelled gets a new attempt, so that no earlier result of it is taken.
    """
    fence(connection, lease)
    ours = Trial.study_id == lease.study_id
    connection.execute(delete(Front).where(Front.study_id == lease.study_id))
    connection.execute(delete(Hypervolume).where(Hypervolume.study_id == lease.study_id))
    shown = Intermediate.trial_id.in_(select(Trial.id).where(ours))
    connection.execute(delete(Intermediate).where(shown))
    # The study may try the same configuration again.
    digest = Trial.configuration_digest + "/" + cast(Trial.number, Text)
    ended = _in({state for state in TrialState if state.is_finished})
    outdated = connection.execute(
        update(Trial)
        .where(ours, ended)
        .values(state=TrialState.OUTDATED, configuration_digest=digest)
    )
    return outdated.rowcount


def cancel_running(connection: Connection, lease: Lease) -> int:
    """Ends every running trial without a result; how many there were."""
    guard(connection, lease)
    running = _open(connection, lease, TrialState.RUNNING)
    if running:
        _close_attempts(connection, running, Cause.CANCELLED)
        connection.execute(
            update(Trial)
            .where(Trial.id.in_(list(running)))
            .values(state=TrialState.CANCELLED, cause=Cause.CANCELLED, finished_at=Now())
        )
        for number, attempt in running.values():
            content = {"attempt": attempt}
            add_event(connection, lease.study_id, EventKind.CANCELLED, content, trial=number)
    return len(running)


def _open(connection: Connection, lease: Lease, state: TrialState) -> dict[int, tuple[int, int]]:
    """Row to number and attempt of the study's trials in a state."""
    query = select(Trial.id, Trial.number, Trial.attempt).where(
        Trial.study_id == lease.study_id, Trial.state == state
    )
    rows = connection.execute(query.order_by(Trial.number))
    return {row.id: (row.number, row.attempt) for row in rows}


def _close_attempts(
    connection: Connection, running: Mapping[int, tuple[int, int]], cause: Cause
) -> None:
    connection.execute(
        update(Attempt)
        .where(Attempt.trial_id.in_(list(running)), Attempt.finished_at.is_(None))
        .values(finished_at=Now(), cause=cause)
    )


def save_test_values(
    connection: Connection,
    lease: Lease,
    values: Mapping[int, Mapping[str, float]],
    samples: Mapping[int, SampleResults],
) -> None:
    """Records what complete trials reach on the test split, and what came out for its samples."""
    guard(connection, lease)
    for number, measured in values.items():
        columns = {BY_NAME[name].test_name: value for name, value in finite(measured).items()}
        trial_id = connection.scalar(
            update(Trial)
            .where(Trial.study_id == lease.study_id, Trial.number == number)
            .where(Trial.state == TrialState.COMPLETE)
            .values(columns)
            .returning(Trial.id)
        )
        if trial_id is None:
            raise DatabaseError(f"study {lease.name} has no complete trial {number} to test")
        if number in samples:
            add_samples(connection, trial_id, "test", samples[number])
    content = {"trials": sorted(values)}
    add_event(connection, lease.study_id, EventKind.TESTED, content)

"""Tunings: experiments over a recovery's settings, their samples, and what each rung showed."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Update, select, update

from bitfront.errors import DatabaseError
from bitfront.plan import Recovery
from bitfront.trial import TrialState
from bitfront.tuning import TuningSample as SampleRecord
from storage.access import find_id, guard
from storage.events import insert_new, storable
from storage.finite import finite
from storage.records import Lease
from storage.tables import Now, Tuning, TuningResult, TuningSample


@dataclass(frozen=True, slots=True)
class TuningRecord:
    """An experiment.

    Attributes:
        id: Names it in the database.
        digest: The hash of all that its results depend on.
        settings: The plan, the space, the limits and the rungs.
    """

    id: int
    digest: str
    settings: Mapping[str, object]


def begin(
    connection: Connection, lease: Lease, digest: str, settings: Mapping[str, object]
) -> TuningRecord:
    """The experiment of that digest, made now or known already."""
    guard(connection, lease)
    row = {"study_id": lease.study_id, "digest": digest, "settings": dict(settings)}
    insert_new(connection, Tuning, [row])
    return next(known for known in _records(connection, lease.study_id) if known.digest == digest)


def read(connection: Connection, name: str) -> list[TuningRecord]:
    """The study's experiments, oldest first."""
    return _records(connection, find_id(connection, name))


def _records(connection: Connection, study_id: int) -> list[TuningRecord]:
    columns = (Tuning.id, Tuning.digest, Tuning.settings)
    query = select(*columns).where(Tuning.study_id == study_id).order_by(Tuning.id)
    return [TuningRecord(row.id, row.digest, row.settings) for row in connection.execute(query)]


def start(connection: Connection, lease: Lease, tuning_id: int, sample: SampleRecord) -> None:
    """Records a new sample as running, before it is dispatched; repeating it changes nothing."""
    guard(connection, lease)
    row = {
        "tuning_id": tuning_id,
        "number": sample.number,
        "state": TrialState.RUNNING,
        "attempt": 1,
        "recovery": sample.recovery.to_dict(),
        "nbytes": sample.nbytes,
    }
    insert_new(connection, TuningSample, [row])
    stored = samples(connection, tuning_id).get(sample.number)
    if stored is None or stored.recovery != sample.recovery or stored.attempt != 1:
        raise DatabaseError(f"sample {sample.number} of tuning {tuning_id} is another one already")


def report(
    connection: Connection,
    lease: Lease,
    tuning_id: int,
    number: int,
    attempt: int,
    step: int,
    error: float,
) -> bool:
    """Records an error of the attempt that runs; a step that is known keeps its first error."""
    guard(connection, lease)
    finite({"error": error})
    query = select(TuningSample.id).where(
        TuningSample.tuning_id == tuning_id,
        TuningSample.number == number,
        TuningSample.attempt == attempt,
        TuningSample.state == TrialState.RUNNING,
    )
    sample_id = connection.scalar(query)
    if sample_id is None:
        return False
    insert_new(connection, TuningResult, [{"sample_id": sample_id, "step": step, "error": error}])
    return True


def finish(
    connection: Connection,
    lease: Lease,
    tuning_id: int,
    number: int,
    attempt: int,
    state: TrialState,
    message: str | None,
) -> bool:
    """Ends the attempt that runs; whether this call, or one like it before, ended it."""
    guard(connection, lease)
    text = None if message is None else storable(message)
    ended = _of(tuning_id, number).where(
        TuningSample.attempt == attempt, TuningSample.state.in_([TrialState.RUNNING, state])
    )
    values = {"state": state, "message": text, "finished_at": Now()}
    return connection.execute(ended.values(values)).rowcount > 0


def fence(connection: Connection, lease: Lease, tuning_id: int) -> None:
    """Gives every running sample a new attempt: results of the old one are refused."""
    guard(connection, lease)
    running = update(TuningSample).where(
        TuningSample.tuning_id == tuning_id, TuningSample.state == TrialState.RUNNING
    )
    connection.execute(running.values(attempt=TuningSample.attempt + 1))


def save_test_error(
    connection: Connection, lease: Lease, tuning_id: int, number: int, error: float
) -> None:
    """Records what the chosen sample reaches on the test split."""
    guard(connection, lease)
    finite({"error": error})
    chosen = _of(tuning_id, number).where(TuningSample.state == TrialState.COMPLETE)
    if connection.execute(chosen.values(test_error=error)).rowcount == 0:
        raise DatabaseError(f"tuning {tuning_id} has no complete sample {number} to test")


def _of(tuning_id: int, number: int) -> Update:
    return update(TuningSample).where(
        TuningSample.tuning_id == tuning_id, TuningSample.number == number
    )


def samples(connection: Connection, tuning_id: int) -> dict[int, SampleRecord]:
    """The experiment's samples by number, with every error that was reported."""
    of_tuning = TuningSample.tuning_id == tuning_id
    shown = (
        select(TuningSample.number, TuningResult.step, TuningResult.error)
        .join(TuningSample, TuningSample.id == TuningResult.sample_id)
        .where(of_tuning)
        .order_by(TuningResult.step)
    )
    errors: dict[int, dict[int, float]] = {}
    for number, step, error in connection.execute(shown):
        errors.setdefault(number, {})[step] = error
    columns = (
        *(TuningSample.number, TuningSample.recovery, TuningSample.nbytes, TuningSample.state),
        *(TuningSample.attempt, TuningSample.test_error, TuningSample.message),
    )
    rows = connection.execute(select(*columns).where(of_tuning).order_by(TuningSample.number))
    return {
        row.number: SampleRecord(
            number=row.number,
            recovery=Recovery.from_dict(row.recovery),
            nbytes=row.nbytes,
            state=TrialState(row.state),
            attempt=row.attempt,
            errors=errors.get(row.number, {}),
            test_error=row.test_error,
            message=row.message,
        )
        for row in rows
    }

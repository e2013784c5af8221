import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import psycopg
import pytest
from sqlalchemy import Connection, event, exc

from bitfront.errors import DatabaseError
from bitfront.plan import Recovery
from bitfront.trial import Cause, FrontChange, StudyState, TrialState
from bitfront.tuning import TuningSample
from storage.records import EventKind, Lease
from storage.store import Store, open_store
from tests.support.databases import Databases
from tests.support.store_samples import (
    complete,
    events,
    fail,
    hypervolumes,
    job,
    prune,
    running,
    show,
    trial,
)

VALUES = {"error": 0.25, "nbytes": 1000.0}

WRITER = """
import sys
from bitfront.trial import FrontChange
from storage.store import open_store
from tests.support.store_samples import complete, running, trial

store = open_store(sys.argv[1])
lease = running(store)
for number in range(1296):
    store.start_trial(lease, trial(number))
    error = 1 / (number + 2)
    change = FrontChange((number,), (number - 1,) if number else (), 1 - error)
    assert complete(store, lease, number, {"error": error, "nbytes": 8.0}, front=change)
    print(number, flush=True)
"""


def heard_until_killed(script: str, url: str, acknowledged: int) -> list[int]:
    """All numbers that a writer acknowledged, which is killed once it has so many."""
    command = [sys.executable, "-c", script, url]
    # Where this process has used Ray, the current folder is no longer on the path.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        heard = [int(writer.stdout.readline()) for _ in range(acknowledged)]
        writer.send_signal(signal.SIGKILL)
        return heard + [int(line) for line in writer.stdout.read().split()]


@pytest.mark.parametrize("acknowledged", [1, 13, 40])
def test_no_acknowledged_trial_is_lost_when_its_writer_is_killed(
    databases: Databases, acknowledged: int
) -> None:
    url = databases.ready()
    heard = heard_until_killed(WRITER, url, acknowledged)

    with open_store(url, create=False) as store:
        stored = {kept.number: kept for kept in store.trials("digits")}
        finished = [n for n, kept in stored.items() if kept.state is TrialState.COMPLETE]
        assert set(heard) <= set(finished)
        assert all(stored[n].values["error"] == 1 / (n + 2) for n in finished)
        assert [point.number for point in store.front("digits")] == [max(finished)]
        assert [completed for completed, _ in hypervolumes(store)] == [n + 1 for n in finished]
        lease = store.acquire("digits", "next", 60, dead_owner="driver of digits")
        assert len(store.fence(lease)) == len(stored) - len(finished) <= 1


class LostCommit:
    """Commits the next transaction for real, and then breaks as if nobody had heard of it."""

    def __init__(self, store: Store) -> None:
        self._engine = store._database.engine
        self.happened = False
        event.listen(self._engine, "commit", self._lose)

    def _lose(self, connection: Connection) -> None:
        if self.happened:
            return
        self.happened = True
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.commit()
        is_sqlite = connection.dialect.name == "sqlite"
        # A locked file is the one failure of SQLite that passes by itself.
        cause = (
            sqlite3.OperationalError("database is locked")
            if is_sqlite
            else psycopg.OperationalError("the connection is lost")
        )
        raise exc.OperationalError("COMMIT", {}, cause)


ONCE: dict[str, tuple[Callable[[Store, Lease], object], object, EventKind]] = {
    "complete": (
        lambda store, lease: complete(store, lease, 0, VALUES, front=FrontChange((0,), (), 0.5)),
        True,
        EventKind.COMPLETED,
    ),
    "retry": (
        lambda store, lease: fail(store, lease, 0, 1, Cause.NODE_LOST, "m", retry=True),
        True,
        EventKind.ATTEMPT_FAILED,
    ),
    "prune": (
        lambda store, lease: prune(store, lease, 0, 1, seconds=1.0),
        True,
        EventKind.STOPPED_EARLY,
    ),
    "fail": (
        lambda store, lease: fail(store, lease, 0, 1, Cause.USER_ERROR, "m", retry=False),
        True,
        EventKind.FAILED,
    ),
    "start": (lambda store, lease: store.start_trial(lease, trial(1)), None, EventKind.STARTED),
    "release": (
        lambda store, lease: store.release(lease, StudyState.COMPLETE),
        None,
        EventKind.RELEASED,
    ),
}


@pytest.mark.parametrize(("write", "answer", "kind"), ONCE.values(), ids=ONCE)
def test_a_commit_that_nobody_heard_of_counts_once(
    store: Store, write: Callable[[Store, Lease], object], answer: object, kind: EventKind
) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    before = [logged.kind for logged in events(store, "digits")]
    lost = LostCommit(store)

    assert write(store, lease) == answer

    assert lost.happened
    after = [logged.kind for logged in events(store, "digits")]
    assert after == [*before, kind]


def test_a_report_that_nobody_heard_of_is_kept_once(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    lost = LostCommit(store)

    assert show(store, lease, 0, 1, 15, 0.5)

    assert lost.happened
    assert store.intermediates("digits") == {0: {15: 0.5}}


STOPPER = """
import sys
from storage.store import open_store
from tests.support.store_samples import prune, running, show, trial

store = open_store(sys.argv[1])
lease = running(store)
for number in range(1296):
    store.start_trial(lease, trial(number))
    for step in (0, 15):
        assert show(store, lease, number, 1, step, 1 / (number + step + 1))
    assert prune(store, lease, number, 1, seconds=0.5)
    print(number, flush=True)
"""


def test_no_acknowledged_stop_is_lost_when_its_writer_is_killed(databases: Databases) -> None:
    url = databases.ready()
    heard = heard_until_killed(STOPPER, url, 13)

    with open_store(url, create=False) as store:
        pruned = [kept.number for kept in store.trials("digits", {TrialState.PRUNED})]
        shown = store.intermediates("digits")
        assert set(heard) <= set(pruned)
        assert all(shown[n] == {step: 1 / (n + step + 1) for step in (0, 15)} for n in pruned)
        lease = store.acquire("digits", "next", 60, dead_owner="driver of digits")
        again = [restarted.number for restarted in store.fence(lease)]
        assert again == [kept.number for kept in store.trials("digits", {TrialState.RUNNING})]
        assert len(again) <= 1
        assert not set(again) & set(pruned)


TUNER = """
import sys
from bitfront.plan import Recovery
from bitfront.trial import TrialState
from bitfront.tuning import TuningSample
from storage.store import open_store
from tests.support.store_samples import running

store = open_store(sys.argv[1])
lease = running(store)
tuning = store.begin_tuning(lease, "digest", {}).id
for number in range(1296):
    store.start_sample(lease, tuning, TuningSample(number, Recovery(steps=number + 1), 100))
    for step in (4, 8):
        assert store.report_sample(lease, tuning, number, 1, step, 1 / (number + step))
    assert store.finish_sample(lease, tuning, number, 1, TrialState.COMPLETE)
    store.save_sample_test_error(lease, tuning, number, 0.5)
    print(number, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 13])
def test_no_acknowledged_sample_is_lost_when_its_writer_is_killed(
    databases: Databases, acknowledged: int
) -> None:
    url = databases.ready()
    heard = heard_until_killed(TUNER, url, acknowledged)

    with open_store(url, create=False) as store:
        (tuning,) = store.tunings("digits")
        lease = store.acquire("digits", "next", 60, dead_owner="driver of digits")
        store.fence_samples(lease, tuning.id)
        samples = store.samples(tuning.id)
        for number in heard:
            assert samples[number].state is TrialState.COMPLETE
            assert samples[number].errors == {4: 1 / (number + 4), 8: 1 / (number + 8)}
            assert samples[number].test_error == 0.5
        running_again = [s.number for s in samples.values() if s.state is TrialState.RUNNING]
        assert len(running_again) <= 1
        assert all(samples[number].attempt == 2 for number in running_again)


def test_writes_of_a_tuning_that_nobody_heard_of_count_once(store: Store) -> None:
    lease = running(store)
    lost = [LostCommit(store)]
    tuning = store.begin_tuning(lease, "digest", {}).id
    lost.append(LostCommit(store))
    store.start_sample(lease, tuning, TuningSample(0, Recovery(), 100))
    lost.append(LostCommit(store))
    assert store.report_sample(lease, tuning, 0, 1, 4, 0.5)
    lost.append(LostCommit(store))
    assert store.finish_sample(lease, tuning, 0, 1, TrialState.COMPLETE)
    lost.append(LostCommit(store))
    store.save_sample_test_error(lease, tuning, 0, 0.25)

    assert all(commit.happened for commit in lost)
    assert len(store.tunings("digits")) == 1
    expected = TuningSample(0, Recovery(), 100, TrialState.COMPLETE, 1, {4: 0.5}, test_error=0.25)
    assert store.samples(tuning) == {0: expected}


def test_a_name_that_nobody_heard_was_freed_is_free(store: Store) -> None:
    store.release(running(store), StudyState.FAILED, "no images")
    lost = LostCommit(store)

    store.replace_untried("digits")

    assert lost.happened
    assert store.studies() == []


def test_a_study_whose_creation_nobody_heard_of_is_ours(store: Store) -> None:
    lost = LostCommit(store)

    made = store.create_study(job(), {"device": "cpu"})

    assert lost.happened
    assert store.study("digits") == made


def test_trials_get_through_while_connections_are_cut(postgres_databases: Databases) -> None:
    url = postgres_databases.ready()

    def cut() -> None:
        while not done.wait(0.2):
            postgres_databases.break_connections(url)

    done = Event()
    saboteur = Thread(target=cut)
    with open_store(url) as store:
        lease = running(store)
        saboteur.start()
        try:
            for number in range(60):
                store.start_trial(lease, trial(number))
                assert complete(store, lease, number, VALUES)
        finally:
            done.set()
            saboteur.join()

        assert [kept.state for kept in store.trials("digits")] == [TrialState.COMPLETE] * 60
        kinds = [logged.kind for logged in events(store, "digits")]
        assert kinds.count(EventKind.COMPLETED) == 60


def test_a_server_that_stays_away_is_reported(postgres_databases: Databases) -> None:
    url = postgres_databases.ready()
    with open_store(url, patience_s=0.5) as store:
        running(store)
        postgres_databases.drop(url)

        with pytest.raises(DatabaseError, match="does not exist"):
            store.study("digits")

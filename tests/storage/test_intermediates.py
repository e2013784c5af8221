"""Intermediate values, and trials that stop early."""

import math

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from bitfront.errors import InvalidMetric
from bitfront.trial import Cause, FrontChange, TrialState
from storage.location import parse_url
from storage.records import EventKind, Limits
from storage.schema import run_migrations
from storage.store import Store, open_store
from tests.support.databases import Databases
from tests.support.store_samples import (
    complete,
    events,
    fail,
    finished,
    prune,
    running,
    show,
    trial,
)


def test_stages_come_back_by_trial_and_step(store: Store) -> None:
    lease = running(store)
    for number in range(3):
        store.start_trial(lease, trial(number))

    assert show(store, lease, 2, 1, 15, 0.25)
    assert show(store, lease, 2, 1, 0, 0.5)
    assert show(store, lease, 0, 1, 0, 0.125)

    assert store.intermediates("digits") == {0: {0: 0.125}, 2: {0: 0.5, 15: 0.25}}


def test_a_step_that_is_come_by_again_has_its_last_value(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    assert show(store, lease, 0, 1, 15, 0.5)
    assert fail(store, lease, 0, 1, Cause.NODE_LOST, "gone", retry=True)

    assert not show(store, lease, 0, 1, 15, 0.9)
    assert show(store, lease, 0, 2, 15, 0.25)

    assert store.intermediates("digits") == {0: {15: 0.25}}


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused(store: Store, error: float) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))

    with pytest.raises(InvalidMetric, match="error"):
        show(store, lease, 0, 1, 0, error)

    assert store.intermediates("digits") == {}


def test_a_pruned_trial_is_finished_without_values(store: Store) -> None:
    lease = running(store)
    finished(store, lease, 0, error=0.5, nbytes=10)
    store.start_trial(lease, trial(1))
    show(store, lease, 1, 1, 0, 0.25)

    assert prune(store, lease, 1, 1, seconds=2.5, worker="a worker")

    pruned = store.trials("digits", {TrialState.PRUNED})
    assert [(t.number, t.state, t.values, t.cause) for t in pruned] == [
        (1, TrialState.PRUNED, {}, None)
    ]
    assert pruned[0].state.is_finished
    (attempt,) = store.attempts("digits", [1])
    assert (attempt.seconds, attempt.worker, attempt.cause) == (2.5, "a worker", None)
    assert attempt.finished_at is not None
    event = events(store, "digits")[-1]
    assert (event.kind, event.trial) == (EventKind.STOPPED_EARLY, 1)
    assert store.status("digits").counts[TrialState.PRUNED] == 1
    assert store.intermediates("digits") == {1: {0: 0.25}}


def test_a_pruned_trial_is_no_answer_to_any_question(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    show(store, lease, 0, 1, 0, 0.01)
    prune(store, lease, 0, 1, seconds=1.0)

    assert store.front("digits") == []
    assert store.best("digits") is None
    assert store.nearest("digits", Limits(max_error=0.001)) is None
    (study,) = store.studies()
    assert study.best_error is None


def test_a_pruned_trial_stays_so(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    assert prune(store, lease, 0, 1, seconds=1.0)

    assert not prune(store, lease, 0, 1, seconds=1.0)
    assert not show(store, lease, 0, 1, 5, 0.5)
    values = {"error": 0.1, "nbytes": 1.0}
    assert not complete(store, lease, 0, values, front=FrontChange((0,), (), 0.5))
    assert not fail(store, lease, 0, 1, Cause.USER_ERROR, "late", retry=False)
    assert store.cancel_running(lease) == 0
    assert store.fence(lease) == []
    assert [t.state for t in store.trials("digits")] == [TrialState.PRUNED]


def test_only_the_attempt_that_runs_can_stop_early(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    fail(store, lease, 0, 1, Cause.NODE_LOST, "gone", retry=True)

    assert not prune(store, lease, 0, 1, seconds=1.0)
    assert prune(store, lease, 0, 2, seconds=1.0)


def test_a_deleted_study_takes_its_stages_along(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    show(store, lease, 0, 1, 0, 0.5)

    store.release(lease, store.study("digits").state)
    store.delete_study("digits")

    with store._database.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM intermediate")) == 0


def test_an_older_database_keeps_everything_and_learns_to_prune(databases: Databases) -> None:
    url = databases.empty()
    with open_store(url) as store:
        lease = running(store)
        finished(store, lease, 0, error=0.5, nbytes=10)
        store.start_trial(lease, trial(1))
        before = (store.study("digits"), store.trials("digits"), store.attempts("digits"))
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", "storage:migrations")
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
    with engine.connect() as connection:
        refused = text(
            "UPDATE trial SET state = 'pruned', finished_at = created_at WHERE number = 1"
        )
        with pytest.raises(Exception, match="ck_trial_state_known"):
            connection.execute(refused)
    with engine.begin() as connection:
        run_migrations(connection, "head")

    with open_store(url) as store:
        assert (store.study("digits"), store.trials("digits"), store.attempts("digits")) == before
        assert show(store, lease, 1, 1, 0, 0.5)
        assert prune(store, lease, 1, 1, seconds=1.0)
        if engine.dialect.name == "sqlite":
            with engine.connect() as connection:
                assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
    engine.dispose()

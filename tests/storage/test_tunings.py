import math

import pytest

from bitfront.errors import DatabaseError, InvalidMetric, LeaseLost
from bitfront.plan import Recovery
from bitfront.trial import TrialState
from bitfront.tuning import TuningSample, best_sample
from storage.store import Store, open_store
from tests.support.store_samples import running

SETTINGS = {"plan": {"a": "w2a8"}}


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(f"sqlite:///{tmp_path_factory.mktemp('db') / 'bitfront.db'}")


def sample(number: int, nbytes: int = 100) -> TuningSample:
    return TuningSample(number, Recovery(steps=8 * (number + 1)), nbytes)


def test_an_experiment_is_made_once(store: Store) -> None:
    lease = running(store)

    first = store.begin_tuning(lease, "digest", SETTINGS)

    assert store.begin_tuning(lease, "digest", {}) == first
    assert store.begin_tuning(lease, "another", SETTINGS).id != first.id
    assert [known.digest for known in store.tunings("digits")] == ["digest", "another"]
    assert first.settings == SETTINGS


def test_a_sample_keeps_every_error_that_was_reported(store: Store) -> None:
    lease = running(store)
    tuning = store.begin_tuning(lease, "digest", SETTINGS).id
    store.start_sample(lease, tuning, sample(0))
    store.start_sample(lease, tuning, sample(0))

    assert store.report_sample(lease, tuning, 0, 1, 4, 0.5)
    assert store.report_sample(lease, tuning, 0, 1, 4, 0.25), "safe to repeat"
    assert store.report_sample(lease, tuning, 0, 1, 2, 0.75)
    assert store.finish_sample(lease, tuning, 0, 1, TrialState.COMPLETE)
    assert store.finish_sample(lease, tuning, 0, 1, TrialState.COMPLETE), "safe to repeat"

    assert not store.report_sample(lease, tuning, 0, 1, 8, 0.1)
    assert not store.finish_sample(lease, tuning, 0, 1, TrialState.FAILED, "too late")
    (stored,) = store.samples(tuning).values()
    assert stored == TuningSample(
        0, sample(0).recovery, 100, TrialState.COMPLETE, 1, {2: 0.75, 4: 0.5}
    )
    assert stored.error == 0.5


def test_what_a_dead_driver_left_running_starts_again(store: Store) -> None:
    lease = running(store)
    tuning = store.begin_tuning(lease, "digest", SETTINGS).id
    for number in (0, 1):
        store.start_sample(lease, tuning, sample(number))
        assert store.report_sample(lease, tuning, number, 1, 2, 0.5)
    assert store.finish_sample(lease, tuning, 0, 1, TrialState.PRUNED)

    store.fence_samples(lease, tuning)

    samples = store.samples(tuning)
    assert [s.attempt for s in samples.values()] == [1, 2]
    assert not store.report_sample(lease, tuning, 1, 1, 4, 0.4), "that of the old attempt"
    assert store.report_sample(lease, tuning, 1, 2, 4, 0.3)
    assert store.samples(tuning)[1].errors == {2: 0.5, 4: 0.3}


def test_the_best_sample_is_complete_and_small(store: Store) -> None:
    lease = running(store)
    tuning = store.begin_tuning(lease, "digest", SETTINGS).id
    shown = {
        0: (0.1, TrialState.PRUNED, 100),
        1: (0.3, TrialState.COMPLETE, 100),
        2: (0.2, TrialState.COMPLETE, 120),
        3: (0.2, TrialState.COMPLETE, 110),
        4: (0.0, TrialState.FAILED, 100),
    }
    assert best_sample(store.samples(tuning)) is None
    for number, (error, state, nbytes) in shown.items():
        store.start_sample(lease, tuning, sample(number, nbytes))
        assert store.report_sample(lease, tuning, number, 1, 8, error)
        assert store.finish_sample(lease, tuning, number, 1, state)

    best = best_sample(store.samples(tuning))

    assert best is not None
    assert best.number == 3
    store.save_sample_test_error(lease, tuning, 3, 0.25)
    assert store.samples(tuning)[3].test_error == 0.25
    with pytest.raises(DatabaseError, match="no complete sample 0"):
        store.save_sample_test_error(lease, tuning, 0, 0.25)


def test_nothing_is_written_without_the_lease(store: Store) -> None:
    lease = running(store)
    tuning = store.begin_tuning(lease, "digest", SETTINGS).id
    store.start_sample(lease, tuning, sample(0))
    store.acquire("digits", "another", 60, dead_owner=lease.owner)

    with pytest.raises(LeaseLost):
        store.report_sample(lease, tuning, 0, 1, 4, 0.5)
    with pytest.raises(LeaseLost):
        store.finish_sample(lease, tuning, 0, 1, TrialState.COMPLETE)
    with pytest.raises(LeaseLost):
        store.start_sample(lease, tuning, sample(1))


def test_a_number_is_used_once_and_an_error_is_finite(store: Store) -> None:
    lease = running(store)
    tuning = store.begin_tuning(lease, "digest", SETTINGS).id
    store.start_sample(lease, tuning, sample(0))

    with pytest.raises(DatabaseError, match="another"):
        store.start_sample(lease, tuning, TuningSample(0, Recovery(steps=99), 100))
    with pytest.raises(InvalidMetric):
        store.report_sample(lease, tuning, 0, 1, 4, math.nan)


def test_a_study_takes_its_experiments_with_it(store: Store) -> None:
    lease = running(store)
    tuning = store.begin_tuning(lease, "digest", SETTINGS).id
    store.start_sample(lease, tuning, sample(0))
    store.report_sample(lease, tuning, 0, 1, 4, 0.5)
    store.release(lease, store.study("digits").state)

    store.delete_study("digits")

    assert store.samples(tuning) == {}

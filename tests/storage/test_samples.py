"""What came out for each sample: kept with trials and in the cache of evaluations."""

from dataclasses import replace

import pytest

from bitfront.attempt import Evaluated
from bitfront.plan import Configuration, Recovery
from bitfront.samples import SampleResults
from bitfront.trial import Evaluation
from storage.records import Lease, Limits
from storage.store import Store
from tests.support.store_samples import attempt, complete, running, trial

SAMPLES = SampleResults.of([True, False, True], [0.1, 0.2, 0.3])
VALUES = {"error": 1 / 3, "nbytes": 100.0}


def put(store: Store, lease: Lease, number: int, samples: SampleResults | None = SAMPLES) -> None:
    store.start_trial(lease, trial(number, lease.name))
    assert complete(
        store, lease, number, VALUES, metrics={"divergence": 0.2}, samples=samples, key=f"k{number}"
    )


def test_a_choice_sees_values_recovery_and_samples_of_what_holds_the_jobs_limits(
    store: Store,
) -> None:
    lease = running(store)
    put(store, lease, 0)
    put(store, lease, 1, None)
    plan = trial(2).configuration.plan
    recovered = replace(trial(2), configuration=Configuration(plan, Recovery()))
    store.start_trial(lease, recovered)
    ended = Evaluated(Evaluation(VALUES, {}, SAMPLES), seconds=1.0, worker="w")
    assert store.finish_attempt(lease, replace(attempt(2), trial=recovered), ended)
    store.start_trial(lease, trial(3))
    complete(store, lease, 3, VALUES, constraints={"max_nbytes": 0.1}, samples=SAMPLES)
    store.start_trial(lease, trial(4))

    found = store.measured("digits")

    assert found is not None
    assert found.objectives == ("error", "nbytes")
    assert [t.place for t in found.trials] == [("digits", 0), ("digits", 1), ("digits", 2)]
    assert [t.samples for t in found.trials] == [SAMPLES, None, SAMPLES]
    assert [t.has_recovery for t in found.trials] == [False, False, True]
    assert found.trials[0].values == {**VALUES, "divergence": 0.2}


def test_without_any_samples_there_is_nothing_to_choose_by(store: Store) -> None:
    lease = running(store)
    put(store, lease, 0, None)

    assert store.measured("digits") is None


def test_the_studies_of_a_model_are_seen_together(store: Store) -> None:
    for name in ("one", "two"):
        lease = running(store, name)
        store.set_provenance(lease, {"model": "m", "selection": "s"})
        put(store, lease, 0)

    found = store.measured(None, Limits(max_nbytes=1), model="m")

    assert found is not None
    assert [t.place for t in found.trials] == [("one", 0), ("two", 0)]
    again = store.trials_at([("two", 0), ("one", 0)])
    assert [t.study for t in again] == ["two", "one"]


def test_both_splits_of_a_trial_are_read_back(store: Store) -> None:
    lease = running(store)
    put(store, lease, 0)
    other = SampleResults.of([False], [0.5])

    store.save_test_values(lease, {0: {"error": 1.0}}, {0: other})

    assert store.sample_results("digits", 0) == {"selection": SAMPLES, "test": other}
    assert store.sample_results("digits", 1) == {}


def test_an_evaluation_of_an_earlier_version_gives_way_to_one_with_samples(store: Store) -> None:
    first, second = running(store, "first"), running(store, "second")
    for lease, samples in ((first, None), (second, SAMPLES)):
        store.start_trial(lease, trial(0, lease.name))
        complete(store, lease, 0, VALUES, samples=samples, key="same")

    assert store.evaluation("same") == Evaluation(VALUES, {}, SAMPLES)


@pytest.mark.parametrize("samples", [None, SAMPLES])
def test_a_kept_evaluation_stays_for_one_without_samples(
    store: Store, samples: SampleResults | None
) -> None:
    lease = running(store)
    put(store, lease, 0, samples)
    store.start_trial(lease, trial(1))
    complete(store, lease, 1, {"error": 0.9, "nbytes": 1.0}, key="k0")

    kept = store.evaluation("k0")

    assert kept == Evaluation(VALUES, {"divergence": 0.2}, samples)

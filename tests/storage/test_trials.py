import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bitfront.errors import DatabaseError, InvalidMetric
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import ACTIVATION_BITS, WEIGHT_BITS, Precision
from bitfront.trial import Cause, Evaluation, FrontChange, Origin, Trial, TrialState
from storage.records import EventKind
from storage.store import Store, open_store
from tests.support.store_samples import (
    complete,
    events,
    fail,
    hypervolumes,
    prune,
    running,
    trial,
)

VALUES = {"error": 0.25, "nbytes": 1000.0}


def test_a_started_trial_is_there_before_it_runs(store: Store) -> None:
    lease = running(store)

    store.start_trial(lease, trial(0))

    assert store.trials("digits") == [trial(0)]
    (attempt,) = store.attempts("digits")
    assert (attempt.trial, attempt.attempt, attempt.finished_at) == (0, 1, None)
    assert events(store, "digits")[-1].kind is EventKind.STARTED


def test_starting_a_trial_again_changes_nothing(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    before = events(store, "digits")

    store.start_trial(lease, trial(0))

    assert store.trials("digits") == [trial(0)]
    assert events(store, "digits") == before


@pytest.mark.parametrize(
    ("again", "message"),
    [
        (replace(trial(0), number=1), "has the configuration of trial 0, which is running"),
        (replace(trial(1), number=0), "has the number of trial 0, which is running"),
    ],
)
def test_no_configuration_and_no_number_is_used_twice(
    store: Store, again: Trial, message: str
) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))

    with pytest.raises(DatabaseError, match=message):
        store.start_trial(lease, again)

    assert store.trials("digits") == [trial(0)]


def test_a_finished_trial_is_not_started_again(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    complete(store, lease, 0, VALUES)

    with pytest.raises(DatabaseError, match="which is complete already"):
        store.start_trial(lease, trial(0))


def test_two_studies_may_try_the_same_configuration(store: Store) -> None:
    for name in ("first", "second"):
        store.start_trial(running(store, name), trial(0))

    assert store.trials("first") == [trial(0, "first")]
    assert store.trials("second") == [trial(0, "second")]


def test_a_completed_trial_has_what_was_measured(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))

    done = complete(
        store,
        lease,
        0,
        VALUES,
        metrics={"bits_per_weight": 3.5, "latency_s": 0.01},
        constraints={"max_nbytes": -5.0, "max_bits": 0.0},
        front=FrontChange((0,), (), 0.75),
    )

    assert done
    (stored,) = store.trials("digits")
    assert stored == replace(
        trial(0),
        state=TrialState.COMPLETE,
        values={**VALUES, "bits_per_weight": 3.5, "latency_s": 0.01},
        metrics={"bits_per_weight": 3.5, "latency_s": 0.01},
        constraints={"max_nbytes": -5.0, "max_bits": 0.0},
        seconds=0.5,
        worker="a worker",
    )
    assert stored.started_at is not None
    assert stored.finished_at is not None
    (attempt,) = store.attempts("digits")
    assert (attempt.seconds, attempt.worker, attempt.cause) == (0.5, "a worker", None)
    (point,) = store.front("digits")
    assert point == stored
    assert hypervolumes(store) == [(1, 0.75)]


def test_a_trial_is_completed_once(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    assert complete(store, lease, 0, VALUES)
    before = (store.trials("digits"), events(store, "digits"), store.attempts("digits"))

    assert not complete(store, lease, 0, {"error": 0.0, "nbytes": 1.0})
    assert not complete(store, lease, 0, VALUES, at=2)
    assert not complete(store, lease, 7, VALUES)
    assert not fail(store, lease, 0, 1, Cause.USER_ERROR, "late", retry=True)

    assert (store.trials("digits"), events(store, "digits"), store.attempts("digits")) == before


def test_one_of_many_at_once_completes_an_attempt(store: Store, database_url: str) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))

    def report(number: int) -> tuple[bool, float]:
        error = number / 10
        with open_store(database_url) as own:
            start.wait()
            return complete(own, lease, 0, {"error": error, "nbytes": 1.0}), error

    start = Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(report, range(6)))

    ((_, error),) = [outcome for outcome in outcomes if outcome[0]]
    assert store.trials("digits")[0].values["error"] == error
    kinds = [event.kind for event in events(store, "digits")]
    assert kinds.count(EventKind.COMPLETED) == 1


@pytest.mark.parametrize(
    ("values", "metrics", "constraints", "name"),
    [
        ({"error": 0.5}, {}, {}, "nbytes came out as missing"),
        ({"error": math.nan, "nbytes": 1.0}, {}, {}, "error came out as nan"),
        ({"error": 0.5, "nbytes": math.inf}, {}, {}, "nbytes came out as inf"),
        (VALUES, {"seconds": -math.inf}, {}, "seconds came out as -inf"),
        (VALUES, {}, {"max_error": math.nan}, "max_error came out as nan"),
    ],
)
def test_what_is_not_finite_never_enters(
    store: Store,
    values: Mapping[str, float],
    metrics: Mapping[str, float],
    constraints: Mapping[str, float],
    name: str,
) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))

    with pytest.raises(InvalidMetric, match=name):
        complete(store, lease, 0, values, metrics=metrics, constraints=constraints, key="k")

    assert store.trials("digits") == [trial(0)]
    assert store.evaluation("k") is None


def test_a_completion_that_cannot_move_the_front_leaves_no_trace(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))

    with pytest.raises(InvalidMetric, match="hypervolume"):
        complete(store, lease, 0, VALUES, front=FrontChange((0,), (), math.nan), key="k")

    assert store.trials("digits") == [trial(0)]
    assert store.front("digits") == []
    assert store.evaluation("k") is None


def test_trials_leave_the_front_when_a_better_one_joins(store: Store) -> None:
    lease = running(store)
    for number, change in enumerate(
        [
            FrontChange((0,), (), 0.25),
            None,
            FrontChange((2,), (), 0.5),
            FrontChange((3,), (0, 2), 0.75),
        ]
    ):
        store.start_trial(lease, trial(number))
        values = {"error": 0.5 - number / 10, "nbytes": 100.0}
        assert complete(store, lease, number, values, front=change)

    assert [point.number for point in store.front("digits")] == [3]
    history = hypervolumes(store)
    assert history == [(1, 0.25), (3, 0.5), (4, 0.75)]


def test_the_first_evaluation_under_a_key_is_kept_for_all(store: Store) -> None:
    first, second = running(store, "first"), running(store, "second")
    for lease, error in ((first, 0.1), (second, 0.9)):
        store.start_trial(lease, trial(0))
        values = {"error": error, "nbytes": 3.0}
        assert complete(store, lease, 0, values, metrics={"s": 1.0}, key="same")

    kept = Evaluation({"error": 0.1, "nbytes": 3.0}, {"s": 1.0})
    assert store.evaluation("same") == kept
    assert store.evaluation("other") is None


def test_a_failed_attempt_is_recorded_and_the_next_one_runs(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))

    assert fail(store, lease, 0, 1, Cause.NODE_LOST, "gone", "a trace", retry=True)
    assert not fail(store, lease, 0, 1, Cause.NODE_LOST, "gone", retry=True)

    assert store.trials("digits") == [replace(trial(0), attempts=2)]
    first, second = store.attempts("digits", [0])
    assert (first.cause, first.message, first.traceback) == (Cause.NODE_LOST, "gone", "a trace")
    assert (second.attempt, second.cause, second.finished_at) == (2, None, None)
    assert complete(store, lease, 0, VALUES, at=2)


def test_a_failed_trial_says_why(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))

    fail(store, lease, 0, 1, Cause.OUT_OF_MEMORY, "NUL \x00 and \udc80", retry=False)

    (stored,) = store.trials("digits")
    assert (stored.state, stored.cause) == (TrialState.FAILED, "out_of_memory")
    (failure,) = store.status("digits").failures
    assert failure.message == "NUL \\x00 and \\udc80"
    assert not complete(store, lease, 0, VALUES)


def test_only_the_end_of_an_endless_traceback_is_kept(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))

    fail(store, lease, 0, 1, Cause.USER_ERROR, "m", "x" * 10**6 + "the end", retry=False)

    (attempt,) = store.attempts("digits")
    assert attempt.traceback is not None
    assert attempt.traceback.endswith("the end")
    assert len(attempt.traceback) < 30_000


def test_fencing_restarts_what_runs_and_refuses_its_old_results(store: Store) -> None:
    lease = running(store)
    for number in range(3):
        store.start_trial(lease, trial(number))
    complete(store, lease, 1, VALUES)
    lease = store.acquire("digits", "next", 60, dead_owner="driver of digits")

    restarted = store.fence(lease)

    assert restarted == [replace(trial(0), attempts=2), replace(trial(2), attempts=2)]
    assert not complete(store, lease, 0, VALUES, at=1)
    assert complete(store, lease, 0, VALUES, at=2)
    causes = [(a.trial, a.attempt, a.cause) for a in store.attempts("digits")]
    assert causes == [
        (0, 1, Cause.DRIVER_RESTART),
        (0, 2, None),
        (1, 1, None),
        (2, 1, Cause.DRIVER_RESTART),
        (2, 2, None),
    ]


def test_cancelling_ends_only_what_runs(store: Store) -> None:
    lease = running(store)
    for number in range(3):
        store.start_trial(lease, trial(number))
    complete(store, lease, 1, VALUES)

    assert store.cancel_running(lease) == 2
    assert store.cancel_running(lease) == 0

    states = [stored.state for stored in store.trials("digits")]
    assert states == [TrialState.CANCELLED, TrialState.COMPLETE, TrialState.CANCELLED]
    assert [t.number for t in store.trials("digits", {TrialState.CANCELLED})] == [0, 2]
    assert store.trials("digits", set()) == []
    assert not complete(store, lease, 0, VALUES)


def test_what_was_cancelled_runs_again_as_the_same_trial(store: Store) -> None:
    lease = running(store)
    for number in range(2):
        store.start_trial(lease, trial(number))
    complete(store, lease, 1, VALUES)
    store.cancel_running(lease)

    (again,) = store.fence(lease)

    assert (again.number, again.attempts, again.state) == (0, 2, TrialState.RUNNING)
    assert again.configuration == trial(0).configuration
    assert [a.cause for a in store.attempts("digits", {0})] == [Cause.CANCELLED, None]
    assert not complete(store, lease, 0, VALUES)
    assert complete(store, lease, 0, VALUES, at=2)


def test_a_pruned_configuration_is_not_started_again(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    prune(store, lease, 0, 1, seconds=1.0)

    for again in (trial(0), replace(trial(0), number=1)):
        with pytest.raises(DatabaseError, match="trial 0, which is pruned already"):
            store.start_trial(lease, again)

    assert [kept.state for kept in store.trials("digits")] == [TrialState.PRUNED]


def test_test_values_stand_beside_the_others(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    store.start_trial(lease, trial(1))
    complete(store, lease, 0, VALUES)

    store.save_test_values(lease, {0: {"error": 0.3, "nbytes": 1000.0, "latency_s": 0.5}})

    (stored, _) = store.trials("digits")
    assert stored.values == VALUES
    assert stored.test_values == {"error": 0.3, "nbytes": 1000.0, "latency_s": 0.5}
    with pytest.raises(DatabaseError, match="no complete trial 1"):
        store.save_test_values(lease, {0: {"error": 0.9}, 1: {"error": 0.9}})
    assert store.trials("digits")[0].test_values["error"] == 0.3


precisions = st.builds(
    Precision,
    st.sampled_from(WEIGHT_BITS),
    st.sampled_from(ACTIVATION_BITS),
    st.integers(0, 4096),
    st.sampled_from([0.9, 0.99, 0.999, 1.0]),
)
recoveries = st.builds(
    Recovery,
    context_length=st.integers(1, 64),
    reduction=st.integers(0, 64),
    adapter_bits=st.sampled_from(ACTIVATION_BITS),
    blend=st.floats(0, 1),
    distillation=st.floats(0, 1e300),
    steps=st.integers(1, 10**9),
)
floats = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
configurations = st.builds(
    Configuration,
    st.dictionaries(names, precisions, max_size=5).map(Plan.of),
    st.none() | recoveries,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=configurations,
    params=st.dictionaries(names, st.integers() | floats | st.text("aé\x00")),
    error=floats,
)
def test_any_configuration_comes_back_exactly(
    store: Store, content: Configuration, params: dict[str, int | float | str], error: float
) -> None:
    if not store.studies():
        running(store)
    lease = store.acquire("digits", "driver of digits", 60)
    known = store.trials("digits")
    assume(content.digest not in {trial.configuration.digest for trial in known})

    number = len(known)
    store.start_trial(lease, Trial(lease.name, number, content, Origin.PROGRAM, params))
    complete(store, lease, number, {"error": error, "nbytes": 0.0})

    stored = store.trials("digits")[number]
    assert stored.configuration == content
    assert stored.configuration.digest == content.digest
    assert stored.params == params
    assert stored.values["error"] == error


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter_that_is_not_finite_never_enters(store: Store, value: float) -> None:
    lease = running(store)

    with pytest.raises(InvalidMetric, match="parameter x"):
        store.start_trial(lease, replace(trial(0), params={"x": value, "y": "nan"}))

    assert store.trials("digits") == []

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest

from bitfront.errors import DuplicateStudy, InvalidMetric, LeaseHeld, LeaseLost, UnknownStudy
from bitfront.plan import Recovery
from bitfront.profile import StageArtefactKind
from bitfront.trial import Cause, FrontChange, StudyState, TrialState
from bitfront.tuning import TuningSample
from storage.records import EventKind, Lease, Request
from storage.store import Store, open_store
from tests.support.store_samples import (
    complete,
    configuration,
    events,
    fail,
    finished,
    hypervolumes,
    job,
    running,
    show,
    trial,
)


def test_a_study_comes_back_as_it_was_made(store: Store) -> None:
    spec = job(stop={"trials": 7}, objectives=["error", "nbytes", "latency_s"])

    made = store.create_study(spec, {"version": "1.0", "device": "cpu"})

    assert store.study("digits") == made
    assert made.spec == spec
    assert made.spec.digest == spec.digest
    assert made.provenance == {"version": "1.0", "device": "cpu"}
    assert (made.state, made.epoch, made.owner) == (StudyState.PROFILING, 0, None)
    assert made.planned_trials == 7
    assert made.created_at.utcoffset() is not None


def test_a_study_is_made_once(store: Store) -> None:
    store.create_study(job(), {})

    with pytest.raises(DuplicateStudy, match="'digits' exists already"):
        store.create_study(job(), {})


def test_one_of_many_at_once_makes_the_study(database_url: str) -> None:
    def make(_: int) -> str:
        with open_store(database_url) as store:
            start.wait()
            try:
                store.create_study(job(), {})
            except DuplicateStudy:
                return "refused"
            return "made"

    start = Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        outcomes = sorted(pool.map(make, range(6)))

    assert outcomes == ["made"] + 5 * ["refused"]


def test_an_unknown_study_is_answered_with_the_known_ones(store: Store) -> None:
    store.create_study(job("b"), {})
    store.create_study(job("a"), {})

    with pytest.raises(UnknownStudy) as caught:
        store.trials("digitz")

    assert caught.value.known == ("a", "b")


def test_the_list_counts_trials_by_state(store: Store) -> None:
    store.create_study(job("idle", stop={"trials": 3}), {})
    lease = running(store)
    finished(store, lease, 0, error=0.4, nbytes=10)
    finished(store, lease, 1, error=0.2, nbytes=20)
    store.start_trial(lease, trial(2))

    busy, idle = store.studies()

    assert (idle.name, idle.planned_trials, idle.best_error, idle.owner) == ("idle", 3, None, None)
    assert set(idle.counts.values()) == {0}
    assert (busy.name, busy.model, busy.best_error) == ("digits", "digit-clip", 0.2)
    assert busy.owner == "driver of digits"
    assert busy.counts[TrialState.COMPLETE] == 2
    assert busy.counts[TrialState.RUNNING] == 1


def test_a_deleted_study_leaves_its_evaluations_to_others(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    complete(store, lease, 0, {"error": 0.1, "nbytes": 5.0}, key="shared")
    store.release(lease, StudyState.COMPLETE)

    store.delete_study("digits")

    assert store.studies() == []
    kept = store.evaluation("shared")
    assert kept is not None
    assert kept.values == {"error": 0.1, "nbytes": 5.0}
    with pytest.raises(LeaseLost):
        store.heartbeat(lease)


def test_a_study_that_runs_is_not_deleted(store: Store) -> None:
    running(store)

    with pytest.raises(LeaseHeld):
        store.delete_study("digits")


def test_provenance_is_recorded_once_and_differences_are_told(store: Store) -> None:
    store.create_study(job(), {"version": "1"})
    lease = store.acquire("digits", "me", 60)

    assert store.set_provenance(lease, {"model": "aaa", "data": "d"}) == []
    assert store.set_provenance(lease, {"model": "aaa", "version": "1"}) == []
    (difference,) = store.set_provenance(lease, {"model": "bbb", "host": "h"})

    assert str(difference) == "model was aaa, is bbb"
    recorded = {"version": "1", "model": "aaa", "data": "d", "host": "h"}
    assert store.study("digits").provenance == recorded


def test_an_accepted_difference_replaces_the_record(store: Store) -> None:
    lease = running(store)
    store.set_provenance(lease, {"model": "aaa"})

    store.set_provenance(lease, {"model": "bbb"}, accept=True)

    assert store.study("digits").provenance == {"model": "bbb"}
    assert store.best(None, model="bbb") is None
    changed = events(store, "digits")[-1]
    assert changed.kind is EventKind.CHANGED
    assert changed.content == {"differences": ["model was aaa, is bbb"]}


def test_nothing_is_recorded_while_what_results_depend_on_differs(store: Store) -> None:
    lease = running(store)
    store.set_provenance(lease, {"model": "aaa"})

    found = {"model": "bbb", "tokenizer": "t"}
    store.set_provenance(lease, found, results=("model", "tokenizer"))

    assert store.study("digits").provenance == {"model": "aaa"}


def test_an_accepted_change_of_results_outdates_every_trial(store: Store) -> None:
    lease = running(store)
    store.set_provenance(lease, {"model": "aaa", "host": "h"})
    finished(store, lease, 0, 0.5, 8)
    store.start_trial(lease, trial(1))
    complete(store, lease, 1, {"error": 0.2, "nbytes": 9}, front=FrontChange((1,), (), 0.5))
    store.start_trial(lease, trial(2))
    fail(store, lease, 2, 1, Cause.USER_ERROR, "no", retry=False)
    store.start_trial(lease, trial(3))
    show(store, lease, 3, 1, 5, 0.1)

    store.set_provenance(lease, {"host": "i"}, results=("model",), accept=True)
    assert [found.number for found in store.front("digits")] == [1]
    store.set_provenance(lease, {"model": "bbb"}, results=("model",), accept=True)

    states = [(found.state, found.attempts) for found in store.trials("digits")]
    assert states == [*[(TrialState.OUTDATED, 1)] * 3, (TrialState.RUNNING, 2)]
    assert store.trials("digits")[1].values == {"error": 0.2, "nbytes": 9}
    assert store.front("digits") == []
    assert hypervolumes(store) == []
    assert store.intermediates("digits") == {}
    assert store.best("digits") is None
    assert not complete(store, lease, 3, {"error": 0.1, "nbytes": 1})
    assert events(store, "digits")[-1].content["outdated"] == 3


def test_an_outdated_trials_configuration_is_tried_again(store: Store) -> None:
    lease = running(store)
    for number in range(2):
        again = replace(trial(number), configuration=configuration(0))
        store.start_trial(lease, again)
        complete(store, lease, number, {"error": 0.5, "nbytes": 8})
        store.replace_spec(lease, job(search={"seed": number + 1}), changes_results=True)

    store.start_trial(lease, replace(trial(2), configuration=configuration(0)))

    states = [found.state for found in store.trials("digits")]
    assert states == [TrialState.OUTDATED, TrialState.OUTDATED, TrialState.RUNNING]


def test_what_is_known_of_a_study_as_a_whole_is_kept(store: Store) -> None:
    lease = running(store)

    store.set_state(lease, StudyState.RUNNING, "searching")
    store.set_reference(lease, {"error": 1.0, "nbytes": 4e6})
    store.set_correlation(lease, 0.83)
    store.replace_spec(lease, job(stop={"trials": 9}))

    study = store.study("digits")
    assert (study.state, study.message) == (StudyState.RUNNING, "searching")
    assert study.reference == {"error": 1.0, "nbytes": 4e6}
    assert study.correlation == 0.83
    assert study.planned_trials == 9


def test_an_undefined_correlation_is_unknown(store: Store) -> None:
    lease = running(store)
    store.set_correlation(lease, 0.5)

    store.set_correlation(lease, math.nan)

    assert store.study("digits").correlation is None


def test_a_reference_point_is_finite(store: Store) -> None:
    lease = running(store)

    with pytest.raises(InvalidMetric, match="nbytes"):
        store.set_reference(lease, {"error": 1.0, "nbytes": math.inf})


def test_a_fresh_lease_keeps_others_away(store: Store) -> None:
    store.create_study(job(), {})
    store.acquire("digits", "first", 60)

    with pytest.raises(LeaseHeld, match="is being run by first") as caught:
        store.acquire("digits", "second", 60)

    assert 0 <= caught.value.age_s < 60


def test_a_stale_lease_is_taken_over_with_the_next_epoch(store: Store) -> None:
    store.create_study(job(), {})
    stale = store.acquire("digits", "first", 0)

    lease = store.acquire("digits", "second", 60)

    assert (stale.epoch, lease.epoch) == (1, 2)
    assert events(store, "digits")[-1].kind is EventKind.TAKEN_OVER
    assert events(store, "digits")[-1].content["previous"] == "first"


def test_an_owner_known_to_be_dead_holds_nothing(store: Store) -> None:
    store.create_study(job(), {})
    store.acquire("digits", "dead", 60)

    with pytest.raises(LeaseHeld):
        store.acquire("digits", "second", 60, dead_owner="somebody else")
    lease = store.acquire("digits", "second", 60, dead_owner="dead")

    assert lease.epoch == 2


def test_one_of_many_at_once_gets_the_lease(database_url: str) -> None:
    with open_store(database_url) as store:
        store.create_study(job(), {})
        store.acquire("digits", "stale", 0)

    def take(number: int) -> str:
        with open_store(database_url) as store:
            start.wait()
            try:
                return f"epoch {store.acquire('digits', f'driver {number}', 60).epoch}"
            except LeaseHeld:
                return "held"

    start = Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        outcomes = sorted(pool.map(take, range(6)))

    assert outcomes == ["epoch 2"] + 5 * ["held"]


WRITES: dict[str, Callable[[Store, Lease], object]] = {
    "heartbeat": lambda store, lease: store.heartbeat(lease),
    "release": lambda store, lease: store.release(lease, StudyState.COMPLETE),
    "set_state": lambda store, lease: store.set_state(lease, StudyState.FAILED),
    "set_reference": lambda store, lease: store.set_reference(lease, {"error": 2.0}),
    "set_correlation": lambda store, lease: store.set_correlation(lease, 0.1),
    "set_provenance": lambda store, lease: store.set_provenance(lease, {"model": "x"}),
    "replace_spec": lambda store, lease: store.replace_spec(lease, job(stop={"trials": 1})),
    "save_profile": lambda store, lease: store.save_profile(lease, (), (), (), fixed_nbytes=1),
    "put_cells": lambda store, lease: store.put_cells(lease, []),
    "put_stage_artefact": lambda store, lease: store.put_stage_artefact(
        lease, "k", StageArtefactKind.CLIPS, {"late": True}, 1.0
    ),
    "save_options": lambda store, lease: store.save_options(lease, []),
    "start_trial": lambda store, lease: store.start_trial(lease, trial(9)),
    "finish_attempt": lambda store, lease: complete(store, lease, 0, {"error": 0, "nbytes": 0}),
    "report": lambda store, lease: show(store, lease, 0, 1, 5, 0.5),
    "fence": lambda store, lease: store.fence(lease),
    "cancel_running": lambda store, lease: store.cancel_running(lease),
    "save_test_values": lambda store, lease: store.save_test_values(lease, {}),
    "begin_tuning": lambda store, lease: store.begin_tuning(lease, "digest", {}),
    "start_sample": lambda store, lease: store.start_sample(
        lease, 1, TuningSample(0, Recovery(), 100)
    ),
    "report_sample": lambda store, lease: store.report_sample(lease, 1, 0, 1, 4, 0.5),
    "finish_sample": lambda store, lease: store.finish_sample(lease, 1, 0, 1, TrialState.COMPLETE),
    "fence_samples": lambda store, lease: store.fence_samples(lease, 1),
    "save_sample_test_error": lambda store, lease: store.save_sample_test_error(lease, 1, 0, 0.5),
}


def test_the_table_of_writes_names_every_method_that_takes_a_lease() -> None:
    takers = {
        name
        for name, method in vars(Store).items()
        if "lease" in getattr(method, "__annotations__", {})
    }

    assert takers == set(WRITES)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_no_write_passes_a_lost_lease(
    store: Store, write: Callable[[Store, Lease], object]
) -> None:
    store.create_study(job(), {})
    lost = store.acquire("digits", "first", 0)
    store.start_trial(lost, trial(0))
    store.acquire("digits", "second", 60)
    before = (store.study("digits"), store.trials("digits"), events(store, "digits"))

    with pytest.raises(LeaseLost, match="our epoch was 1"):
        write(store, lost)

    assert (store.study("digits"), store.trials("digits"), events(store, "digits")) == before


def test_a_released_study_is_free_and_its_old_lease_is_void(store: Store) -> None:
    lease = running(store)

    store.release(lease, StudyState.STOPPED, "stopped by request")

    study = store.study("digits")
    assert (study.state, study.message, study.owner) == (
        StudyState.STOPPED,
        "stopped by request",
        None,
    )
    with pytest.raises(LeaseLost):
        store.start_trial(lease, trial(0))
    assert store.acquire("digits", "next", 60).epoch == 2


def test_a_request_reaches_the_driver_until_the_next_one_starts(store: Store) -> None:
    lease = running(store)
    assert store.heartbeat(lease) is None

    store.request("digits", Request.PAUSE)
    store.request("digits", Request.STOP)

    assert store.heartbeat(lease) is Request.STOP
    assert store.heartbeat(lease) is Request.STOP
    store.release(lease, StudyState.STOPPED)
    store.request("digits", Request.CANCEL)
    assert store.heartbeat(store.acquire("digits", "next", 60)) is None


def test_a_heartbeat_renews_the_lease(store: Store) -> None:
    lease = running(store)
    before = store.study("digits").heartbeat_at

    store.heartbeat(lease)
    store.heartbeat(lease)

    after = store.study("digits").heartbeat_at
    assert before is not None
    assert after is not None
    assert after >= before


def test_the_log_is_read_from_where_one_left_off(store: Store) -> None:
    lease = running(store)
    store.set_state(lease, StudyState.RUNNING, "first \x00 message")
    seen = events(store, "digits")

    store.set_state(lease, StudyState.RUNNING, "second \ud800 message")

    assert [event.kind for event in seen] == [
        EventKind.CREATED,
        EventKind.ACQUIRED,
        EventKind.STATE,
    ]
    assert seen[-1].content == {"state": "running", "message": "first \\x00 message"}
    (new,) = events(store, "digits", seen[-1].id)
    assert new.content == {"state": "running", "message": "second \\ud800 message"}
    assert events(store, "digits", limit=2) == seen[:2]

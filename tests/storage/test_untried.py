"""A study that ended in failure before its first trial does not keep its name."""

import pytest

from bitfront.trial import StudyState
from storage.store import Store
from tests.support.store_samples import job, running, trial


@pytest.mark.parametrize("state", [StudyState.FAILED, StudyState.CANCELLED])
def test_a_study_that_failed_without_a_trial_frees_its_name(
    store: Store, state: StudyState
) -> None:
    store.release(running(store), state, "the class folder a has no images", "Traceback ...")

    store.replace_untried("digits")

    assert store.studies() == []
    store.create_study(job(), {})


def test_a_study_with_a_trial_is_kept(store: Store) -> None:
    lease = running(store)
    store.start_trial(lease, trial(0))
    store.release(lease, StudyState.FAILED, "no")

    store.replace_untried("digits")

    assert [study.name for study in store.studies()] == ["digits"]


def test_a_study_that_is_driven_is_kept(store: Store) -> None:
    running(store)

    store.replace_untried("digits")

    assert [study.name for study in store.studies()] == ["digits"]


def test_the_traceback_is_in_the_log_and_not_in_the_message(store: Store) -> None:
    store.release(running(store), StudyState.FAILED, "no images", "Traceback of a worker")

    record = store.study("digits")
    last = store.log("digits")[-1].event

    assert record.message == "no images"
    assert last.content["traceback"] == "Traceback of a worker"

"""What the store keeps of models that were built."""

from dataclasses import replace

import pytest

from bitfront.errors import UnknownStudy
from bitfront.trial import StudyState
from storage.artefacts import ArtefactRecord
from storage.store import Store
from tests.storage.test_crashes import LostCommit
from tests.support.store_samples import job, running

RECORD = ArtefactRecord(
    trial=3,
    target="packed",
    path="/models/small",
    nbytes=5_000_000_000,
    files={"card.json": "ab", "model.safetensors": "cd"},
    verification={"error": 0.25, "latency_s": {"1": 0.5}},
)


def test_artefacts_are_kept_in_the_order_in_which_they_were_built(store: Store) -> None:
    store.create_study(job(), {})
    later = replace(RECORD, path="/models/large", trial=4)

    store.put_artefact("digits", RECORD)
    store.put_artefact("digits", later)

    found = store.artefacts("digits")
    assert found == [RECORD, later]
    assert all(record.created_at is not None for record in found)


def test_a_folder_holds_one_artefact_at_a_time(store: Store) -> None:
    store.create_study(job(), {})
    other = replace(RECORD, trial=4, nbytes=1)

    store.put_artefact("digits", RECORD)
    store.put_artefact("digits", other)
    store.put_artefact("digits", other)

    assert store.artefacts("digits") == [other]


def test_studies_know_only_their_own_artefacts(store: Store) -> None:
    store.create_study(job(), {})
    store.create_study(job("letters"), {})

    store.put_artefact("digits", RECORD)

    assert store.artefacts("letters") == []
    with pytest.raises(UnknownStudy):
        store.put_artefact("words", RECORD)
    with pytest.raises(UnknownStudy):
        store.artefacts("words")


def test_a_study_that_is_deleted_takes_its_records_with_it(store: Store) -> None:
    lease = running(store)
    store.put_artefact("digits", RECORD)
    store.release(lease, StudyState.COMPLETE)

    store.delete_study("digits")
    store.create_study(job(), {})

    assert store.artefacts("digits") == []


def test_an_artefact_that_nobody_heard_was_recorded_counts_once(store: Store) -> None:
    store.create_study(job(), {})
    lost = LostCommit(store)

    store.put_artefact("digits", RECORD)

    assert lost.happened
    assert store.artefacts("digits") == [RECORD]

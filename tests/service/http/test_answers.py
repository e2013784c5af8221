"""Kept answers: true after each event in the end, and found no oftener than they are worth."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from bitfront.errors import UnknownStudy
from bitfront.trial import StudyState
from service.database_url import file_url
from service.http.answers import Answers
from storage.records import Lease
from storage.store import Store, open_store
from tests.support.store_samples import running, trial

TOOK_S = 2.0
REST_S = 100.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Count(BaseModel):
    trials: int


class Counter:
    """Counts the trials of a study, which takes two seconds of the clock."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.asked = 0

    def __call__(self) -> Count:
        self.asked += 1
        self._clock.now_s += TOOK_S
        return Count(trials=len(self._store.trials("digits")))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(file_url(tmp_path / "studies.db")) as store:
        yield store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def answers(store: Store, clock: Clock) -> Iterator[Answers]:
    answers = Answers(store, clock_s=clock)
    yield answers
    answers.close()


def begin(store: Store, lease: Lease, *numbers: int) -> None:
    for number in numbers:
        store.start_trial(lease, trial(number))


def test_an_answer_is_found_once_until_something_happens(
    store: Store, clock: Clock, answers: Answers
) -> None:
    begin(store, running(store), 0)
    count = Counter(store, clock)

    assert [answers.of("digits", "count", count).trials for _ in range(3)] == [1, 1, 1]
    clock.now_s += 1e6
    assert answers.of("digits", "count", count).trials == 1
    assert count.asked == 1


def test_an_old_answer_rests_then_is_found_behind_and_then_waited_for(
    store: Store, clock: Clock, answers: Answers
) -> None:
    lease = running(store)
    count = Counter(store, clock)
    answers.of("digits", "count", count)
    begin(store, lease, 0)

    clock.now_s += REST_S - 1
    assert answers.of("digits", "count", count).trials == 0
    assert count.asked == 1
    clock.now_s += 2
    assert answers.of("digits", "count", count).trials == 0  # and it is found again meanwhile
    answers._behind.submit(lambda: None).result()
    assert answers.of("digits", "count", count).trials == 1
    begin(store, lease, 1)
    clock.now_s += 2 * REST_S
    assert answers.of("digits", "count", count).trials == 2
    assert count.asked == 3


def test_no_answer_outlives_the_state_of_its_study_or_the_study(
    store: Store, clock: Clock, answers: Answers
) -> None:
    lease = running(store)
    count = Counter(store, clock)
    answers.of("digits", "count", count)
    begin(store, lease, 0)
    store.cancel_running(lease)
    store.release(lease, StudyState.CANCELLED)

    assert answers.of("digits", "count", count).trials == 1
    store.delete_study("digits")
    with pytest.raises(UnknownStudy):
        answers.of("digits", "count", count)
    running(store)
    assert answers.of("digits", "count", count).trials == 0


def test_what_is_made_from_an_old_answer_is_as_old(
    store: Store, clock: Clock, answers: Answers
) -> None:
    lease = running(store)
    count = Counter(store, clock)

    def twice() -> int:
        return 2 * answers.of("digits", "count", count).trials

    answers.of("digits", "count", count)
    begin(store, lease, 0)
    assert answers.of("digits", "twice", twice) == 0
    clock.now_s += 2 * REST_S
    assert answers.of("digits", "twice", twice) == 2


def test_who_asks_at_once_waits_for_one(store: Store, clock: Clock, answers: Answers) -> None:
    running(store)
    count = Counter(store, clock)
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        answers.of("digits", "count", count)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert count.asked == 1

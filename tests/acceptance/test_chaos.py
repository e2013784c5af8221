"""Things are killed at random and nothing is lost; and what checks that can fail."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bitfront.trial import Cause
from search.front import Front
from storage.store import Store, open_store
from tests.support.contract import (
    Redone,
    Row,
    StudyRows,
    charged,
    hypervolume,
    read_snapshot,
    read_witness,
    redone,
    unfinished,
    violations,
)
from tests.support.databases import Databases
from tests.support.store_samples import complete, configuration, fail, prune, running, show, trial

POINTS = [(0.5, 400.0), (0.3, 600.0), (0.6, 500.0), (0.2, 900.0)]
REFERENCE = {"error": 1.0, "nbytes": 1000.0}
PRUNED, RUNNING = 4, 5
LONGEST_CHAOS = 8


def fill(store: Store) -> None:
    """A study of four results (the third is no use), one early stop, and one running trial."""
    lease = running(store)
    store.set_reference(lease, REFERENCE)
    front = Front(list(REFERENCE.values()))
    for number, (error, nbytes) in enumerate(POINTS):
        store.start_trial(lease, trial(number))
        if number == 1:
            fail(store, lease, 1, 1, Cause.NODE_LOST, "gone", retry=True)
        values = {"error": error, "nbytes": nbytes}
        change = front.add(number, (error, nbytes))
        complete(store, lease, number, values, at=1 + (number == 1), front=change)
    for number in (PRUNED, RUNNING):
        store.start_trial(lease, trial(number))
    show(store, lease, PRUNED, 1, 0, 0.9)
    prune(store, lease, PRUNED, 1, seconds=0.1)
    store.save_test_values(lease, {0: {"error": 0.45}})


class File:
    """A database of one study, to be broken by hand."""

    def __init__(self, url: str) -> None:
        self.url = url

    def execute(self, statement: str) -> None:
        path = self.url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as connection, connection:
            assert connection.execute(statement).rowcount > 0

    @property
    def study(self) -> StudyRows:
        return read_snapshot(self.url).studies["digits"]


@pytest.fixture
def file(sqlite_databases: Databases) -> File:
    url = sqlite_databases.ready()
    with open_store(url, create=False) as store:
        fill(store)
    return File(url)


def test_a_sound_study_breaks_nothing(store: Store, database_url: str) -> None:
    fill(store)

    first = read_snapshot(database_url)

    assert violations(first) == []
    assert violations(read_snapshot(database_url), first) == []


BREAKS = {
    "a doubled result": (
        "INSERT INTO event (study_id, at, kind, trial, content)"
        " SELECT study_id, at, kind, trial, content FROM event WHERE kind = 'completed'"
        " AND trial = 1",
        "trial 1 is complete, and has 2 results",
    ),
    "a result that was counted twice": (
        "INSERT INTO hypervolume SELECT study_id, 5, hypervolume, at FROM hypervolume"
        " WHERE completed = 4",
        "4 trials are complete, but results were counted as",
    ),
    "a result without a line in the log": (
        "DELETE FROM event WHERE kind = 'completed' AND trial = 2",
        "trial 2 is complete, and has 0 results",
    ),
    "a front that lacks a point": (
        "DELETE FROM front WHERE trial_id = (SELECT id FROM trial WHERE number = 3)",
        "its front lacks trials [3]",
    ),
    "a front with a dominated point": (
        "INSERT INTO front SELECT id, study_id, created_at FROM trial WHERE number = 2",
        "has trials [2] too many",
    ),
    "a front with an infeasible point": (
        "UPDATE trial SET feasible = 0 WHERE number = 0",
        "has trials [0] too many",
    ),
    "a fallen hypervolume": (
        "UPDATE hypervolume SET hypervolume = 0.01 WHERE completed = 4",
        "its hypervolume falls",
    ),
    "a wrong hypervolume": (
        "UPDATE hypervolume SET hypervolume = 0.99 WHERE completed = 4",
        "the hypervolume of its first 4 results",
    ),
    "an attempt without a cause": (
        "UPDATE attempt SET cause = NULL WHERE cause = 'node_lost'",
        "attempt 1 at trial 1 ended without a cause",
    ),
    "a missing attempt": (
        "DELETE FROM attempt WHERE cause = 'node_lost'",
        "trial 1 is at attempt 2, but has 1",
    ),
    "a result with a cause": (
        "UPDATE attempt SET cause = 'node_lost' WHERE number = 2",
        "trial 1 is complete, but its last attempt's cause is node_lost",
    ),
    "a number that was left out": (
        "UPDATE trial SET number = 9 WHERE number = 5",
        "its trials are not numbered once each",
    ),
    "an epoch that was used twice": (
        "INSERT INTO event (study_id, at, kind, content)"
        " SELECT study_id, at, 'taken_over', content FROM event WHERE kind = 'acquired'",
        "its drivers had the epochs [1, 1]",
    ),
    "an epoch that nobody took": ("UPDATE study SET epoch = 7", "its epoch is 7 after 1 drivers"),
    "a state that no event tells of": (
        "UPDATE trial SET state = 'cancelled', finished_at = created_at WHERE number = 5",
        "trial 5 is ('cancelled', 1), its events say ('running', 1)",
    ),
    "an attempt that no event tells of": (
        "DELETE FROM event WHERE kind = 'attempt_failed'",
        "trial 1 is ('complete', 2), its events say ('complete', 1)",
    ),
    "a result after the end": (
        "INSERT INTO event (study_id, at, kind, trial, content)"
        " SELECT study_id, at, 'failed', trial, content FROM event WHERE kind = 'completed'"
        " AND trial = 0",
        "trial 0 is failed while complete",
    ),
    "a trial that was tested twice": (
        "INSERT INTO event (study_id, at, kind, content)"
        " SELECT study_id, at, kind, content FROM event WHERE kind = 'tested'",
        "trial 0 was tested 2 times",
    ),
}


@pytest.mark.parametrize(("statement", "expected"), BREAKS.values(), ids=BREAKS)
def test_the_checker_finds(file: File, statement: str, expected: str) -> None:
    file.execute(statement)

    assert expected in "\n".join(violations(read_snapshot(file.url)))


LOSSES = {
    "a lost trial": ("DELETE FROM trial WHERE number = 3", "the trial (1, 3) is gone"),
    "a changed result": (
        "UPDATE trial SET nbytes = 401 WHERE number = 0",
        "{'nbytes': (400.0, 401",
    ),
    "a result that is none any more": (
        "UPDATE trial SET state = 'failed', error = NULL WHERE number = 0",
        "the trial (1, 0) has changed",
    ),
    "a changed test result": ("UPDATE trial SET test_error = 0.4 WHERE number = 0", "test_error"),
    "a lost early stop": ("DELETE FROM trial WHERE number = 4", "the trial (1, 4) is gone"),
    "a lost stage of a finished trial": ("DELETE FROM intermediate", "the intermediate"),
    "a lost attempt": ("DELETE FROM attempt WHERE cause = 'node_lost'", "the attempt"),
    "a lost line of the log": ("DELETE FROM event WHERE kind = 'tested'", "the event"),
    "a changed evaluation": ("UPDATE evaluation SET seconds = 9", "the evaluation"),
    "a changed hypervolume": ("UPDATE hypervolume SET hypervolume = 0.5", "the hypervolume"),
}


@pytest.mark.parametrize(("statement", "expected"), LOSSES.values(), ids=LOSSES)
def test_the_checker_misses(file: File, statement: str, expected: str) -> None:
    before = read_snapshot(file.url)

    file.execute(statement)

    assert expected in "\n".join(violations(read_snapshot(file.url), before))


def test_a_configuration_under_two_numbers_is_found(file: File) -> None:
    snapshot = read_snapshot(file.url)
    # The schema itself refuses it.
    snapshot.tables["trial"][1]["configuration_digest"] = configuration(0).digest

    assert "is counted 2 times" in "\n".join(violations(snapshot))


def test_what_a_finished_study_left_open_is_found(file: File) -> None:
    assert "\n".join(unfinished(file.study)).split("\n") == [
        "study digits: it is profiling: None",
        "study digits: driver of digits still has its lease",
        "study digits: trial 5 is running",
        "study digits: it has 6 of 100 trials",
        *(f"study digits: trial {number} was not tested" for number in (1, 3)),
    ]


def test_the_checkers_hypervolume_counts_cells() -> None:
    assert hypervolume([(0.5, 0.25), (0.25, 0.5)], (1, 1)) == pytest.approx(0.5 * 0.75 + 0.25 * 0.5)
    assert hypervolume([(0.5, 0.5, 0.5), (2.0, 0.1, 0.1)], (1, 1, 1)) == pytest.approx(0.125)
    assert hypervolume([], (1, 1)) == 0


def attempt(event: str, at_s: float, number: int, count: int = 1, **more: object) -> Row:
    content = configuration(number).to_dict()
    facts = {"event": f"attempt {event}", "pid": 1, "at_s": at_s, "number": number}
    return {**facts, "attempt": count, "configuration": content, **more}


def result(number: int) -> dict[str, object]:
    error, nbytes = POINTS[number]
    return {"values": {"error": error, "nbytes": nbytes}, "metrics": {}}


def log_of(study: StudyRows) -> list[Row]:
    """What workers wrote who did everything as it should be."""
    lines = []
    for row in study.complete:
        started_s, number = row["created_at"], row["number"]
        lines.append(attempt("started", started_s, number, row["attempt"]))
        ended = attempt("ended", started_s, number, row["attempt"], outcome=result(number))
        lines.append(ended)
    return lines


def test_sound_work_is_done_once(file: File) -> None:
    assert redone(file.study, log_of(file.study)) == Redone()


def test_an_evaluation_of_a_complete_trial_is_found(file: File) -> None:
    ended_s = file.study.trials[0]["finished_at"]

    found = redone(file.study, [*log_of(file.study), attempt("started", ended_s + 0.01, 0, 2)])

    assert len(found.completed) == 1
    assert "the trial was complete already" in found.completed[0]


def test_a_second_evaluation_of_a_spooled_result_is_found(file: File) -> None:
    started_s = file.study.trials[RUNNING]["created_at"]
    done = attempt("ended", started_s + 1, RUNNING, outcome={"values": {}, "metrics": {}})
    again = attempt("started", started_s + 2, RUNNING, 2)

    found = redone(file.study, [*log_of(file.study), done, again])

    assert (len(found.unrecorded), len(found.late)) == (1, 0)


def test_a_result_of_an_attempt_that_was_given_up_came_late(file: File) -> None:
    file.execute(
        "UPDATE attempt SET finished_at = started_at, cause = 'node_lost'"
        " WHERE trial_id = (SELECT id FROM trial WHERE number = 5)"
    )
    started_s = file.study.trials[RUNNING]["created_at"]
    done = attempt("ended", started_s + 1, RUNNING, outcome={"values": {}, "metrics": {}})
    again = attempt("started", started_s + 2, RUNNING, 2)

    found = redone(file.study, [*log_of(file.study), done, again])

    assert (len(found.unrecorded), len(found.late)) == (0, 1)


def test_a_result_that_no_worker_reported_is_found(file: File) -> None:
    lines = [line for line in log_of(file.study) if line["number"] != 3]
    lines[1]["outcome"] = result(2)
    lines[2]["configuration"] = configuration(7).to_dict()

    found = redone(file.study, lines).contradictions

    assert found == [
        "trial 0 has (0.5, 400.0), its worker reported (0.6, 500.0)",
        "trial 1 was begun with another configuration",
        "no worker began attempt 1 at trial 3",
    ]


def training(event: str, step: int, at_s: float, pid: int = 1) -> Row:
    name = f"{RUNNING:06d}.safetensors"
    return {
        "event": f"training {event}",
        "pid": pid,
        "at_s": at_s,
        "checkpoint": name,
        "step": step,
    }


def test_what_a_killed_training_loses_is_counted_from_its_checkpoint(file: File) -> None:
    before = [training("stepped", step, step / 10) for step in range(1, 11)]
    before.insert(4, training("saved", 4, 0.41))
    after = [training("resumed", 4, 9.0, pid=2), training("stepped", 5, 9.1, pid=2)]

    found = redone(file.study, [*before, *after])

    (lost,) = found.interruptions
    assert (lost.trial, lost.steps) == (RUNNING, 6)
    assert lost.seconds == pytest.approx(1.0 - 0.41)
    assert lost.bound_s == pytest.approx(0.9 - 0.41)
    assert found.beyond(0.5) == []
    assert len(found.beyond(0.4)) == 1
    assert found.overlaps == []


def test_a_training_that_starts_anew_has_lost_all(file: File) -> None:
    before = [training("stepped", step, step / 10) for step in range(1, 11)]

    found = redone(file.study, [*before, training("stepped", 1, 9.0, pid=2)])

    (lost,) = found.interruptions
    assert lost.steps == 10
    assert lost.seconds == pytest.approx(0.9)
    assert lost.bound_s == pytest.approx(0.8)


def test_a_training_that_goes_on_where_it_ended_has_lost_nothing(file: File) -> None:
    before = [training("stepped", 1, 1.0), training("stepped", 2, 2.0)]

    assert redone(file.study, [*before, training("resumed", 2, 9.0, pid=2)]).interruptions == []


def test_an_attempt_that_stays_where_it_was_lost_is_found(file: File) -> None:
    lost, again = attempt("started", 0, 1, 1), attempt("started", 1, 1, 2)

    assert len(redone(file.study, [lost, again]).pinned) == 1
    assert redone(file.study, [lost, {**again, "pid": 2}]).pinned == []


def test_a_kill_that_was_charged_to_the_job_is_found(file: File) -> None:
    assert charged(file.study) == []

    file.execute("UPDATE attempt SET cause = 'user_error' WHERE cause = 'node_lost'")

    assert charged(file.study) == ["attempt 1 at trial 1 ended with user_error: gone"]


def test_two_processes_at_one_training_are_found(file: File) -> None:
    one = [training("stepped", 1, 1.0), training("stepped", 2, 3.0)]
    two = [training("stepped", 1, 2.0, pid=2), training("stepped", 2, 4.0, pid=2)]

    found = redone(file.study, sorted([*one, *two], key=lambda line: line["at_s"]))

    assert found.overlaps == [f"trial {RUNNING} was trained by 1, 2 at once"]


def test_a_torn_last_line_of_the_log_is_none(tmp_path: Path) -> None:
    path = tmp_path / "witness.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b"}\n{"eve')

    assert [line["event"] for line in read_witness(path)] == ["a", "b"]
    assert [line["event"] for line in read_witness(path, len('{"event": "a"}\n'))] == ["b"]
    assert read_witness(tmp_path / "missing") == []


@pytest.mark.usefixtures("ray_folder")
@pytest.mark.timeout(900)
def test_a_study_outlives_its_driver_a_worker_and_a_node(tmp_path: Path) -> None:
    from benchmarks.chaos import Kind, Round, run_rounds

    rounds: list[Round] = []

    def lost() -> int:
        return sum(played.lost for played in rounds)

    def kinds() -> Iterator[Kind]:
        yield from (Kind.DRIVER, Kind.WORKER, Kind.NODE)
        # A moment between two attempts costs none: then one worker more is struck.
        while not lost() and len(rounds) < LONGEST_CHAOS:
            yield Kind.WORKER

    left = run_rounds(
        tmp_path, "sqlite", kinds(), seed=0, trials=8, steps=100, on_round=rounds.append
    )

    assert not any(played.violations for played in rounds)
    assert left == []
    assert lost() > 0


def test_a_database_without_tables_has_no_studies(databases: Databases) -> None:
    url = databases.empty()
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).touch()

    assert read_snapshot(url).studies == {}

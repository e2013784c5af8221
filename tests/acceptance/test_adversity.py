"""Full and read-only disks, and clocks that jump: a clear error or a correct recovery."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from bitfront.attempt import Evaluated
from bitfront.errors import LeaseHeld, LeaseLost
from bitfront.plan import Configuration
from bitfront.trial import Evaluation
from search.pruner import Pruner
from search.race import Race
from storage.store import Store
from storage.tables import Study as StudyRow
from tests.support.store_samples import attempt, job, trial
from tests.support.studies import Study
from workers.process import model_cache as resident
from workers.process import preemption as ending
from workers.process import trial_worker as trials
from workers.process.trial_worker import TrialTask, TrialWorker
from workers.scheduling.spool import Spool
from workers.scheduling.worker_config import WorkerConfig


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of 6 MB, which a test may fill or make read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Takes all the space that is left."""
    filler = place / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


COMPLETE = "SELECT number, configuration_digest, error, nbytes FROM trial WHERE state = 'complete'"


@pytest.mark.usefixtures("ray_folder")
@pytest.mark.timeout(600)
def test_a_full_disk_ends_a_study_in_one_sentence_and_loses_nothing(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFRONT_DB_PATIENCE_S", "2")
    study = Study(small_disk, "crowded", trials=12)
    study.log = small_disk.parent / "log.txt"
    driver = study.start("submit", str(study.job))
    study.wait_for(driver, lambda: len(study.rows(COMPLETE)) >= 4)

    filler = fill(small_disk)
    assert driver.wait(timeout=240) == 2, study.log.read_text()

    told = study.log.read_text()
    assert "the disk is full: free some space and resume the study" in told
    assert "Traceback" not in told
    filler.unlink()
    done = study.rows(COMPLETE)
    with closing(sqlite3.connect(study.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert study.start("resume", "crowded").wait(timeout=240) == 0, study.log.read_text()
    assert set(done) <= set(study.rows(COMPLETE))
    assert len(study.rows(COMPLETE)) == 12


def test_a_read_only_state_folder_is_named(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    job_file = small_disk.parent / "job.yaml"
    job_file.write_text(
        "study: shut\nmodel: {source: reference}\ndata: {source: reference}\nstop: {trials: 2}\n"
    )

    refused = subprocess.run(
        [sys.executable, "-m", "service", "submit", str(job_file)],
        env={**os.environ, "BITFRONT_DB": str(small_disk / "state" / "bitfront.db")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert refused.returncode == 2
    assert f"the folder {small_disk / 'state'} of the database cannot be made" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_result_that_cannot_be_spooled_is_still_returned(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FixedEvaluator:
        spec = job()

        def evaluate(self, _configuration: Configuration) -> Evaluation:
            return Evaluation({"error": 0.5, "nbytes": 8.0}, {})

    monkeypatch.setattr(resident, "evaluator", lambda _: FixedEvaluator())
    monkeypatch.setattr(ending, "node_is_draining", lambda: False)
    monkeypatch.setattr("workers.process.preemption.signal.signal", lambda *_: None)
    monkeypatch.setattr(trials, "set_up", lambda: None)
    given = attempt(3)
    config = WorkerConfig(job())
    fill(small_disk)

    reply = TrialWorker().begin(
        TrialTask("full", 1, config, str(small_disk), given, Pruner(), Race())
    )

    assert isinstance(reply.content, Evaluated)
    assert Spool(small_disk).read(3, 1) is None


@pytest.mark.parametrize("jump_s", [-7200, 7200], ids=["back", "forward"])
def test_a_clock_that_jumps_frees_a_dead_driver_and_fences_a_live_one(
    store: Store, jump_s: int
) -> None:
    store.create_study(job(), {})
    first = store.acquire("digits", "first", 30)
    with pytest.raises(LeaseHeld):
        store.acquire("digits", "second", 30)

    move_heartbeat(store, -jump_s)
    second = store.acquire("digits", "second", 30)

    assert second.epoch == first.epoch + 1
    with pytest.raises(LeaseLost):
        store.start_trial(first, trial(0))
    store.start_trial(second, trial(0))
    assert [found.number for found in store.trials("digits")] == [0]


def test_a_live_driver_keeps_its_study_over_a_jump_with_its_next_heartbeat(store: Store) -> None:
    store.create_study(job(), {})
    first = store.acquire("digits", "first", 30)
    move_heartbeat(store, 7200)

    store.heartbeat(first)

    with pytest.raises(LeaseHeld):
        store.acquire("digits", "second", 30)


def move_heartbeat(store: Store, seconds: int) -> None:
    """Dates the last heartbeat as if the database's clock had been moved since."""
    beaten = store.study("digits").heartbeat_at
    assert beaten is not None
    with store._database.engine.begin() as connection:
        connection.execute(
            update(StudyRow).values(heartbeat_at=beaten + timedelta(seconds=seconds))
        )

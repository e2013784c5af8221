"""Kill the driver with SIGKILL while it profiles and while it runs trials; resume; lose nothing."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from search.front import pareto_front

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

JOB = """
study: killed
model: {source: reference}
data:
  source: reference
  samples: {calibration: 32, tuning: 64, selection: 128, test: 64}
space:
  weight_bits: [3, 8]
  recovery: {context_length: [0], reduction: [0, 4], blend: [0.2], steps: [20]}
partition: {grain: layer}
search: {budgets: 5, workers: 2}
stop: {trials: 28}
"""


class Study:
    """A job that is run and killed as a person's own process would be."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "bitfront.db"
        self.job = folder / "job.yaml"
        self.job.write_text(JOB)
        self.log = folder / "log.txt"

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "service", *arguments, "--db", str(self.database)]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        if not self.database.exists():
            return []
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            try:
                return connection.execute(statement).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def count(self, statement: str) -> int:
        rows = self.rows(statement)
        return int(str(rows[0][0])) if rows else 0

    def kill_when(self, driver: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not ready():
            assert driver.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()


def test_a_study_outlives_its_drivers(tmp_path: Path) -> None:
    study = Study(tmp_path)
    complete = "SELECT count(*) FROM trial WHERE state = 'complete'"
    cells = "SELECT count(*) FROM cell"
    done: dict[int, tuple[object, ...]] = {}

    def completed() -> dict[int, tuple[object, ...]]:
        statement = "SELECT number, configuration_digest, error, nbytes, attempt FROM trial"
        return {int(str(row[0])): row for row in study.rows(f"{statement} WHERE state='complete'")}

    study.kill_when(study.start("submit", str(study.job)), lambda: study.count(cells) >= 10)
    measured = study.rows("SELECT digest, error, created_at FROM cell")

    for threshold in (2, 12, 24):
        driver = study.start("resume", "killed")
        study.kill_when(driver, lambda: study.count(complete) >= threshold)  # noqa: B023 - used at once
        now = completed()
        assert {number: now[number] for number in done} == done
        done = now
    last = study.start("resume", "killed")
    assert last.wait(timeout=240) == 0, study.log.read_text()

    now = completed()
    assert {number: now[number] for number in done} == done
    assert sorted(now) == list(range(28))
    assert study.count("SELECT count(*) FROM trial") == 28
    assert study.count("SELECT count(DISTINCT configuration_digest) FROM trial") == 28
    assert study.rows("SELECT state FROM study") == [("complete",)]
    again = study.rows("SELECT digest, error, created_at FROM cell")
    assert set(measured) <= set(again)
    assert len(again) == len({row[0] for row in again})
    _check_front(study)


def _check_front(study: Study) -> None:
    rows = study.rows("SELECT number, error, nbytes FROM trial ORDER BY number")
    values = np.array([row[1:] for row in rows], dtype=np.float64)
    expected = [rows[index][0] for index in pareto_front(values)]
    stored = study.rows(
        "SELECT trial.number FROM front JOIN trial ON trial.id = front.trial_id ORDER BY 1"
    )
    assert [row[0] for row in stored] == expected
    tested = "SELECT count(*) FROM front JOIN trial ON trial.id = trial_id WHERE test_error IS NULL"
    assert study.count(tested) == 0
    volumes = [
        row[0] for row in study.rows("SELECT hypervolume FROM hypervolume ORDER BY completed")
    ]
    assert volumes == sorted(volumes, key=float)

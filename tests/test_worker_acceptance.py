"""A trial worker that is killed costs its study no trial."""

import time
from pathlib import Path

import psutil
import pytest

from tests.studies import Study

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def find_trial_worker(driver_pid: int) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process(driver_pid).children(recursive=True):
            if process.is_running() and "TrialWorker" in " ".join(process.cmdline()):
                return process
        time.sleep(0.05)
    raise AssertionError("no trial worker was started")


def test_a_killed_worker_costs_no_trial(tmp_path: Path) -> None:
    study = Study(tmp_path, "workers", trials=24)
    driver = study.start("submit", str(study.job))
    complete = "SELECT count(*) FROM trial WHERE state = 'complete'"
    study.wait_for(driver, lambda: study.count(complete) >= 4)

    find_trial_worker(driver.pid).kill()

    assert driver.wait(timeout=240) == 0, study.log.read_text()
    assert study.rows("SELECT DISTINCT state FROM trial") == [("complete",)]
    assert study.count(complete) == 24
    causes = study.rows("SELECT DISTINCT cause FROM attempt WHERE cause IS NOT NULL")
    assert causes in ([], [("node_lost",)])

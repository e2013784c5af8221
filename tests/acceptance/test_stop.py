"""Stop finishes what runs, cancel ends at once; both leave a study that resumes."""

import time
from pathlib import Path

import pytest

from tests.support.studies import Study

pytestmark = [pytest.mark.usefixtures("ray_folder"), pytest.mark.timeout(600)]


def test_a_study_is_stopped_cancelled_and_resumed_from_another_process(tmp_path: Path) -> None:
    study = Study(tmp_path, "asked", trials=40)
    complete = "SELECT count(*) FROM trial WHERE state = 'complete'"
    states = "SELECT DISTINCT state FROM trial ORDER BY 1"

    driver = study.start("submit", str(study.job))
    study.wait_for(driver, lambda: study.count(complete) >= 2)
    assert study.start("stop", "asked").wait(timeout=60) == 0
    assert driver.wait(timeout=120) == 0, study.log.read_text()

    assert study.rows("SELECT state FROM study") == [("stopped",)]
    assert study.rows(states) == [("complete",)]
    stopped_at = study.count(complete)
    assert 2 <= stopped_at < 40

    driver = study.start("resume", "asked")
    study.wait_for(driver, lambda: study.count(complete) > stopped_at)
    assert study.start("cancel", "asked").wait(timeout=60) == 0
    asked_s = time.monotonic()
    assert driver.wait(timeout=120) == 1, study.log.read_text()

    assert time.monotonic() - asked_s < 60
    assert study.rows("SELECT state FROM study") == [("cancelled",)]
    assert set(study.rows(states)) <= {("cancelled",), ("complete",)}
    assert study.start("front", "asked").wait(timeout=60) == 0

    assert study.start("resume", "asked").wait(timeout=240) == 0, study.log.read_text()
    assert study.rows("SELECT state FROM study") == [("complete",)]
    assert study.count("SELECT count(*) FROM trial") == 40
    assert study.rows(states) == [("complete",)]


def test_a_second_driver_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    study = Study(tmp_path, "held", trials=40)
    driver = study.start("submit", str(study.job))
    study.wait_for(driver, lambda: study.count("SELECT count(*) FROM study WHERE epoch > 0") > 0)

    second = study.start("resume", "held")

    assert second.wait(timeout=60) == 2
    assert "study 'held' is being run by" in study.log.read_text()
    driver.terminate()
    # 15 where Ray was still connecting: until then its own handler of SIGTERM holds.
    assert driver.wait(timeout=120) in (1, 15)
    assert study.rows("SELECT state, owner FROM study") == [("cancelled", None)]

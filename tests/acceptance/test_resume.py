"""Kill the driver with SIGKILL while it profiles and while it runs trials; resume; lose nothing."""

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from search.front import pareto_front
from tests.support.studies import JOB, Study

pytestmark = [pytest.mark.usefixtures("ray_folder"), pytest.mark.timeout(600)]

STAGES = (
    "start a worker",
    "load the model, calibrate it",
    "evaluate full precision",
    "hash the samples",
    "measure the layers' entropies",
)


def test_a_study_outlives_its_drivers(tmp_path: Path) -> None:
    study = Study(tmp_path, "killed", trials=18, job=f"{JOB}tracking: {{mlflow: 'sqlite:///m.db'}}")
    complete = "SELECT count(*) FROM trial WHERE state = 'complete'"
    cells = "SELECT count(*) FROM cell"
    done: dict[int, tuple[object, ...]] = {}

    def completed() -> dict[int, tuple[object, ...]]:
        statement = "SELECT number, configuration_digest, error, nbytes, attempt FROM trial"
        return {int(str(row[0])): row for row in study.rows(f"{statement} WHERE state='complete'")}

    study.kill_when(study.start("submit", str(study.job)), lambda: study.count(cells) >= 10)
    measured = study.rows("SELECT digest, error, created_at FROM cell")
    told = study.log.read_text().splitlines()
    assert [told.index(stage) for stage in STAGES] == sorted(map(told.index, STAGES))

    for threshold in (2, 8, 14):
        driver = study.start("resume", "killed")
        study.kill_when(driver, lambda: study.count(complete) >= threshold)  # noqa: B023 - used at once
        now = completed()
        assert {number: now[number] for number in done} == done
        done = now
    last = study.start("resume", "killed")
    assert last.wait(timeout=240) == 0, study.log.read_text()

    now = completed()
    assert {number: now[number] for number in done} == done
    assert sorted(now) == list(range(18))
    assert study.count("SELECT count(*) FROM trial") == 18
    assert study.count("SELECT count(DISTINCT configuration_digest) FROM trial") == 18
    assert study.rows("SELECT state FROM study") == [("complete",)]
    again = study.rows("SELECT digest, error, created_at FROM cell")
    assert set(measured) <= set(again)
    assert len(again) == len({row[0] for row in again})
    _check_front(study)
    _check_mlflow(study, tmp_path / "m.db")


def _check_mlflow(study: Study, path: Path) -> None:
    """Each trial is there once, with what was measured, whichever driver told it."""
    client = MlflowClient(tracking_uri=f"sqlite:///{path}")
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id]))
    told = [
        (int(run.data.tags["bitfront.trial"]), run.data.metrics["error"])
        for run in runs
        if "bitfront.trial" in run.data.tags
    ]
    assert sorted(told) == study.rows("SELECT number, error FROM trial ORDER BY number")
    assert [(run.info.run_name, run.info.status) for run in runs if run.info.run_name == "killed"]
    assert {run.info.status for run in runs} == {"FINISHED"}


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
    rows = study.rows("SELECT hypervolume FROM hypervolume ORDER BY completed")
    volumes = [float(str(row[0])) for row in rows]
    assert volumes == sorted(volumes)

"""A trial worker that is killed costs its study no trial, and its recovery few steps."""

import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from objectives.evaluation.evaluator import Evaluator
from storage.store import open_store
from tests.support.studies import Study

pytestmark = [pytest.mark.usefixtures("ray_folder"), pytest.mark.timeout(600)]


def find_trial_worker(driver_pid: int) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process(driver_pid).children(recursive=True):
            with suppress(psutil.Error):  # others of Ray's processes come and go
                if "TrialWorker" in " ".join(process.cmdline()):
                    return process
        time.sleep(0.05)
    raise AssertionError("no trial worker was started")


def test_a_killed_worker_costs_no_trial(tmp_path: Path) -> None:
    study = Study(tmp_path, "workers", trials=12)
    driver = study.start("submit", str(study.job))
    complete = "SELECT count(*) FROM trial WHERE state = 'complete'"
    study.wait_for(driver, lambda: study.count(complete) >= 4)

    find_trial_worker(driver.pid).kill()

    assert driver.wait(timeout=240) == 0, study.log.read_text()
    assert study.rows("SELECT DISTINCT state FROM trial") == [("complete",)]
    assert study.count(complete) == 12
    causes = study.rows("SELECT DISTINCT cause FROM attempt WHERE cause IS NOT NULL")
    assert causes in ([], [("node_lost",)])


LONG = """
model: {source: reference, device: cpu}
data:
  source: reference
  samples: {calibration: 32, tuning: 64, selection: 128, test: 64}
quantizer: {rounding: nearest}
space:
  weight_bits: [3, 8]
  recovery: {context_length: [4], reduction: [4], blend: [0.2], steps: [600]}
partition: {granularity: layer}
search: {budgets: 2, workers: 1, early_stop: false, checkpoint_s: 0.05}
"""


def test_a_killed_workers_recovery_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    study = Study(tmp_path, "recovery", trials=6, job=LONG)
    driver = study.start("submit", str(study.job))
    spool = tmp_path / "bitfront.db.spool"
    study.wait_for(driver, lambda: study.count("SELECT count(*) FROM trial") > 0)
    worker = find_trial_worker(driver.pid)
    study.wait_for(driver, lambda: any(spool.glob("*/*.safetensors")))
    worker.kill()
    (checkpoint,) = spool.glob("*/*.safetensors")

    assert driver.wait(timeout=240) == 0, study.log.read_text()
    number = int(checkpoint.stem)
    lost = study.rows(
        "SELECT trial.number FROM attempt JOIN trial ON trial.id = trial_id"
        " WHERE attempt.cause = 'node_lost'"
    )
    assert lost == [(number,)]
    assert "trained from its start" not in study.log.read_text()
    # The plan's own error, which comes first, was not measured a second time.
    again = study.rows(
        "SELECT trial.number, reported_at < started_at FROM intermediate"
        " JOIN attempt USING (trial_id) JOIN trial ON trial.id = trial_id"
        " WHERE attempt.number = 2 AND step = 0"
    )
    assert again == [(number, 1)]
    assert not any(spool.glob("*/*.safetensors"))
    with open_store(f"sqlite:///{study.database}", create=False) as store:
        trial = store.trials("recovery")[number]
        spec = store.study("recovery").spec
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray's workers have it
    try:
        undisturbed = Evaluator.from_spec(spec).evaluate(trial.configuration)
    finally:
        torch.set_num_threads(threads)
    assert trial.metrics["loss_nats"] == undisturbed.metrics["loss_nats"]
    # A stored trial has every figure among its values, objective or not.
    figures = {**undisturbed.metrics, **undisturbed.values}
    assert trial.values.keys() >= undisturbed.values.keys()
    assert trial.values == {name: figures[name] for name in trial.values}

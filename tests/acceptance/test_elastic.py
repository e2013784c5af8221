"""Nodes come and go, studies share a cluster, pause, and are told to end: nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bitfront.trial import StudyState, TrialState
from storage.store import open_store
from tests.support.clusters import Head, head, kill, node
from tests.support.studies import JOB

pytestmark = [pytest.mark.usefixtures("ray_folder"), pytest.mark.timeout(900)]

LONG = """
model: {source: reference, device: cpu}
data:
  source: reference
  samples: {calibration: 32, tuning: 64, selection: 128, test: 64}
quantizer: {rounding: nearest}
space:
  weight_bits: [3, 8]
  recovery: {context_length: [4], reduction: [4], blend: [0.2], steps: [2000]}
partition: {granularity: layer}
search: {budgets: 2, workers: 1, early_stop: false, checkpoint_s: 600}
"""


@dataclass(frozen=True)
class Place:
    """A cluster whose head takes no trials, and the folder of its databases."""

    cluster: Head
    folder: Path
    environment: Mapping[str, str]
    started: list[subprocess.Popen[bytes]]

    def url(self, study: str) -> str:
        return f"sqlite:///{self.folder}/{study}.db"

    def start(self, study: str, *arguments: str) -> subprocess.Popen[bytes]:
        """One command of bitfront's, beside the study's own database."""
        log = (self.folder / f"{study}.log").open("ab")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", *arguments],
                env={**os.environ, **self.environment, "BITFRONT_DB": self.url(study)},
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        return process

    def submit(self, study: str, trials: int, job: str = JOB) -> subprocess.Popen[bytes]:
        path = self.folder / f"{study}.yaml"
        path.write_text(f"study: {study}\nstop: {{trials: {trials}}}{job}")
        return self.start(study, "submit", str(path), "--address", self.cluster.address)

    def log(self, study: str) -> str:
        return (self.folder / f"{study}.log").read_text()

    def finished(self, study: str) -> int:
        if not (self.folder / f"{study}.db").exists():
            return 0
        with open_store(self.url(study)) as store:
            return next((s.counts[TrialState.COMPLETE] for s in store.studies()), 0)

    def state(self, study: str) -> StudyState:
        with open_store(self.url(study)) as store:
            return store.study(study).state

    def witness(self, event: str) -> list[dict[str, object]]:
        path = Path(self.environment["BITFRONT_WITNESS"])
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in map(json.loads, lines) if line["event"] == event]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, ray_folder: str) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("elastic")
    environment = {
        "BITFRONT_WITNESS": str(folder / "witness"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "20",
    }
    with head(environment, num_cpus=0) as cluster:
        place = Place(cluster, folder, environment, [])
        yield place
        for process in place.started:
            process.kill()
            process.wait()


def wait_for(
    ready: Callable[[], bool], driver: subprocess.Popen[bytes], seconds: float = 240
) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert driver.poll() is None, "the driver ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_nodes_that_join_get_trials_and_nodes_that_leave_lose_none(place: Place) -> None:
    with ExitStack() as nodes:
        driver = place.submit("elastic", 60)
        nodes.enter_context(node(place.cluster, place.environment))
        wait_for(lambda: place.finished("elastic") >= 2, driver)
        second = nodes.enter_context(node(place.cluster, place.environment))

        def workers() -> int:
            with open_store(place.url("elastic")) as store:
                trials = store.attempts("elastic")
            return len({attempt.worker for attempt in trials if attempt.worker})

        wait_for(lambda: workers() >= 2, driver)
        kill(second)
        assert driver.wait(timeout=300) == 0, place.log("elastic")

    with open_store(place.url("elastic")) as store:
        states = [trial.state for trial in store.trials("elastic")]
        causes = {attempt.cause for attempt in store.attempts("elastic")}
    assert states == [TrialState.COMPLETE] * 60
    assert causes <= {None, "node_lost"}


def test_a_second_study_gets_its_share_of_a_cluster_that_is_full(place: Place) -> None:
    with node(place.cluster, place.environment, num_cpus=2):
        first = place.submit("first", 1500)
        wait_for(lambda: place.finished("first") >= 4, first)

        second = place.submit("second", 16)
        assert second.wait(timeout=300) == 0, place.log("second")

        assert first.poll() is None
        done = place.finished("first")
        wait_for(lambda: place.finished("first") >= done + 4, first)

        assert place.start("first", "pause", "first").wait(timeout=60) == 0
        wait_for(lambda: place.state("first") is StudyState.PAUSED, first, 60)
        paused_at = place.finished("first")
        with open_store(place.url("first")) as store:
            assert store.status("first").counts[TrialState.RUNNING] == 0
        assert place.start("first", "resume", "first").wait(timeout=60) == 0
        wait_for(lambda: place.finished("first") > paused_at, first, 120)

        assert place.start("first", "cancel", "first").wait(timeout=60) == 0
        assert first.wait(timeout=60) == 1, place.log("first")
    assert place.state("first") is StudyState.CANCELLED


def trained(place: Place, study: str) -> int:
    """The last step that the recovery in training took."""
    steps = [line["step"] for line in place.witness("training stepped")]
    return int(str(steps[-1])) if steps else 0


@pytest.mark.parametrize("told", ["node", "worker", "driver"])
def test_who_is_told_to_end_saves_what_it_trains(place: Place, told: str) -> None:
    Path(place.environment["BITFRONT_WITNESS"]).unlink(missing_ok=True)
    study = f"told-{told}"
    with ExitStack() as nodes:
        first = nodes.enter_context(node(place.cluster, place.environment))
        driver = place.submit(study, 6, LONG)
        wait_for(lambda: trained(place, study) >= 50, driver)
        stepping = place.witness("training stepped")[-1]

        if told == "node":
            first.send_signal(signal.SIGTERM)
            nodes.enter_context(node(place.cluster, place.environment))
        elif told == "worker":
            psutil.Process(int(str(stepping["pid"]))).terminate()
        else:
            driver.terminate()
            assert driver.wait(timeout=60) == 1, place.log(study)
            assert place.state(study) is StudyState.CANCELLED
            driver = place.start(study, "resume", study, "--address", place.cluster.address)
        wait_for(lambda: len(place.witness("training resumed")) > 0, driver)
        driver.terminate()
        driver.wait(timeout=60)

    saved = [line["step"] for line in place.witness("training saved")]
    resumed = place.witness("training resumed")[0]
    before = [
        int(str(line["step"]))
        for line in place.witness("training stepped")
        if float(str(line["at_s"])) < float(str(resumed["at_s"]))
        and line["checkpoint"] == resumed["checkpoint"]
    ]
    assert resumed["step"] == saved[0] == max(before)

"""A study as MLflow's own client reads it back, from a file and from a real server."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import Run

from bitfront.errors import LeaseLost, SpecError, TrackingError
from bitfront.trial import FrontChange, StudyState
from service.cli import main
from service.database_url import file_url
from service.study import mlflow_mirror
from service.study.mlflow_mirror import STUDY_TAG, TRIAL_TAG, MlflowMirror, check_tracking
from service.study.tracking import Tracking
from service.views.progress import PlainReporter
from storage.artefacts import ArtefactRecord
from storage.store import Store, open_store
from tests.support.searched_study import searched
from tests.support.store_samples import complete, trial

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with open_store(file_url(path)) as store:
        yield store


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return file_url(tmp_path / "mlflow.db")


def mirrored(store: Store, uri: str) -> int:
    mirror = MlflowMirror(store, "digits", uri)
    added = mirror.update()
    mirror.conclude()
    return added


def runs(uri: str) -> tuple[Run, dict[int, Run]]:
    """The run of the study, and those of its trials."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    found = list(client.search_runs([experiment.experiment_id]))
    (parent,) = [run for run in found if TRIAL_TAG not in run.data.tags]
    children = [run for run in found if run is not parent]
    by_number = {int(run.data.tags[TRIAL_TAG]): run for run in children}
    assert len(by_number) == len(children)
    return parent, by_number


def content(uri: str, run: Run, name: str, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    client = MlflowClient(tracking_uri=uri)
    return Path(client.download_artifacts(run.info.run_id, name, str(folder))).read_text()


def test_mlflow_holds_what_was_chosen_and_measured(store: Store, uri: str, tmp_path: Path) -> None:
    searched(store)

    assert mirrored(store, uri) == 4

    parent, trials = runs(uri)
    assert sorted(trials) == [0, 1, 2, 3]
    assert trials[0].data.metrics == {"error": 0.25, "nbytes": 100.0, "test_error": 0.26}
    assert trials[0].data.params == {
        "vision.0": "w2a16+w2a16",
        "vision.1": "w2a16",
        "recovery": "none",
    }
    assert trials[1].data.params["recovery"] == "prompt"
    assert trials[1].data.params["recovery.context_length"] == "4"
    assert trials[1].data.metrics["bits_per_weight"] == 3.5
    assert [trials[n].data.tags["state"] for n in range(4)] == [
        *("complete", "complete", "failed", "pruned")
    ]
    assert [trials[n].info.status for n in range(4)] == [
        *("FINISHED", "FINISHED", "FAILED", "FINISHED")
    ]
    assert trials[2].data.tags["message"] == "bad batch"
    stored = store.trials("digits")[0]
    assert stored.started_at is not None
    assert trials[0].info.start_time == int(stored.started_at.timestamp() * 1000)
    assert trials[0].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert '"layer0": "w2a16"' in content(uri, trials[0], "configuration.json", tmp_path / "a")


def test_the_studys_own_run_has_its_job_and_its_front(
    store: Store, uri: str, tmp_path: Path
) -> None:
    lease = searched(store)
    store.start_trial(lease, trial(6))
    change = FrontChange(added=(6,), removed=(), hypervolume=0.5)
    complete(store, lease, 6, {"error": 0.125, "nbytes": 50.0}, front=change)
    files = {"model.onnx": "digest"}
    record = ArtefactRecord(
        trial=0, target="onnx", path="/models/a", nbytes=7, files=files, verification={}
    )
    store.put_artefact("digits", record)
    store.cancel_running(lease)
    store.release(lease, StudyState.COMPLETE)

    mirrored(store, uri)

    parent, trials = runs(uri)
    assert parent.info.run_name == "digits"
    assert parent.info.status == "FINISHED"
    assert parent.data.params["model.source"] == "reference"
    assert parent.data.params["quantizer.rounding"] == "nearest"
    front = {number for number in trials if trials[number].data.tags.get("front") == "true"}
    assert front == {result.number for result in store.front("digits")} == {6}
    steps = MlflowClient(tracking_uri=uri).get_metric_history(parent.info.run_id, "hypervolume")
    assert [(one.step, one.value) for one in steps] == store.hypervolumes("digits") != []
    assert "study: digits" in content(uri, parent, "job.yaml", tmp_path / "a")
    assert "error" in content(uri, parent, "front.csv", tmp_path / "a")
    assert "/models/a" in content(uri, parent, "artefacts.json", tmp_path / "a")
    client = MlflowClient(tracking_uri=uri)
    names = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert names == {"job.yaml", "front.csv", "front.png", "artefacts.json"}


def test_repeating_adds_what_is_new_and_nothing_twice(store: Store, uri: str) -> None:
    lease = searched(store)
    mirror = MlflowMirror(store, "digits", uri)
    assert (mirror.update(), mirror.update()) == (4, 0)
    complete(store, lease, 5, {"error": 0.5, "nbytes": 1.0})

    assert mirror.update() == 1  # trial 4, before it, still runs
    complete(store, lease, 4, {"error": 0.4, "nbytes": 2.0})
    assert mirror.update() == 1
    assert mirrored(store, uri) == 0

    _, trials = runs(uri)
    assert sorted(trials) == [0, 1, 2, 3, 4, 5]


def test_a_copy_that_was_cut_short_is_completed(
    monkeypatch: pytest.MonkeyPatch, store: Store, uri: str
) -> None:
    searched(store)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("cut\nshort")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", fail)
        with pytest.raises(TrackingError, match=r"\(cut\)"):
            MlflowMirror(store, "digits", uri).update()

    mirrored(store, uri)

    _, trials = runs(uri)
    assert sorted(trials) == [0, 1, 2, 3]
    assert {run.info.status for run in trials.values()} == {"FINISHED", "FAILED"}
    assert trials[0].data.metrics["error"] == 0.25


def test_of_two_drivers_that_told_the_same_one_run_is_kept(store: Store, uri: str) -> None:
    searched(store)
    first, second = MlflowMirror(store, "digits", uri), MlflowMirror(store, "digits", uri)
    first.update()
    second.update()

    MlflowMirror(store, "digits", uri)

    assert sorted(runs(uri)[1]) == [0, 1, 2, 3]


def test_another_study_of_that_name_gets_runs_of_its_own(store: Store, uri: str) -> None:
    lease = searched(store)
    mirrored(store, uri)
    store.cancel_running(lease)
    store.release(lease, StudyState.STOPPED)
    store.delete_study("digits")
    searched(store)

    assert mirrored(store, uri) == 4

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.data.tags[STUDY_TAG] for run in found}) == 2


def test_nothing_is_left_in_the_folder_that_it_ran_in(
    monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path
) -> None:
    searched(store)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("_MLFLOW_SERVER_ARTIFACT_ROOT", raising=False)

    mirrored(store, file_url(there / "mlflow.db"))

    assert list(here.iterdir()) == []
    assert {file.name for file in there.iterdir()} == {"mlflow.db", "mlartifacts"}


def test_a_server_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(
        TrackingError, match=r"^MLflow at http://127.0.0.1:1 cannot be used .*tracking"
    ):
        check_tracking(NOWHERE)


def test_without_mlflow_the_package_to_install_is_named(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setattr(mlflow_mirror, "find_spec", lambda _: None)

    with pytest.raises(SpecError, match=r"pip install 'bitfront\[mlflow\]'"):
        check_tracking(uri)


def test_a_study_is_followed_while_it_runs_and_concluded_after_it(
    store: Store, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lease = searched(store)
    with Tracking(store, "digits", uri, PlainReporter(sys.stderr), every_s=0.05) as tracking:
        tracking.start()
        wait_for(lambda: sorted(runs(uri)[1]) == [0, 1, 2, 3])
        complete(store, lease, 5, {"error": 0.5, "nbytes": 1.0})
        wait_for(lambda: sorted(runs(uri)[1]) == [0, 1, 2, 3, 5])
        store.cancel_running(lease)
        store.release(lease, StudyState.CANCELLED)

    parent, _ = runs(uri)
    assert (parent.info.status, parent.data.tags["state"]) == ("KILLED", "cancelled")
    assert capsys.readouterr().err == ""


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if holds():
                return
        except (AssertionError, ValueError):  # there is no run yet
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_study_never_fails_by_mlflow_and_says_once_that_it_is_away(
    monkeypatch: pytest.MonkeyPatch, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    searched(store)

    with Tracking(store, "digits", NOWHERE, PlainReporter(sys.stderr), every_s=0.01) as tracking:
        tracking.start()
        time.sleep(0.5)

    told = capsys.readouterr().err
    assert told.count("MLflow at http://127.0.0.1:1 cannot be used") == 1
    assert "bitfront export-mlflow digits" in told


def test_a_driver_that_lost_its_study_tells_mlflow_nothing_more(
    monkeypatch: pytest.MonkeyPatch, store: Store, uri: str
) -> None:
    searched(store)
    told = threading.Event()
    monkeypatch.setattr(MlflowMirror, "conclude", lambda _: told.set())

    with pytest.raises(LeaseLost):
        lose_the_lease(store, uri)

    assert not told.is_set()


def lose_the_lease(store: Store, uri: str) -> None:
    with Tracking(store, "digits", uri, PlainReporter(sys.stderr)) as tracking:
        tracking.start()
        raise LeaseLost("digits", 1)


def run(path: Path, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--db", str(path)])


def test_the_command_copies_a_study_and_says_so(store: Store, path: Path, uri: str) -> None:
    searched(store)

    first = run(path, "export-mlflow", "digits", uri)
    again = run(path, "export-mlflow", "digits", uri)

    assert first.stderr == f"study digits: 4 trials added to experiment digits at {uri}\n"
    assert again.stderr.startswith("study digits: 0 trials added")
    assert len(runs(uri)[1]) == 4


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mlruns", "'mlruns' is not an MLflow tracking URI"),
        ("file:///tmp/mlruns", "is not an MLflow tracking URI"),
        ("http://", "is not an MLflow tracking URI"),
        ("https://ann:secret@host", r"would show its password .* MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_what_is_no_tracking_uri_is_refused(store: Store, path: Path, uri: str, words: str) -> None:
    searched(store)
    result = run(path, "export-mlflow", "digits", uri)

    assert result.exit_code != 0
    assert re.search(words, result.stderr)
    assert "secret" not in result.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """MLflow's own server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)),
            *("--backend-store-uri", file_url(tmp_path / "server.db")),
            *("--artifacts-destination", str(tmp_path / "kept")),
        ],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(url))
        yield url
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health") as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


def test_a_server_takes_a_study_with_its_artefacts(
    store: Store, server: str, tmp_path: Path
) -> None:
    searched(store)

    check_tracking(server)
    assert mirrored(store, server) == 4

    parent, trials = runs(server)
    assert trials[0].data.metrics["test_error"] == 0.26
    assert "study: digits" in content(server, parent, "job.yaml", tmp_path / "a")

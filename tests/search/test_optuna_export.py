"""A study as Optuna and its dashboard see it, and what an export never touches."""

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner, Result
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from bitfront.trial import StudyState, TrialState
from service.cli import main
from service.database_url import file_url
from storage.store import open_store
from tests.support.databases import Databases
from tests.support.searched_study import searched, started
from tests.support.store_samples import (
    complete,
    finished,
    job,
    trial,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "optuna.db"


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--db", str(path)])


@contextmanager
def opened(copy: Path, name: str = "digits") -> Iterator[optuna.Study]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{copy}")
    try:
        yield optuna.load_study(study_name=name, storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def exported(copy: Path) -> list[FrozenTrial]:
    with opened(copy) as study:
        return study.get_trials()


def content(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump())


def test_an_export_holds_the_values_of_every_trial_that_is_final(path: Path, copy: Path) -> None:
    with open_store(file_url(path)) as store:
        lease = searched(store)
        store.start_trial(lease, trial(9))
        finished(store, lease, 6, error=0.5, nbytes=50)
        originals = {t.number: t for t in store.trials("digits")}

    result = run(path, "export-optuna", "digits", str(copy))

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == (
        f"study digits: 5 trials added to 0 known\n'optuna-dashboard sqlite:///{copy}' shows it\n"
    )
    with opened(copy) as study:
        assert study.metric_names == ["error", "nbytes"]
        assert [direction.name for direction in study.directions] == ["MINIMIZE"] * 2
        assert study.user_attrs["test error"] == {"0": 0.26}
        assert study.user_attrs["blocks"] == {
            "vision.0": ["layer0", "layer1"],
            "vision.1": ["layer2"],
        }
        # Trial 1 breaks a constraint, and Optuna knows.
        assert [t.user_attrs["bitfront trial"] for t in study.best_trials] == [0, 6]
        copies = study.get_trials()
    assert [t.user_attrs["bitfront trial"] for t in copies] == [0, 1, 2, 3, 6]
    for copied in copies:
        original = originals[copied.user_attrs["bitfront trial"]]
        values = (
            [original.values[name] for name in ("error", "nbytes")] if original.values else None
        )
        assert copied.values == values
        assert copied.user_attrs["origin"] == original.origin
        assert copied.constraints == original.constraints
    states = [t.state for t in copies]
    done = OptunaState.COMPLETE
    assert states == [done, done, OptunaState.FAIL, OptunaState.PRUNED, done]


def test_parameters_and_attributes_make_sense_to_a_person(path: Path, copy: Path) -> None:
    with open_store(file_url(path)) as store:
        searched(store)
    run(path, "export-optuna", "digits", str(copy))

    zero, one, failed, pruned = exported(copy)

    assert zero.params == {"vision.0": "w2a16+w2a16", "vision.1": "w2a16", "recovery": "none"}
    assert zero.distributions["vision.1"].choices == ("w2a16", "w3a16", "w8a16")  # type: ignore[attr-defined]
    assert one.params == {
        "vision.0": "w3a16+w2a16",
        "vision.1": "w2a16",
        "recovery": "prompt",
        "recovery.context_length": 4,
        "recovery.reduction": 0,
        "recovery.blend": 0.2,
    }
    assert one.distributions["recovery.context_length"] == IntDistribution(0, 8)
    assert one.distributions["recovery.blend"] == FloatDistribution(0.2, 0.5)
    assert one.user_attrs["bits per weight"] == 3.5
    assert one.user_attrs["feasible"] is False
    assert one.user_attrs["plan"] == "3 x w2a16, 1 x w3a16"
    assert one.user_attrs["recovery"].startswith("a prompt of 4 vectors")
    assert zero.user_attrs["test error"] == 0.26
    assert (failed.user_attrs["cause"], failed.user_attrs["message"]) == ("user_error", "bad batch")
    assert failed.user_attrs["attempts"] == 2
    assert pruned.intermediate_values == {0: 0.5, 25: 0.375}
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT finished_at || '+00:00' FROM trial WHERE number = 3"
        ((finished_at,),) = connection.execute(query)
    assert pruned.datetime_complete is not None
    assert pruned.datetime_complete.astimezone() == datetime.fromisoformat(finished_at)


def test_repeating_adds_what_is_new_and_nothing_twice(path: Path, copy: Path) -> None:
    with open_store(file_url(path)) as store:
        lease = searched(store)
        run(path, "export-optuna", "digits", str(copy))
        before = content(copy)
        again = run(path, "export-optuna", "digits", str(copy))
        unchanged = content(copy)
        complete(store, lease, 4, {"error": 0.75, "nbytes": 75})
        store.save_test_values(lease, {4: {"error": 0.8}})
        store.cancel_running(lease)
        store.release(lease, StudyState.CANCELLED)

        more = run(path, "export-optuna", "digits", str(copy))

    assert again.stderr.startswith("study digits: 0 trials added to 4 known\n")
    assert unchanged == before
    assert more.stderr.startswith("study digits: 1 trials added to 4 known\n")
    with opened(copy) as study:
        numbers = [t.user_attrs["bitfront trial"] for t in study.get_trials()]
        assert numbers == [0, 1, 2, 3, 4]
        assert study.user_attrs["test error"] == {"0": 0.26, "4": 0.8}
        assert study.user_attrs["state"] == "cancelled"


def test_an_export_that_was_cut_short_is_completed(
    path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(file_url(path)) as store:
        searched(store)
    calls = iter([False, False, True])
    original = optuna.Study.add_trial

    def add(self: optuna.Study, frozen: FrozenTrial) -> None:
        if next(calls):
            raise KeyboardInterrupt
        original(self, frozen)

    with monkeypatch.context() as patched:
        patched.setattr(optuna.Study, "add_trial", add)
        assert run(path, "export-optuna", "digits", str(copy)).exit_code == 1

    run(path, "export-optuna", "digits", str(copy))

    assert [t.user_attrs["bitfront trial"] for t in exported(copy)] == [0, 1, 2, 3]


def test_a_choice_that_the_export_does_not_know_is_left_out_and_told(
    path: Path, copy: Path
) -> None:
    with open_store(file_url(path)) as store:
        lease = started(store)
        finished(store, lease, 0, error=0.25, nbytes=100)
        run(path, "export-optuna", "digits", str(copy))
        finished(store, lease, 3 * 36, error=0.5, nbytes=50)  # layer2 in 5 bits

    result = run(path, "export-optuna", "digits", str(copy))

    assert "1 of them chose what was not known when the export was first made" in result.stderr
    new = exported(copy)[1]
    assert "vision.1" not in new.params
    assert new.params["vision.0"] == "w2a16+w2a16"
    assert new.user_attrs["plan"] == "3 x w2a16, 1 x w5a16"


def test_an_export_never_changes_the_database_it_reads(path: Path, copy: Path) -> None:
    with open_store(file_url(path)) as store:
        searched(store)
    before = content(path)

    run(path, "export-optuna", "digits", str(copy))
    own = run(path, "export-optuna", "digits", str(path))
    other = shutil.copy(path, path.with_name("other.db"))
    foreign = run(path, "export-optuna", "digits", str(other))

    assert content(path) == before
    for result, place in ((own, path), (foreign, other)):
        assert (result.exit_code, result.stdout) == (2, "")
        message = f"the database sqlite:///{place} is bitfront's own: name another file or database"
        assert result.stderr == f"Error: {message}\n"


def test_a_target_of_another_program_is_refused_and_stays_as_it_is(
    path: Path, tmp_path: Path
) -> None:
    with open_store(file_url(path)) as store:
        searched(store)
    foreign = tmp_path / "photos.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE albums (id INTEGER)")
    text = tmp_path / "notes.txt"
    text.write_text("no database, but long enough to be read as one\n" * 50)
    before = (foreign.read_bytes(), text.read_bytes())

    results = [
        run(path, "export-optuna", "digits", str(place)) for place in (foreign, text, tmp_path)
    ]

    assert [(result.exit_code, result.stdout) for result in results] == [(2, "")] * 3
    assert "belongs to another program (it has a table albums)" in results[0].stderr
    assert "is not a SQLite database: choose another file" in results[1].stderr
    assert "is a folder: name a file in it" in results[2].stderr
    assert (foreign.read_bytes(), text.read_bytes()) == before


def test_another_study_of_that_name_is_not_added_to(path: Path, copy: Path) -> None:
    with open_store(file_url(path)) as store:
        lease = started(store)
        finished(store, lease, 0, error=0.25, nbytes=100)
        store.release(lease, StudyState.STOPPED)
        run(path, "export-optuna", "digits", str(copy))
        store.delete_study("digits")
        lease = started(store)
        finished(store, lease, 0, error=0.5, nbytes=100)

        result = run(path, "export-optuna", "digits", str(copy))

    assert result.exit_code == 2
    assert "has another study 'digits', which was not exported from this one" in result.stderr
    assert [t.values for t in exported(copy)] == [[0.25, 100.0]]


def test_two_studies_share_a_file_with_a_persons_own(path: Path, copy: Path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{copy}")
    optuna.create_study(study_name="mine", storage=storage)
    storage.remove_session()
    storage.engine.dispose()
    with open_store(file_url(path)) as store:
        searched(store)
        store.create_study(job("single", objectives=["error", "latency_s"]), {})
        lease = store.acquire("single", "me", 60)
        store.start_trial(lease, trial(0))
        complete(store, lease, 0, {"error": 0.125, "latency_s": 0.5})

    results = [run(path, "export-optuna", name, str(copy)) for name in ("digits", "single")]

    assert [result.exit_code for result in results] == [0, 0]
    with opened(copy, "single") as study:
        assert study.metric_names == ["error", "latency_s"]
        assert [t.values for t in study.best_trials] == [[0.125, 0.5]]
    with opened(copy, "mine") as study:
        assert study.get_trials() == []


def test_a_database_of_another_version_of_optuna_is_refused(path: Path, copy: Path) -> None:
    with open_store(file_url(path)) as store:
        searched(store)
    run(path, "export-optuna", "digits", str(copy))
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v2.4.0.a'")

    result = run(path, "export-optuna", "digits", str(copy))

    assert result.exit_code == 2
    assert "is of another version of Optuna: name another file" in result.stderr


def test_a_study_in_postgresql_is_exported_into_another_database_there(
    postgres_databases: Databases,
) -> None:
    url, target = postgres_databases.ready(), postgres_databases.empty()
    with open_store(url) as store:
        searched(store)

    results = [
        CliRunner().invoke(main, ["export-optuna", "digits", target, "--db", url]) for _ in range(2)
    ]
    own = CliRunner().invoke(main, ["export-optuna", "digits", url, "--db", url])

    assert [result.exit_code for result in results] == [0, 0]
    assert results[1].stderr == (
        "study digits: 0 trials added to 4 known\n'optuna-dashboard URL' shows it\n"
    )
    assert own.exit_code == 2
    assert "is bitfront's own" in own.stderr


def test_optunas_own_dashboard_shows_the_export(path: Path, copy: Path) -> None:
    with open_store(file_url(path)) as store:
        searched(store)
        originals = {t.number: t for t in store.trials("digits")}
    run(path, "export-optuna", "digits", str(copy))

    with dashboard(copy) as address:
        (summary,) = get(f"{address}/api/studies")["study_summaries"]
        study = get(f"{address}/api/studies/{summary['study_id']}")

    assert (summary["study_name"], summary["directions"]) == ("digits", ["minimize", "minimize"])
    assert study["objective_names"] == ["error", "nbytes"]
    shown = {attribute(t, "bitfront trial"): t for t in study["trials"]}
    assert sorted(shown) == ["0", "1", "2", "3"]
    states = {"0": "Complete", "1": "Complete", "2": "Fail", "3": "Pruned"}
    assert {number: t["state"] for number, t in shown.items()} == states
    for number in (0, 1):
        original = originals[number]
        assert original.state is TrialState.COMPLETE
        values = [original.values["error"], original.values["nbytes"]]
        assert shown[str(number)]["values"] == values
    params = {p["name"]: p["param_external_value"] for p in shown["1"]["params"]}
    assert params["vision.0"] == "w3a16+w2a16"
    assert params["recovery"] == "prompt"
    steps = [(v["step"], v["value"]) for v in shown["3"]["intermediate_values"]]
    assert steps == [(0, 0.5), (25, 0.375)]
    assert attribute(shown["2"], "cause") == "user_error"
    assert attribute(shown["0"], "test error") == "0.26"


def attribute(shown: dict[str, Any], name: str) -> str:
    values: dict[str, str] = {entry["key"]: entry["value"] for entry in shown["user_attrs"]}
    return values[name]


@contextmanager
def dashboard(copy: Path) -> Iterator[str]:
    """The real dashboard on a free port of this machine."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from optuna_dashboard._cli import main; main()"
    words = [f"sqlite:///{copy}", "--host", "127.0.0.1", "--port", str(port), "--server", "wsgiref"]
    log = copy.with_suffix(".log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdout=stream, stderr=stream
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                get(f"{address}/api/meta")
                break
            except urllib.error.URLError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def get(url: str) -> dict[str, Any]:
    # No proxy of this machine has a part in it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as response:
        content: dict[str, Any] = json.load(response)
        return content

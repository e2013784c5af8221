"""All trials of a study as a file: in every state, in every format, safe to open."""

import csv
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bitfront.plan import Configuration
from bitfront.trial import Cause, StudyState
from service.cli import main
from service.database_url import file_url
from service.views.render import csv_text
from storage.store import Store, open_store
from tests.support.store_samples import complete, configuration, fail, job, prune, running, trial


@pytest.fixture
def path(tmp_path: Path) -> Path:
    database = tmp_path / "studies.db"
    with open_store(file_url(database)) as store:
        fill(store)
    return database


def fill(store: Store) -> None:
    """A study with a trial in every state."""
    lease = running(store)
    for number in range(5):
        store.start_trial(lease, trial(number))
    values = {"error": 0.25, "nbytes": 100.0}
    measured = {"bits_per_weight": 3.5, "latency_s": 0.5}
    complete(store, lease, 0, values, metrics=measured, constraints={"max_bits": 0.5})
    store.save_test_values(lease, {0: {"error": 0.26, "nbytes": 100.0, "latency_s": 0.4}})
    fail(store, lease, 1, 1, Cause.NODE_LOST, "gone", retry=True)
    fail(store, lease, 1, 2, Cause.USER_ERROR, "=cmd|' /C calc'!A0\n2", retry=False)
    prune(store, lease, 2, 1, seconds=65.0, worker="@host")
    store.cancel_running(lease)
    store.start_trial(lease, trial(5))
    store.release(lease, StudyState.STOPPED)


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--db", str(path)])


def objects(path: Path) -> list[dict[str, object]]:
    text = run(path, "export", "digits", "--format", "json").stdout
    return [json.loads(line) for line in text.splitlines()]


def test_every_trial_is_there_in_whatever_state(path: Path) -> None:
    columns = (
        "number, state, attempt, origin, error, nbytes, bits_per_weight, latency_s, "
        "test_error, test_latency_s, seconds, worker, cause"
    )
    with closing(sqlite3.connect(path)) as connection:
        stored = connection.execute(f"SELECT {columns} FROM trial ORDER BY number").fetchall()  # noqa: S608

    shown = [
        tuple(
            row[name]
            for name in (
                *("trial", "state", "attempts", "origin", "error", "nbytes"),
                *("bits_per_weight", "latency_s", "test_error", "test_latency_s"),
                *("seconds", "worker", "cause"),
            )
        )
        for row in objects(path)
    ]

    assert shown == stored
    states = ["complete", "failed", "pruned", "cancelled", "cancelled", "running"]
    assert [row[1] for row in shown] == states


def test_a_row_tells_what_became_of_its_trial(path: Path) -> None:
    done, failed, pruned, cancelled, _, going = objects(path)

    assert (done["feasible"], done["cached"]) == (False, False)
    assert (failed["attempts"], failed["cause"]) == (2, "user_error")
    assert failed["message"] == "=cmd|' /C calc'!A0\n2"
    assert (pruned["seconds"], pruned["worker"]) == (65.0, "@host")
    assert cancelled["cause"] == "cancelled"
    assert (going["finished_at"], going["feasible"]) == (None, None)
    assert done["configuration"] == configuration(0).to_dict()


def test_every_format_has_the_same_rows(path: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "trials.parquet"
    plain = tmp_path / "trials.csv"

    written = [
        run(path, "export", "digits", "--format", "parquet", "--out", str(file)),
        run(path, "export", "digits", "--out", str(plain)),
    ]
    text = run(path, "export", "digits").stdout

    assert [(result.exit_code, result.output) for result in written] == [(0, "")] * 2
    assert plain.read_text() == text
    table = pq.read_table(file).to_pylist()
    rows = list(csv.DictReader(io.StringIO(text)))
    expected = objects(path)
    for one, flat, line in zip(expected, table, rows, strict=True):
        content = json.loads(flat.pop("configuration"))
        assert content == one["configuration"] == json.loads(line["configuration"])
        assert flat == {name: value for name, value in one.items() if name != "configuration"}
        assert list(line) == list(one)
        assert line["error"] == ("" if one["error"] is None else str(one["error"]))
    first = Configuration.from_dict(json.loads(rows[0]["configuration"]))
    assert first == configuration(0)


def test_text_in_csv_is_never_a_formula(path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run(path, "export", "digits").stdout)))

    assert rows[1]["message"] == "'=cmd|' /C calc'!A0\n2"
    assert rows[2]["worker"] == "'@host"


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", " =1", "\t=1", "\r\n-1"])
def test_a_cell_that_starts_like_a_formula_gets_an_apostrophe(text: str) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_text([{"cell": text, "number": -1.5}]), newline=""))

    assert row == {"cell": f"'{text}", "number": "-1.5"}


def test_other_text_is_left_as_it_is() -> None:
    rows = [{"cell": text} for text in ("1-1", "a=b", "{}", "", 'ü, "x"\n\'=')]

    read = list(csv.DictReader(io.StringIO(csv_text(rows), newline="")))

    assert read == rows


def test_a_study_without_trials_says_so_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    with open_store(file_url(path)) as store:
        store.create_study(job(), {})

    result = run(path, "export", "digits")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "study digits has no trial yet: see 'bitfront status digits'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "gone"), "Error: there is no study 'gone'; the database holds digits\n"),
        (("logs", "gone"), "Error: there is no study 'gone'; the database holds digits\n"),
        (("pause", "gone"), "Error: there is no study 'gone'; the database holds digits\n"),
        (
            ("export-optuna", "gone", "/nowhere/optuna.db"),
            "Error: there is no study 'gone'; the database holds digits\n",
        ),
        (
            ("export", "digits", "--out", "/nowhere/trials.csv"),
            "Error: /nowhere/trials.csv cannot be written: No such file or directory\n",
        ),
        (
            ("export-optuna", "digits", "mysql://ann:geheim@host/x"),
            "Error: databases of type mysql are not supported: write it like sqlite:///PATH or "
            "postgresql://USER@HOST/NAME\n",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run(path, *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (2, "", message)
    assert not Path("/nowhere").exists()


def test_rows_are_alike_in_every_database(store: Store) -> None:
    fill(store)

    rows = store.trials("digits")

    assert [row.number for row in rows] == list(range(6))
    assert rows[0].values == {
        "error": 0.25,
        "nbytes": 100.0,
        "bits_per_weight": 3.5,
        "latency_s": 0.5,
    }
    assert rows[0].test_values == {"error": 0.26, "nbytes": 100.0, "latency_s": 0.4}
    assert rows[0].constraints == {"max_bits": 0.5}
    assert (rows[1].cause, rows[1].attempts) == (Cause.USER_ERROR, 2)
    assert all((row.finished_at is None) == (row.number == 5) for row in rows)
    assert [row.configuration for row in rows] == [configuration(n) for n in range(6)]

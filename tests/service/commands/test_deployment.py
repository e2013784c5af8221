"""Databases as a person names them, and commands as a shell takes them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitfront.errors import SpecError
from service.cli import main
from service.database_url import as_url, command_line
from service.views.exports import chosen_format, write_rows

ROOT = Path(__file__).parents[3]


def test_a_printed_command_is_quoted_for_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    line = command_line("front first", as_url("my results.db"))

    assert shlex.split(line) == ["bitfront", "front", "first", "--db", "my results.db"]


def test_a_file_of_a_database_expands_home_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS", "/results")
    monkeypatch.setenv("HOME", "/home/ann")

    assert as_url("$RESULTS/b.db") == "sqlite:////results/b.db"
    assert as_url("~/b.db") == "sqlite:////home/ann/b.db"


def test_a_question_mark_in_a_databases_file_is_refused() -> None:
    with pytest.raises(SpecError, match=r"--db q\?x.db: a \? begins the options"):
        as_url("q?x.db")


@pytest.mark.parametrize(
    ("form", "out", "chosen"),
    [
        (None, None, "csv"),
        (None, "y.parquet", "parquet"),
        (None, "y.JSONL", "json"),
        (None, "y", "csv"),
        ("json", "y.dat", "json"),
        ("csv", None, "csv"),
    ],
)
def test_the_suffix_of_a_file_says_its_format(
    form: str | None, out: str | None, chosen: str
) -> None:
    assert chosen_format(form, None if out is None else Path(out), "csv") == chosen


@pytest.mark.parametrize(
    ("form", "out", "message"),
    [
        (None, "y.xlsx", r"--out y.xlsx: .xlsx is not the suffix of a known format"),
        ("csv", "y.parquet", "--format csv contradicts --out y.parquet"),
    ],
)
def test_a_suffix_that_means_something_else_is_refused(
    form: str | None, out: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        chosen_format(form, Path(out), "csv")


def test_a_home_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("BITFRONT_DB", raising=False)
    job = tmp_path / "job.yaml"
    job.write_text("study: first\nmodel: {source: reference}\ndata: {source: reference}\n")

    done = CliRunner().invoke(main, ["submit", str(job)])

    assert done.exit_code == 2
    assert done.stderr.startswith("Error: the folder /proc/nowhere/.local/state/bitfront of the")
    assert len(done.stderr.splitlines()) == 1


def test_an_unset_home_is_the_one_that_the_system_knows() -> None:
    environment = {name: text for name, text in os.environ.items() if name != "HOME"}
    for name in ("BITFRONT_DB", "XDG_STATE_HOME"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "service", "status", "nothing"]

    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    # That home may hold a database, of any version.
    assert re.match(r"Error: (there is no|the) (database|study) ", done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_one_sentence() -> None:
    with pytest.raises(SpecError, match=r"y\.csv cannot be written: "):
        write_rows([{"trial": 1}], "csv", Path("/proc/nowhere/y.csv"))

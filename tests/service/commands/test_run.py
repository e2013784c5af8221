"""The commands that start work: what they refuse before any work begins."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bitfront.errors import SpecError, traceback_text
from service.api.jobs import changes_of
from service.cli import main
from service.database_url import file_url
from storage.store import open_store

SHORT = "study: first\nmodel: {source: reference}\ndata: {source: reference}\n"


@pytest.mark.parametrize("command", ["submit", "profile"])
def test_a_malformed_job_ends_with_exit_code_2(tmp_path: Path, command: str) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(SHORT + "space: {weight_bits: [2, 7]}\n")

    result = CliRunner().invoke(main, [command, str(job), "--db", str(tmp_path / "a.db")])

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: {job}, line 4: space.weight_bits: 7 is not possible: "
        "weight bits must be among 2, 3, 4, 5, 6, 8, 16\n"
    )
    assert not (tmp_path / "a.db").exists()


@pytest.mark.parametrize("command", ["submit", "profile"])
def test_a_spool_that_cannot_be_is_refused_before_there_is_a_study(
    tmp_path: Path, command: str
) -> None:
    job, database = tmp_path / "job.yaml", tmp_path / "a.db"
    job.write_text(SHORT)
    environment = {"BITFRONT_SPOOL": "nowhere://bucket"}

    result = CliRunner().invoke(main, [command, str(job), "--db", str(database)], env=environment)

    assert result.exit_code == 2
    assert "Error: nowhere:// cannot be used" in result.stderr
    with open_store(file_url(database)) as store:
        assert store.studies() == []


def test_a_study_name_of_the_command_line_is_checked_like_the_file(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(SHORT)

    result = CliRunner().invoke(main, ["submit", str(job), "--study", "a/b"])

    assert result.exit_code == 2
    assert result.stderr.startswith("Error: on the command line: study: 'a/b' is not possible")


def test_resuming_an_unknown_database_says_where_it_looked(tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"

    result = CliRunner().invoke(main, ["resume", "first", "--db", str(missing)])

    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: there is no database at {missing}")


def test_workers_come_from_the_environment_and_are_checked(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo"], env={"BITFRONT_WORKERS": "none"})

    assert result.exit_code == 2
    assert "Invalid value for '--workers' (env var: 'BITFRONT_WORKERS')" in result.stderr


def test_only_what_was_given_overrides_the_job() -> None:
    assert changes_of(trials=3, seed=0) == {"stop.trials": 3, "search.seed": 0}


def test_help_names_the_environment_of_every_deployment_option() -> None:
    shown = CliRunner().invoke(main, ["submit", "--help"]).stdout

    assert all(name in shown for name in ("BITFRONT_DB", "BITFRONT_WORKERS", "BITFRONT_ADDRESS"))


def test_every_command_is_listed_in_the_order_of_use() -> None:
    shown = CliRunner().invoke(main, ["--help"]).stdout

    listed = [line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines()]
    assert " ".join(listed) == (
        "init demo validate submit resume profile pause stop cancel delete list status watch logs "
        "front best show compare plot export export-optuna export-mlflow tune classify ask build "
        "artefacts targets methods models doctor schema completion serve"
    )


@pytest.mark.parametrize("words", [["--verbose", "submit"], ["submit", "--verbose"]])
def test_a_traceback_is_shown_only_where_it_is_asked_for(tmp_path: Path, words: list[str]) -> None:
    job = tmp_path / "\x1b[31mjob.yaml"
    job.write_text("study: first")
    given = [str(job), "--db", str(tmp_path / "a.db")]

    quiet = CliRunner().invoke(main, ["submit", *given])
    told = CliRunner().invoke(main, [*words, *given])

    assert (quiet.exit_code, told.exit_code) == (2, 2)
    assert quiet.stderr.startswith("Error: ")
    assert "Traceback" not in quiet.stderr
    assert "\x1b" not in quiet.stderr
    assert "Traceback (most recent call last):" in told.stderr
    assert told.stderr.endswith(quiet.stderr)


def test_a_remote_traceback_is_shown_in_place_of_the_local_one() -> None:
    error = SpecError("wrong")
    error.remote_traceback = "there"

    assert traceback_text(error) == "there"

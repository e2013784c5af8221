"""A study is deleted with its trials and its spool; what it measured stays for the others."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bitfront.attempt import Evaluated
from bitfront.errors import UnknownStudy, UnusableSpool
from bitfront.trial import Evaluation, StudyState
from service.cli import main
from service.database_url import file_url
from service.study.spools import study_spool
from storage.records import Lease
from storage.store import open_store
from tests.support.store_samples import complete, running, trial
from workers.scheduling.spool import Spool

DONE = Evaluated(Evaluation({"error": 0.5}), seconds=1.0, worker="host:1")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("BITFRONT_SPOOL", raising=False)
    database = tmp_path / "studies.db"
    for study in ("digits", "other"):
        spool(database, drive(database, study).name).write(1, 1, DONE)
    return database


def drive(path: Path, study: str) -> Lease:
    """A study with one complete trial and one that was under way when its driver died."""
    with open_store(file_url(path)) as store:
        lease = running(store, study)
        store.start_trial(lease, trial(0))
        complete(store, lease, 0, {"error": 0.25, "nbytes": 100.0}, key=f"{study} 0")
        store.start_trial(lease, trial(1))
        store.release(lease, StudyState.STOPPED)
    return lease


def spool(path: Path, study: str) -> Spool:
    with open_store(file_url(path), create=False) as store:
        return study_spool(file_url(path), store.study(study))


def run(path: Path, *arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, ["delete", *arguments, "--db", str(path)], input=answer)


@pytest.mark.parametrize(("options", "answer"), [(["--yes"], None), ([], "y\n")])
def test_a_study_goes_with_its_trials_and_its_spool(
    path: Path, options: list[str], answer: str | None
) -> None:
    gone, kept = spool(path, "digits"), spool(path, "other")

    deleted = run(path, "digits", *options, answer=answer)

    assert deleted.exit_code == 0, deleted.stderr
    assert "study digits is deleted" in deleted.stderr
    assert ("with 2 trials" in deleted.stderr) == (not options)
    assert not gone.folder.exists()
    assert kept.read(1, 1) == DONE
    with open_store(file_url(path), create=False) as store:
        with pytest.raises(UnknownStudy):
            store.study("digits")
        assert len(store.trials("other")) == 2
        assert store.evaluation("digits 0") is not None


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_nothing_goes_without_a_yes(path: Path, answer: str) -> None:
    kept = run(path, "digits", answer=answer)

    assert kept.exit_code == 1
    assert spool(path, "digits").read(1, 1) == DONE


def test_what_a_driver_runs_is_kept(path: Path) -> None:
    with open_store(file_url(path)) as store:
        store.acquire("digits", "another host:7", 60)

        refused = run(path, "digits", "--yes")

    assert refused.exit_code == 2
    assert "is being run by another host:7" in refused.stderr
    assert spool(path, "digits").read(1, 1) == DONE


def test_a_study_without_a_spool_goes_too(path: Path) -> None:
    spool(path, "digits").remove()

    assert run(path, "digits", "--yes").exit_code == 0


def test_a_spool_that_cannot_be_deleted_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise UnusableSpool(str(folder), "not yours")

    monkeypatch.setattr(Spool, "remove", lambda spool: refuse(spool.folder))
    folder = spool(path, "digits").folder

    deleted = run(path, "digits", "--yes")

    assert deleted.exit_code == 0
    assert f"its files stay, delete them by hand: the spool {folder}" in deleted.stderr


def test_a_spool_of_an_unknown_kind_is_said_before_anything_is_deleted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFRONT_SPOOL", "nowhere://bucket/spool")

    refused = run(path, "digits", "--yes")

    assert refused.exit_code == 2
    assert "install the fsspec package for nowhere" in refused.stderr
    with open_store(file_url(path), create=False) as store:
        assert len(store.trials("digits")) == 2

"""Bad requests, job files and arguments are answered as `docs/refusals.md` says."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from bitfront.trial import StudyState
from service.cli import main
from service.database_url import file_url
from storage.store import open_store
from tests.support.refusals import ARGUMENTS, JOBS, REQUESTS, TOKEN, Request, page
from tests.support.served import make_study, served
from tests.support.store_samples import running

PAGE = Path(__file__).parents[2] / "docs" / "refusals.md"
LEASE_S = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a database with a complete study and one that is driven."""
    folder = tmp_path_factory.mktemp("studies")
    url = file_url(folder / "studies.db")
    make_study(url, folder / "artefact")
    with open_store(url) as store:
        store.release(running(store, "busy"), StudyState.STOPPED)
        store.acquire("busy", "another", LEASE_S)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with served(folder, TOKEN) as client:
        yield client


def test_the_page_shows_this_list() -> None:
    assert PAGE.read_text() == page()
    assert len(REQUESTS) + len(JOBS) + len(ARGUMENTS) >= 30


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.what)
def test_a_bad_request_is_answered_as_the_page_says(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch, case: Request
) -> None:
    monkeypatch.setenv("BITFRONT_ROOTS", str(folder))
    headers = {} if case.token is None else {"authorization": f"Bearer {case.token}"}

    response = client.request(
        case.method, f"/api/v1{case.path}", headers={**headers, **case.headers}, content=case.body
    )

    assert response.headers["content-type"] == "application/problem+json"
    said = re.sub(r"heartbeat \d+ s", "heartbeat 0 s", response.json()["detail"])
    assert (response.status_code, said) == (case.status, case.sentence)


@pytest.mark.parametrize("what", JOBS)
def test_a_bad_job_file_is_told_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, sentence = JOBS[what]
    Path("JOB").write_text(content)

    result = CliRunner().invoke(main, ["validate", "JOB"])

    assert (result.exit_code, result.stderr) == (2, f"Error: {sentence}\n")


@pytest.mark.parametrize("line", ARGUMENTS)
def test_a_bad_argument_is_told_as_the_page_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITFRONT_DB", file_url(folder / "studies.db"))
    monkeypatch.delenv("BITFRONT_TOKEN", raising=False)

    result = CliRunner().invoke(main, shlex.split(line)[1:])

    said = result.stderr.rpartition("Error: ")[2].strip()
    assert (result.exit_code, said) == (2, ARGUMENTS[line])

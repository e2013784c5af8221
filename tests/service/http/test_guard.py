"""Who may ask: the token, the names of the server, pages of other sites, the size of a body."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from bitfront.errors import SpecError
from service.cli import main
from service.http.settings import BODY_NBYTES, checked_settings
from tests.support.served import served

TOKEN = "a-token-of-the-tests-0123456789"
API = "/api/v1"
URL = "sqlite:////nowhere/a.db"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with served(tmp_path, TOKEN) as client:
        yield client


@pytest.mark.parametrize(
    "shown",
    ["", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer ä"],
)
def test_without_the_token_nothing_is_answered(client: TestClient, shown: str) -> None:
    headers = {b"authorization": shown.encode()} if shown else {}
    for method, path in (("GET", "/studies"), ("POST", "/studies"), ("DELETE", "/studies/digits")):
        response = client.request(method, f"{API}{path}", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert "digits" not in response.text
    assert client.get(f"{API}/openapi.json", headers=headers).status_code == 401


def test_with_the_token_everything_is_answered(client: TestClient) -> None:
    response = client.get(f"{API}/studies", headers={"authorization": f"Bearer {TOKEN}"})

    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8480", "localhost.evil.example", ""]
)
def test_a_name_that_points_here_is_not_ours(tmp_path: Path, host: str) -> None:
    with served(tmp_path) as client:
        response = client.get(f"{API}/studies", headers={"host": host})

        assert response.status_code == 421
        assert "digits" not in response.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8480", "[::1]:8480", "LOCALHOST:1"])
def test_this_machine_has_its_own_names(tmp_path: Path, host: str) -> None:
    with served(tmp_path) as client:
        assert client.get(f"{API}/studies", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:1"},
        {"origin": "null"},
        {"origin": "http://[evil"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_site_changes_nothing(tmp_path: Path, headers: dict[str, str]) -> None:
    with served(tmp_path) as client:
        response = client.delete(f"{API}/studies/digits", headers=headers)

        assert response.status_code == 403
        assert len(client.get(f"{API}/studies").json()["studies"]) == 1


def test_our_own_page_does(tmp_path: Path) -> None:
    headers = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    with served(tmp_path) as client:
        assert client.delete(f"{API}/studies/digits", headers=headers).status_code == 204


def test_a_large_body_is_not_read(tmp_path: Path) -> None:
    yaml = {"content-type": "application/yaml"}
    with served(tmp_path) as client:
        fits = client.post(f"{API}/studies", content=b"#" * BODY_NBYTES, headers=yaml)
        large = client.post(f"{API}/studies", content=b"#" * (BODY_NBYTES + 1), headers=yaml)

    assert fits.status_code == 422
    assert large.status_code == 413
    assert large.json()["detail"] == (
        "the body is larger than 1,048,576 bytes: this is not a job file"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "bitfront.example.org"])
def test_no_other_machine_is_answered_without_a_token(host: str) -> None:
    with pytest.raises(SpecError, match=r"set BITFRONT_TOKEN"):
        checked_settings(URL, host)
    assert checked_settings(URL, host, token=TOKEN).token == TOKEN


@pytest.mark.parametrize("token", ["short", "x" * 15, "x" * 15 + "ä", "x" * 15 + "\n"])
def test_a_token_that_could_be_guessed_is_refused(token: str) -> None:
    with pytest.raises(SpecError, match="BITFRONT_TOKEN must have 16 characters or more"):
        checked_settings(URL, "127.0.0.1", token=token)


def test_the_names_of_a_server_follow_from_where_it_listens() -> None:
    assert checked_settings(URL, "localhost").hosts == frozenset(
        {"localhost", "127.0.0.1", "[::1]"}
    )
    assert "192.0.2.1" in (checked_settings(URL, "192.0.2.1", token=TOKEN).hosts or ())
    assert checked_settings(URL, "0.0.0.0", token=TOKEN).hosts is None
    named = checked_settings(URL, "0.0.0.0", token=TOKEN, names=("B.example.org",)).hosts
    assert named == frozenset({"0.0.0.0", "localhost", "127.0.0.1", "[::1]", "b.example.org"})
    with pytest.raises(SpecError, match="--host-name 'a b'"):
        checked_settings(URL, "localhost", names=("a b",))


def test_the_command_does_not_start_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BITFRONT_TOKEN", raising=False)
    database = tmp_path / "a.db"
    result = CliRunner().invoke(main, ["serve", "--host", "0.0.0.0", "--db", str(database)])

    assert result.exit_code == 2
    assert "set BITFRONT_TOKEN" in result.stderr
    assert not database.exists()

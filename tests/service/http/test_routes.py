"""What each route answers about a stored study, and what it says no to."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bitfront.objective import BY_LIMIT
from bitfront.trial import StudyState
from service.database_url import file_url
from storage.records import Request
from storage.store import open_store
from tests.support.served import make_study, served
from tests.support.store_samples import running

API = "/api/v1"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with served(tmp_path) as client:
        yield client


def get(client: TestClient, path: str) -> dict[str, object]:
    response = client.get(f"{API}{path}")
    assert response.status_code == 200, response.text
    content: dict[str, object] = response.json()
    return content


def test_the_list_and_the_status_say_how_far_a_study_is(client: TestClient) -> None:
    (line,) = client.get(f"{API}/studies").json()["studies"]
    status = get(client, "/studies/digits")

    assert (line["name"], line["state"], line["interrupted"]) == ("digits", "complete", False)
    assert line["trials"]["complete"] == 4
    assert status["finished_trials"] == 5
    assert status["best_error_at_budget"] == pytest.approx(33 / 400)
    assert status["failures"] == [
        {"cause": "out_of_memory", "count": 1, "message": "<b>no</b> memory"}
    ]


def test_trials_come_a_page_at_a_time(client: TestClient) -> None:
    first = client.get(f"{API}/studies/digits/trials?limit=3").json()
    rest = client.get(f"{API}/studies/digits/trials?after={first['next_after']}").json()
    failed = client.get(f"{API}/studies/digits/trials?state=failed").json()["trials"]

    assert [row["number"] for row in first["trials"]] == [0, 1, 2]
    assert [row["number"] for row in rest["trials"]] == [3, 9]
    assert rest["next_after"] is None
    assert [row["message"] for row in failed] == ["<b>no</b> memory"]
    assert [row["baseline"] for row in first["trials"]] == ["16 bits", "w4", None]
    attempts = client.get(f"{API}/studies/digits/trials/9/attempts").json()["attempts"]
    assert attempts[0]["traceback"] == "Traceback: <i>x</i>"


def test_best_and_front_are_those_of_the_command_line(client: TestClient) -> None:
    best = client.get(f"{API}/studies/digits/best?max_nbytes=300").json()
    front = client.get(f"{API}/studies/digits/front").json()
    small = client.get(f"{API}/studies/digits/front?max_nbytes=200").json()
    none = client.get(f"{API}/studies/digits/best?max_nbytes=7")

    assert best["best"]["trial"]["number"] == 1
    assert best["samples"] == 400
    assert [row["trial"]["number"] for row in front["trials"]] == [0, 1, 2, 3]
    assert [row["trial"]["number"] for row in small["trials"]] == [2, 3]
    assert set(front["full_precision"]["intervals"]) == {"selection"}
    assert none.status_code == 404
    assert none.json()["detail"].startswith(
        "study 'digits' has no trial with size at most 7 B: the nearest is trial 3 with 120 B"
    )


def test_every_limit_of_a_query_is_a_parameter(client: TestClient) -> None:
    description = client.get(f"{API}/openapi.json").json()
    names = {
        parameter["name"]
        for parameter in description["paths"][f"{API}/studies/{{study}}/best"]["get"]["parameters"]
    }

    assert names == {"study", "by", *BY_LIMIT}


def test_who_shows_the_tag_of_an_answer_is_told_when_it_has_changed(
    client: TestClient, tmp_path: Path
) -> None:
    first = client.get(f"{API}/studies/digits/front")
    seen = {"if-none-match": first.headers["etag"]}
    again = client.get(f"{API}/studies/digits/front", headers=seen)
    assert (again.status_code, again.content) == (304, b"")

    with open_store(file_url(tmp_path / "studies.db")) as store:
        lease = store.acquire("digits", "another", 60)
        store.set_provenance(lease, {"model": "a"}, results=("model",), accept=True)
        store.set_provenance(lease, {"model": "b"}, results=("model",), accept=True)
        store.release(lease, StudyState.STOPPED)
    last = client.get(f"{API}/studies/digits/front", headers=seen)
    assert (last.status_code, last.json()["trials"]) == (200, [])


def test_history_profile_and_log_are_told(client: TestClient) -> None:
    history = client.get(f"{API}/studies/digits/hypervolume").json()
    profile = client.get(f"{API}/studies/digits/profile").json()
    log = client.get(f"{API}/studies/digits/log?limit=2").json()

    assert [point["completed"] for point in history["points"]] == [1, 2, 3, 4]
    assert history["reference"] == {"error": 1.0, "nbytes": 1001.0}
    assert [layer["block"] for layer in profile["layers"]] == [
        *["visual.one..two"] * 2,
        "text.three",
    ]
    assert profile["cells"][0]["option"] == "w2a16+w2a16"
    assert [line["text"] for line in log["lines"]] == [
        "the study is submitted",
        "driver of digits runs the study",
    ]
    assert log["next_after"] == log["lines"][-1]["id"]


def events(text: str) -> list[tuple[str | None, str, dict[str, object]]]:
    found = []
    for part in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.splitlines() if ": " in line)
        if "event" in fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


def test_events_go_on_where_a_client_left(client: TestClient) -> None:
    whole = events(client.get(f"{API}/studies/digits/events").text)
    lines = [one for one in whole if one[1] == "line"]
    middle = lines[4][0]
    rest = client.get(f"{API}/studies/digits/events", headers={"last-event-id": str(middle)})

    assert [kind for _, kind, _ in whole[len(lines) :]] == ["status", "end"]
    assert [one for one in events(rest.text) if one[1] == "line"] == lines[5:]


def test_an_artefact_is_downloaded_as_it_was_built(client: TestClient, tmp_path: Path) -> None:
    (found,) = client.get(f"{API}/studies/digits/artefacts").json()["artefacts"]
    response = client.get(f"{API}/studies/digits/artefacts/{found['id']}")

    assert response.headers["content-disposition"] == 'attachment; filename="digits-1-packed.tar"'
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        assert archive.getnames() == [
            "digits-1-packed/card.json",
            "digits-1-packed/model.safetensors",
        ]
        # The first releases of Python 3.11 have no filters.
        filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path / "out", **filters)  # type: ignore[arg-type]  # as it is named
    unpacked = tmp_path / "out" / "digits-1-packed" / "model.safetensors"
    assert unpacked.read_bytes() == bytes(1500)


@pytest.mark.parametrize("case", ["elsewhere", "gone", "a link"])
def test_an_artefact_outside_of_the_roots_or_gone_is_not_downloaded(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    (tmp_path / "secret").write_text("secret")
    file = tmp_path / "artefact" / "model.safetensors"
    if case == "elsewhere":
        monkeypatch.setenv("BITFRONT_ROOTS", str(tmp_path / "other"))
    else:
        file.unlink()
    if case == "a link":
        file.symlink_to(tmp_path / "secret")

    (found,) = client.get(f"{API}/studies/digits/artefacts").json()["artefacts"]
    response = client.get(f"{API}/studies/digits/artefacts/{found['id']}")

    assert found["available"] is False
    assert response.status_code == 404
    assert "secret" not in response.text


def test_requests_reach_the_driver_only_where_there_is_one(
    client: TestClient, tmp_path: Path
) -> None:
    refused = client.post(f"{API}/studies/digits/stop")
    assert refused.status_code == 409
    assert refused.json()["detail"] == (
        "study 'digits' is complete, and nobody runs it: resume goes on with it"
    )
    with open_store(file_url(tmp_path / "studies.db")) as store:
        lease = store.acquire("digits", "another", 60)

        assert client.post(f"{API}/studies/digits/pause").json()["request"] == "pause"
        assert store.heartbeat(lease) is Request.PAUSE
        assert client.post(f"{API}/studies/digits/resume").json()["consequence"] == "goes on"
        assert store.heartbeat(lease) is None
        again = client.post(f"{API}/studies/digits/resume")
        assert again.json()["detail"] == "study 'digits' runs already, by another"
        assert client.delete(f"{API}/studies/digits").status_code == 409


def test_a_study_is_deleted(client: TestClient) -> None:
    assert client.delete(f"{API}/studies/digits").status_code == 204
    assert client.get(f"{API}/studies").json() == {"studies": []}
    assert client.delete(f"{API}/studies/digits").status_code == 404


def test_a_complete_study_is_resumed_only_for_more(client: TestClient, tmp_path: Path) -> None:
    with open_store(file_url(tmp_path / "studies.db")) as store:
        planned = store.study("digits").planned_trials
    response = client.post(f"{API}/studies/digits/resume", json={"trials": 5})

    assert response.status_code == 409
    assert planned > 5
    assert response.json()["detail"] == (
        "study 'digits' is complete: 5 trials are done, and trials of 6 or more adds to them"
    )


REFUSALS = {
    "/studies/digits/trials/77/attempts": (404, "study 'digits' has no trial 77"),
    "/studies/digits/trials/-1": (422, "number: '-1' is not possible: it must be at least 0"),
    "/studies/digits/trials/one": (422, "number must be a whole number, not 'one'"),
    "/studies/digits/trials?limit=0": (
        422,
        "the parameter limit: '0' is not possible: it must be at least 1",
    ),
    "/studies/digits/trials?state=done": (
        422,
        "the parameter state: 'done' is not possible: write running, complete, failed, cancelled, "
        "pruned or outdated",
    ),
    "/studies/digits/best?max_error=nan": (
        422,
        "the parameter max_error: 'nan' is not possible: it must be above 0",
    ),
    "/studies/digits/front?by=luck": (
        422,
        "the parameter by: 'luck' is not possible: write estimate or error",
    ),
    "/studies?page=2": (422, "the parameter 'page' is not known here: there are none"),
    "/studies/digits/artefacts/0123456789abcdef": (
        404,
        "study 'digits' has no artefact 0123456789abcdef",
    ),
    "/studies/digits/artefacts/first": (
        422,
        "artefact: 'first' is not possible: 'artefacts' lists their ids",
    ),
}


@pytest.mark.parametrize("path", REFUSALS)
def test_a_refusal_is_one_sentence(client: TestClient, path: str) -> None:
    response = client.get(f"{API}{path}")

    status, sentence = REFUSALS[path]
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "about:blank",
        "title": response.json()["title"],
        "status": status,
        "detail": sentence,
        "mistakes": [],
    }
    assert response.status_code == status


def test_a_method_that_a_route_has_not_is_refused(client: TestClient) -> None:
    response = client.put(f"{API}/studies")

    assert (response.status_code, response.json()["detail"]) == (
        405,
        "PUT is not possible for '/api/v1/studies'",
    )


READS = """
import sys
from pathlib import Path
from tests.support.served import served
with served(Path(sys.argv[1])) as client:
    found = client.get("/api/v1/studies/digits/artefacts").json()["artefacts"][0]["id"]
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    reads = [path for path, operations in paths.items() if "get" in operations]
    values = {"study": "digits", "number": "1", "artefact": found}
    for path in reads:
        response = client.get(path.format(**values))
        assert response.status_code == 200, (path, response.text)
    assert len(reads) == 15, reads
    pages = ("", "/live", "/choice?max_nbytes=300", "/trials/1", "/sensitivity")
    for path in ("/", "/submit", "/compare?a=digits", *(f"/studies/digits{p}" for p in pages)):
        response = client.get(path)
        assert response.status_code == 200, (path, response.text)
loaded = {"torch", "ray", "transformers", "matplotlib"} & sys.modules.keys()
assert not loaded, loaded
"""


def test_no_read_loads_torch_or_ray(tmp_path: Path) -> None:
    make_study(file_url(tmp_path / "studies.db"), tmp_path / "artefact")
    done = subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_a_study_that_runs_has_no_end_of_events_and_no_remaining_time_without_a_pace(
    tmp_path: Path,
) -> None:
    url = file_url(tmp_path / "studies.db")
    make_study(url, tmp_path / "artefact")
    with open_store(url) as store:
        running(store, "second")
        with served(tmp_path) as client:
            status = client.get(f"{API}/studies/second").json()

    assert (status["driven"], status["remaining_s"]) == (True, None)

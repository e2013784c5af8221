"""Studies are submitted, cancelled and resumed over HTTP, here and on a cluster."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.browser import serving
from tests.support.clusters import head
from tests.support.databases import Databases
from tests.support.studies import JOB

pytestmark = [pytest.mark.usefixtures("ray_folder"), pytest.mark.timeout(900)]


class Client:
    """A program that asks a server."""

    def __init__(self, address: str) -> None:
        self._address = f"{address}/api/v1/studies"

    def ask(
        self, path: str = "", body: str | None = None, *, kind: str = "application/json"
    ) -> tuple[int, dict[str, object]]:
        """The status and the content of an answer; with a body, or an empty one, it is a POST."""
        request = urllib.request.Request(
            f"{self._address}{path}",
            data=None if body is None else body.encode(),
            headers={"content-type": kind},
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def wait(self, study: str, state: str, trials: int = 0) -> dict[str, object]:
        """The status as soon as a study is in a state, with so many trials finished."""
        deadline = time.monotonic() + 400
        while True:
            status = self.ask(f"/{study}")[1]
            if status["state"] == state and int(str(status["finished_trials"])) >= trials:
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.2)


def submit_cancel_and_resume(client: Client, study: str) -> None:
    job = f"study: {study}\nstop: {{trials: 400}}{JOB}"

    status, submitted = client.ask(body=job, kind="application/yaml")
    assert (status, submitted.get("study")) == (201, study), submitted
    status, again = client.ask(body=job, kind="application/yaml")
    assert status == 409
    assert str(again["detail"]).startswith(f"a study named '{study}' exists already")

    client.wait(study, "running", 1)
    assert client.ask(f"/{study}/cancel", "")[0] == 200
    done = int(str(client.wait(study, "cancelled")["finished_trials"]))

    status, asked = client.ask(f"/{study}/resume", json.dumps({"trials": done + 2}))
    assert (status, asked["consequence"]) == (200, "goes on")
    complete = client.wait(study, "complete")
    assert (complete["finished_trials"], complete["driven"]) == (done + 2, False)
    assert client.ask(f"/{study}/front")[1]["trials"]


def test_a_study_that_was_cancelled_over_http_is_resumed_over_http(tmp_path: Path) -> None:
    with serving(tmp_path / "studies.db") as address:
        submit_cancel_and_resume(Client(address), "near")


def test_a_server_sends_studies_to_its_cluster(
    postgres_databases: Databases, tmp_path: Path
) -> None:
    url = postgres_databases.ready()
    environment = {"BITFRONT_DB": url, "BITFRONT_SPOOL": f"file://{tmp_path}/spool"}
    with (
        head(environment) as cluster,
        serving(url, "--address", cluster.dashboard) as address,
    ):
        submit_cancel_and_resume(Client(address), "far")

"""docs/serve.md: its commands are answered, its routes and statuses are those that there are."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from service.database_url import file_url
from service.http.app import make_app
from service.http.settings import Settings
from storage.store import open_store
from tests.support.browser import serving
from tests.support.served import make_study

TEXT = (Path(__file__).parents[3] / "docs" / "serve.md").read_text()
COMMANDS = re.findall(r"^curl .*$", TEXT, re.MULTILINE)
BAD = "study: first\nmodel: {source: reference}\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_are_answered(tmp_path: Path) -> None:
    database = tmp_path / "studies.db"
    make_study(file_url(database), tmp_path / "artefact")
    (tmp_path / "job.yaml").write_text(BAD)
    answers = {}
    with serving(database) as address:
        for command in COMMANDS:
            words = shlex.split(command.replace("http://127.0.0.1:8480", address))
            done = subprocess.run(
                [*words, "--silent"], capture_output=True, text=True, check=True, cwd=tmp_path
            )
            answers[words[-1].rpartition("/")[2]] = done.stdout

    assert len(COMMANDS) == 5
    best = json.loads(answers["best?max_nbytes=300"])
    assert best["best"]["trial"]["number"] == 1
    assert answers["events"].endswith("event: end\ndata: {}\n\n")
    assert json.loads(answers["pause"])["detail"] == (
        "study 'digits' is complete, and nobody runs it: resume goes on with it"
    )


def test_every_route_and_every_status_is_described(tmp_path: Path) -> None:
    url = file_url(tmp_path / "studies.db")
    with open_store(url) as store:
        description = make_app(Settings(url), store).openapi()
    told = set(re.findall(r"^\| (\d{3})", TEXT, re.MULTILINE))
    told |= set(re.findall(r"^\| (?:\d{3}), (\d{3})", TEXT, re.MULTILINE))
    operations = [own for path in description["paths"].values() for own in path.values()]
    refusals = {status for own in operations for status in own["responses"] if status >= "400"}
    last_words = {path.rpartition("/")[2].strip("{}") for path in description["paths"]}

    assert refusals - told == {"400"}
    assert told <= refusals
    assert {word for word in last_words if word not in TEXT} - {
        "study",
        "number",
        "artefact",
    } == set()

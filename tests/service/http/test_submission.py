"""Job files over HTTP: the same sentences as on the command line, and nothing of them is run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from starlette.testclient import TestClient

from service.cli import main
from tests.support.served import served

WHOLE = "study: first\nmodel: {source: reference}\ndata: {source: reference}\n"
YAML = {"content-type": "application/yaml"}

BAD = {
    "nothing": "",
    "no mapping": "- a\n- b\n",
    "not YAML": "study: [\n",
    "a tab": "study:\n\tname: a\n",
    "a key twice": f"{WHOLE}study: second\n",
    "a tag that would run code": f"{WHOLE}target: !!python/object/apply:os.system [touch BAD]\n",
    "a misspelt key": f"{WHOLE}space: {{weight_bit: [2]}}\n",
    "an unknown key": f"{WHOLE}zzz: 1\n",
    "several mistakes": f"{WHOLE}space: {{weight_bits: [2, 7]}}\nstop: {{trials: 0}}\ntarget: x\n",
    "only a name": "study: first\n",
    "a name that leaves its folder": WHOLE.replace("first", "../first"),
    "a folder that is not there": WHOLE.replace(
        "data: {source: reference}", "data: {source: image_folder, path: /nowhere/pictures}"
    ),
    "no kernel": f"{WHOLE}objectives: [error, latency_s]\nspace: {{weight_bits: [3]}}\n",
    "a pattern that matches no layer": f"{WHOLE}space:\n  keep: {{'zzz*': 8}}\n",
    "a number too large": f"{WHOLE}stop: {{trials: 99999999999999999999}}\n",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with served(tmp_path_factory.mktemp("served")) as client:
        yield client


def told(client: TestClient, content: bytes, headers: dict[str, str] = YAML) -> list[str]:
    """What is said of a job file, a line each, as the command line writes it."""
    response = client.post("/api/v1/studies", content=content, headers=headers)
    assert response.status_code == 422, response.text
    problem = response.json()
    mistakes = problem["mistakes"]
    assert mistakes[0]["message"] in problem["detail"]
    assert len(client.get("/api/v1/studies").json()["studies"]) == 1
    return [
        one["message"] if one["line"] is None else f"line {one['line']}: {one['message']}"
        for one in mistakes
    ]


@pytest.mark.parametrize("case", [case for case in BAD if "pattern" not in case])
def test_a_bad_job_file_is_told_as_validate_tells_it(
    client: TestClient, tmp_path: Path, case: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(BAD[case])
    result = CliRunner().invoke(main, ["validate", str(path)])
    assert result.exit_code == 2
    said = result.stderr.split("Error: ", 1)[1].rstrip().replace(f"{path}, line", "line")

    assert told(client, BAD[case].encode()) == said.replace(str(path), "the job file").split("\n")


def test_json_is_taken_as_yaml_is_but_has_no_lines(client: TestClient) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    job = {"study": "first", "model": {"source": "reference"}, "data": {"source": "reference"}}
    wrong = json.dumps({**job, "space": {"weight_bits": [2, 7]}, "stop": {"trials": 0}})

    assert told(client, wrong.encode(), headers) == [
        "space.weight_bits: 7 is not possible: weight bits must be among 2, 3, 4, 5, 6, 8, 16",
        "stop.trials: 0 is not possible: it must be at least 1",
    ]
    assert told(client, b'{"study": "a", "study": "b"}', headers) == [
        "this is not valid JSON: the key 'study' is given a second time: keep one of them"
    ]
    assert told(client, b"{", headers)[0].startswith("this is not valid JSON: Expecting property")
    assert told(client, b"[" * 200_000, headers) == [
        "this is not valid JSON: it is nested too deep"
    ]
    assert "surrogates" in told(client, b'{"study": "\\ud800"}', headers)[0]


def test_a_body_of_another_type_is_refused(client: TestClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = {"content-type": kind} if kind else {}
        response = client.post("/api/v1/studies", content=WHOLE.encode(), headers=headers)
        assert response.status_code == 415
        assert response.json()["detail"] == (
            "a job is sent with the content-type application/yaml or application/json, not "
            + (repr(kind) if kind else "without one")
        )


def test_a_study_of_that_name_is_a_conflict(client: TestClient) -> None:
    content = WHOLE.replace("first", "digits").encode()
    response = client.post("/api/v1/studies", content=content, headers=YAML)

    assert response.status_code == 409
    assert response.json()["detail"].startswith("a study named 'digits' exists already")


def images(text: str) -> bytes:
    data = f"data: {{source: image_folder, path: {text}}}"
    return WHOLE.replace("data: {source: reference}", data).encode()


@pytest.mark.parametrize("place", ["/etc", "/nowhere/at/all"])
def test_a_path_outside_of_the_roots_is_refused_and_not_looked_for(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("BITFRONT_ROOTS", str(tmp_path))

    (sentence,) = told(client, images(place))

    assert sentence == (
        f"line 3: data.path: {place} lies outside of the folders that this machine gives to jobs "
        "(BITFRONT_ROOTS): move it into one of them"
    )


def test_a_link_out_of_the_roots_is_followed_before_it_is_judged(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFRONT_ROOTS", str(tmp_path))
    (tmp_path / "link").symlink_to("/etc")

    (sentence,) = told(client, images(str(tmp_path / "link")))

    assert "lies outside of the folders" in sentence


@pytest.mark.parametrize("text", ["$SECRET/x", "'${SECRET}'", "~/x", "pictures", "../x"])
def test_nothing_of_the_servers_surroundings_is_put_into_a_path(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SECRET", "pa55w0rd")
    monkeypatch.setenv("HOME", "/pa55w0rd")

    (sentence,) = told(client, images(text))

    assert sentence.startswith("line 3: data.path: ")
    assert "pa55w0rd" not in sentence


def test_a_model_takes_no_variable_either(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "pa55w0rd")
    for line in (
        "model: {source: open_clip, name: ViT-B-32, weights: $SECRET/a.pt}",
        "model: {source: transformers, name: $SECRET}",
        "model: {source: transformers, name: ~root/x}",
        "model: {source: open_clip, name: 'local-dir:$SECRET'}",
    ):
        content = WHOLE.replace("model: {source: reference}", line).encode()
        sentences = told(client, content)
        assert sentences[0].startswith("line 2: model.")
        assert "pa55w0rd" not in str(sentences)


def test_nothing_in_an_uploaded_file_is_executed(client: TestClient, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for line in (
        f"target: !!python/object/apply:os.system ['touch {mark}']",
        f"target: !!python/object/new:subprocess.check_call [['touch', '{mark}']]",
        f"target: $(touch {mark})",
        f"target: '`touch {mark}`'",
        f"target: \"{{{{ cycler.__init__.__globals__.os.popen('touch {mark}') }}}}\"",
    ):
        told(client, f"{WHOLE}{line}\n".encode())

    assert not mark.exists()


CHECK = """
import sys
from pathlib import Path
from bitfront.job import examine_job
from service.http.checking import check
from service.study.check import check_job
found = check_job(examine_job(Path(sys.argv[1])).sound())
print(found.problems, *found.notes)
loaded = {"torch", "ray", "transformers", "open_clip"} & sys.modules.keys()
assert not loaded, loaded
"""


def test_pictures_are_looked_at_without_torch(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, len(name) * ord(name[0]) % 255, 9)).save(
                folder / f"{number}.png"
            )
    job = tmp_path / "job.yaml"
    samples = "samples: {calibration: 2, tuning: 2, selection: 2, test: 2}"
    data = f"data: {{source: image_folder, path: {tmp_path}/pictures, {samples}}}"
    model = "model: {source: open_clip, name: ViT-B-32}"
    job.write_text(f"study: first\n{model}\n{data}\n")

    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(job)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] ")
    assert "8 images in 2 classes" in done.stdout

"""Every command in a document can be typed, and every piece of a job in one is a piece of a job."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from bitfront.spec import JobSpec
from bitfront.trial import FrontChange, StudyState
from service.cli import main
from service.database_url import file_url
from storage.store import open_store
from tests.support.examples import parse
from tests.support.store_samples import complete, job, trial

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"))
    if "bitfront " in page.read_text() and page.name != "refusals.md"
]
"""What a person may copy; what is refused has a page, which a test of its own compares."""
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`bitfront ([a-z][^`]*)`")
BASE = {"study": "pets", "model": {"source": "reference"}, "data": {"source": "reference"}}


def identity(page: Path) -> str:
    return str(page.relative_to(ROOT))


def typed(page: Path) -> list[str]:
    """The commands in its fences: after `$ `, where a fence has that, or else of every line."""
    found = []
    for _, text in FENCE.findall(page.read_text()):
        lines = text.splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += [
            line.strip().removeprefix("bitfront ")
            for line in prompted or lines
            if re.match(r" *bitfront (?!answers at)", line)
        ]
    return found


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_every_command_of_a_document_can_be_typed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = []
    for line in typed(page):
        try:
            parse(line)
        except (click.ClickException, KeyError) as error:
            refused.append(f"{line}: {error}")

    assert refused == []


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_a_command_that_is_named_in_a_sentence_has_those_options(page: Path) -> None:
    unknown = []
    for text in INLINE.findall(FENCE.sub("", page.read_text())):
        name, *words = text.split()
        known = {"--help"}
        if name in main.commands:
            known |= {option for own in main.commands[name].params for option in own.opts}
        if name not in main.commands or {w for w in words if w.startswith("--")} - known:
            unknown.append(text)

    assert unknown == []


def test_the_documents_have_commands() -> None:
    assert sum(len(typed(page)) for page in PAGES) > 60


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(ROOT / "docs" / "howto").glob("*.md")], ids=identity
)
def test_every_piece_of_a_job_is_one(page: Path) -> None:
    pieces = [
        yaml.safe_load(text) for kind, text in FENCE.findall(page.read_text()) if kind == "yaml"
    ]

    assert [JobSpec.model_validate(BASE | piece) for piece in pieces] or page.name == "cluster.md"


ASKED = {
    *("status", "best", "front", "show", "compare", "logs", "list", "export", "export-optuna"),
    *("methods", "models", "targets", "artefacts", "schema", "completion", "delete"),
}
"""What only reads a study that is complete, or deletes it."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The studies that documents speak of, each with 39 trials of a model of that name."""
    path = tmp_path_factory.mktemp("documents") / "studies.db"
    with open_store(file_url(path)) as store:
        for study in ("pets", "pets-w4a8"):
            spec = job(study, model={"source": "open_clip", "name": "ViT-B-32", "weights": "w"})
            store.create_study(spec, {"model": "a hash", "selection": "pets"})
            lease = store.acquire(study, "a driver", 60)
            store.set_reference(lease, {"error": 0.05, "nbytes": 350e6})
            for number in range(39):
                store.start_trial(lease, replace(trial(number), study=study))
                values = {
                    "error": 0.14 - number / 1000,
                    "nbytes": 20e6 + 1e5 * number,
                    "bits_per_weight": 2 + number / 30,
                    "divergence": 0.04 - number / 1000,
                }
                front = FrontChange((number,), (), 0.5)
                complete(store, lease, number, values, front=front, key=f"{study} {number}")
            store.release(lease, StudyState.COMPLETE, "39 trials are done")
    return path


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_what_asks_a_study_is_answered(
    page: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(database, "studies.db")
    asked = [line for line in typed(page) if line.split()[0] in ASKED and "digits" not in line]
    asked.sort(key=lambda line: line.startswith("delete"))
    for line in asked:
        words = shlex.split(line, comments=True)
        words = words[: next((n for n, word in enumerate(words) if word in (">", "|")), None)]
        environment = {"BITFRONT_DB": "studies.db"}
        result = CliRunner().invoke(main, words, env=environment, input="y\n")
        assert result.exit_code == 0, f"{line}\n{result.output}"

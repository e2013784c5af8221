"""The Python interface on a real study of the bundled model, which `docs/python.md` makes."""

import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

import bitfront as bf
from bitfront.spec import StopSpec

DOCUMENT = Path(__file__).parents[3] / "docs" / "python.md"


class Document:
    """The document, section by section, in one Python session."""

    def __init__(self) -> None:
        text = re.sub(r"^```.*$", "", DOCUMENT.read_text(), flags=re.MULTILINE)
        parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
        self.sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        self._globals: dict[str, object] = {}
        self._done: set[str] = set()

    def run(self, section: str) -> None:
        """Runs a section's examples, after those of the sections before it; each runs once."""
        for name in self.sections:
            if name not in self._done:
                self._done.add(name)
                self._run(name)
            if name == section:
                return

    def _run(self, section: str) -> None:
        text, told = self.sections[section], list[str]()
        examples = doctest.DocTestParser().get_doctest(text, {}, section, str(DOCUMENT), 0)
        examples.globs = self._globals  # the next section goes on with it
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
        found = runner.run(examples, out=told.append, clear_globs=False)
        assert not found.failed, "".join(told)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory, ray_folder: str) -> Iterator[Document]:
    """The document, whose first section has made the study `digits` in `digits.db`."""
    path = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("BITFRONT_CACHE", str(path / "cache"))
        patch.setenv("XDG_STATE_HOME", str(path / "state"))
        found = Document()
        found.run("A study")
        yield found


@pytest.fixture
def folder(document: Document) -> Path:
    return Path.cwd()


@pytest.fixture
def study(folder: Path) -> Iterator[bf.Study]:
    with bf.open(folder / "digits.db") as db:
        yield db.study("digits")


@pytest.mark.parametrize(
    "section", ["What it found", "On a model of your own program", "What it is told"]
)
def test_the_documents_examples_give_what_stands_there(document: Document, section: str) -> None:
    document.run(section)


def test_every_section_with_examples_runs(document: Document) -> None:
    with_examples = {name for name, text in document.sections.items() if ">>>" in text}

    assert with_examples == {
        "A study",
        "What it found",
        "On a model of your own program",
        "What it is told",
    }


def test_trials_are_the_table_that_optuna_makes_of_the_exported_study(
    folder: Path, study: bf.Study, tmp_path: Path
) -> None:
    from service.views.optuna_export import export_study

    with bf.open(folder / "digits.db") as db:
        export_study(db.connection.store(), "digits", f"sqlite:///{tmp_path / 'optuna.db'}")
    exported = optuna.load_study(study_name="digits", storage=f"sqlite:///{tmp_path / 'optuna.db'}")

    theirs, ours = exported.trials_dataframe(), study.trials_dataframe()

    added = {"user_attrs_bitfront trial"} | {c for c in theirs if c.startswith("system_attrs_")}
    assert list(ours.columns) == [c for c in theirs.columns if c not in added]
    assert list(ours["number"]) == list(theirs["user_attrs_bitfront trial"])
    for column in ours.columns[1:]:
        assert ours[column].dropna().tolist() == theirs[column].dropna().tolist(), column


def test_a_front_draws_itself(study: bf.Study) -> None:
    drawn = study.front()._repr_html_()

    assert drawn.startswith('<img alt="error against size: the front of digits"')
    assert drawn.count("<tr>") == 1 + len(study.front())
    assert "<script" not in drawn
    assert study.front().png().startswith(b"\x89PNG")


def test_a_study_in_the_background_outlives_the_call(folder: Path, study: bf.Study) -> None:
    few = study.spec.model_copy(update={"stop": StopSpec(trials=3)})

    with bf.open(folder / "digits.db") as db:
        behind = db.submit(few, study="behind", wait=False)

        assert behind.record.owner is not None
        assert str(behind.wait().state) == "complete"
        assert behind.status.finished == 3


def test_what_a_background_driver_refuses_is_told_here(folder: Path) -> None:
    with bf.open(folder / "digits.db") as db, pytest.raises(bf.BitfrontError) as caught:
        db.submit({**db.study("digits").spec.model_dump(mode="json")}, wait=False)

    assert "a study named 'digits' exists already" in str(caught.value)

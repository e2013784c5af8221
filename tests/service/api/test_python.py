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
EXAMPLES = doctest.ELLIPSIS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_folder: str) -> Iterator[Path]:
    """Where the document's examples have run: it holds `digits.db`."""
    path = tmp_path_factory.mktemp("python")
    text = re.sub(r"^```.*$", "", DOCUMENT.read_text(), flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(text, {}, "python.md", str(DOCUMENT), 0)
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("BITFRONT_CACHE", str(path / "cache"))
        patch.setenv("XDG_STATE_HOME", str(path / "state"))
        runner = doctest.DocTestRunner(verbose=False, optionflags=EXAMPLES)
        failed, tried = runner.run(examples, out=told.append)
        assert not failed, "".join(told)
        assert tried > 20
        yield path


@pytest.fixture
def study(folder: Path) -> Iterator[bf.Study]:
    with bf.open(folder / "digits.db") as db:
        yield db.study("digits")


def test_the_documents_examples_give_what_stands_there(study: bf.Study) -> None:
    assert str(study.state) == "complete"


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

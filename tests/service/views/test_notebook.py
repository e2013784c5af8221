"""What a notebook shows: IPython's own display, captured."""

import re
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

import bitfront as bf
from service.views.notebook import NotebookReporter, is_notebook
from storage.store import open_store
from tests.support.store_samples import complete, running, trial


def drawn(outputs: list[RichOutput]) -> str:
    """The page that is seen in the end."""
    assert outputs
    return str(outputs[-1].data["text/html"])


@pytest.fixture
def shell() -> InteractiveShell:
    return InteractiveShell.instance()


def test_a_study_is_a_bar_that_moves_in_place(shell: InteractiveShell) -> None:
    with capture_output() as captured, NotebookReporter(every_s=0) as reporter:
        reporter.stage("cells", total=4)
        reporter.advance(4)
        reporter.stage("trials", total=10)
        reporter.trial(3, 10, 0.079, 0.7312)
        reporter.warn("a < b")

    page = drawn(captured.outputs)
    assert [(m[1], m[2]) for m in re.finditer(r'value="(\d+)" max="(\d+)"', page)] == [
        ("4", "4"),
        ("3", "10"),
    ]
    assert "error 7.9 %, hypervolume 0.7312" in page
    assert "<b>warning: a &lt; b</b>" in page
    assert "<script" not in page


def test_a_stage_without_a_known_end_has_a_bar_without_one(shell: InteractiveShell) -> None:
    with capture_output() as captured, NotebookReporter() as reporter:
        reporter.stage("load the model", total=None)
        reporter.advance()

    assert "<progress></progress>" in drawn(captured.outputs)


def test_bars_are_not_drawn_more_often_than_a_person_sees(shell: InteractiveShell) -> None:
    with capture_output() as captured, NotebookReporter(clock=lambda: 0.0) as reporter:
        reporter.stage("cells", total=1000)
        for _ in range(1000):
            reporter.advance()

    assert len(captured.outputs) == 3
    assert 'value="1000"' in drawn(captured.outputs)


def test_a_plain_shell_is_no_notebook(shell: InteractiveShell) -> None:
    assert not is_notebook()


def test_studies_and_what_they_found_are_drawn_by_ipython(
    shell: InteractiveShell, tmp_path: Path
) -> None:
    path = tmp_path / "a.db"
    with open_store(f"sqlite:///{path}") as store:
        lease = running(store)
        store.start_trial(lease, trial(0))
        assert complete(store, lease, 0, {"error": 0.1, "nbytes": 4000})
    draw = shell.display_formatter.format  # type: ignore[union-attr]  # it has one

    with bf.open(path) as db:
        study = db.study("digits")
        pages = [
            draw(it)[0]["text/html"] for it in (db.studies, study, study.status, study.trial(0))
        ]

    assert all("<table>" in page for page in pages)
    assert "10.0 %" in pages[-1]

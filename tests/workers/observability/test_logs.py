"""Log lines: what they hold, who they belong to, and that no password is in any."""

import contextvars
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress

from bitfront.errors import SpecError
from workers.observability.logs import bound, messages, set_up

PACKAGES = ("bitfront", "objectives", "search", "service", "storage", "workers")
logger = logging.getLogger("workers.test_logs")

SECRET = "Hunter2"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process logs after each test as it did before, and no variable of the shell counts."""
    for variable in ("BITFRONT_LOG", "BITFRONT_LOG_LEVEL", "BITFRONT_JOB"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in PACKAGES}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(capture=False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_text_line_is_the_level_and_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    set_up()

    with bound(study="demo", trial=3):
        logger.info("trial %d runs", 3)
        logger.warning("trial %d failed at postgresql://me:pw@host/name", 3)

    assert capsys.readouterr().err == "WARNING trial 3 failed at postgresql://me:***@host/name\n"


def test_a_json_line_holds_what_happened_where_and_to_what(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFRONT_LOG", "json")
    monkeypatch.setenv("BITFRONT_JOB", "demo-1")
    set_up()
    before = datetime.now(UTC)

    with bound(study="demo"), bound(trial=3, attempt=2):
        logger.info("100 %s", "%d é\nnext")

    (line,) = lines(capsys)
    time = datetime.fromisoformat(str(line.pop("time")))
    assert before <= time <= datetime.now(UTC)
    assert time.utcoffset() == timedelta(0)
    assert line == {
        "level": "INFO",
        "logger": "workers.test_logs",
        "message": "100 %d é\nnext",
        "study": "demo",
        "job": "demo-1",
        "trial": 3,
        "attempt": 2,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
    }


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_text_of_an_exception_and_its_causes_is_masked(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(form=form)

    try:
        try:
            raise OSError("no answer: password='Hunter2 x'")
        except OSError as error:
            raise ValueError("postgresql://me:Hunter2@host/name") from error
    except ValueError:
        logger.exception("lost", extra={"where": {"url": "postgresql://me:Hunter2@host"}})

    shown = capsys.readouterr().err
    assert SECRET not in shown
    assert "OSError: no answer: password=***" in shown
    assert "ValueError: postgresql://me:***@host/name" in shown
    if form == "json":
        assert "Traceback" in json.loads(shown)["exception"]


def test_only_our_packages_speak_below_warning(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(level="debug")

    logger.debug("ours")
    logging.getLogger("alembic.runtime").info("theirs")
    logging.getLogger("alembic.runtime").warning("theirs, worth hearing")

    assert capsys.readouterr().err == "DEBUG ours\nWARNING theirs, worth hearing\n"


def test_the_environment_sets_the_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFRONT_LOG_LEVEL", "ERROR")
    set_up()

    logger.warning("not heard")
    logger.error("heard")

    assert capsys.readouterr().err == "ERROR heard\n"


def test_setting_up_again_replaces_the_form_and_repeats_no_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up(form="json")
    set_up(form="text")

    logger.warning("once")

    assert capsys.readouterr().err == "WARNING once\n"


@pytest.mark.parametrize(
    ("given_form", "level", "message"),
    [
        ("xml", None, "BITFRONT_LOG cannot be 'xml': choose one of text, json"),
        (None, "loud", "BITFRONT_LOG_LEVEL cannot be 'loud': choose one of debug, info"),
    ],
)
def test_an_unknown_setting_is_named_with_what_is_possible(
    given_form: str | None, level: str | None, message: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        set_up(form=given_form, level=level)


def test_names_end_with_their_block_and_reach_a_thread_by_its_context(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up(form="json")

    with bound(study="demo"):
        with bound(trial=1, study=None):
            logger.info("both")
        logger.info("study")
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(logger.info, "thread"))
        thread.start()
        thread.join()
    logger.info("none")

    found = [(line["message"], line.get("study"), line.get("trial")) for line in lines(capsys)]
    assert found == [
        ("both", "demo", 1),
        ("study", "demo", None),
        ("thread", "demo", None),
        ("none", None, None),
    ]


def test_json_takes_in_warnings_of_python_and_lines_for_a_person(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up(form="json", level="warning")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    stream = messages()
    stream.write("trials: 3 of 60\ntrials: ")
    stream.write("6 of 60\n\n")

    warned, *progress = lines(capsys)
    assert "DeprecationWarning: old" in str(warned["message"])
    assert [line["message"] for line in progress] == ["trials: 3 of 60", "trials: 6 of 60"]
    assert not stream.isatty()


def test_messages_for_a_person_go_to_stderr_where_the_log_is_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up()

    messages().write("trials: 3 of 60\n")

    assert capsys.readouterr().err == "trials: 3 of 60\n"


def test_an_error_that_ends_the_process_is_one_json_line_without_its_password() -> None:
    script = (
        "from workers.observability.logs import set_up\n"
        "set_up(form='json')\n"
        "raise ValueError('postgresql://me:Hunter2@host')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    line = json.loads(done.stderr)
    assert done.returncode == 1
    assert line["level"] == "CRITICAL"
    assert line["exception"].endswith("ValueError: postgresql://me:***@host")


def test_logging_without_json_imports_neither_ray_nor_the_json_library() -> None:
    script = (
        "import sys\n"
        "from workers.observability.logs import set_up\n"
        "set_up()\n"
        "print({'ray', 'torch', 'sqlalchemy', 'pythonjsonlogger'} & set(sys.modules))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"


def test_a_line_stands_above_the_progress_bars_and_leaves_them_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign] # a terminal that can be read back
    monkeypatch.setattr(sys, "stderr", terminal)
    set_up()
    console = Console(file=terminal, force_terminal=True, width=60, height=20)

    with Progress("{task.description}", console=console, auto_refresh=False) as bars:
        bars.add_task("cells: all of them")
        bars.add_task("trials: three of sixty")
        bars.refresh()
        logger.warning("trial 3 failed")
        logger.warning("trial 4 failed")
        bars.refresh()

    assert screen(terminal.getvalue()) == [
        "WARNING trial 3 failed",
        "WARNING trial 4 failed",
        "cells: all of them",
        "trials: three of sixty",
    ]


def screen(written: str) -> list[str]:
    """What a terminal shows in the end: it knows new lines, going up, and erasing a line."""
    rows, row, column = [""], 0, 0
    for count, command, letter in re.findall(r"\x1b\[\??([\d;]*)([A-Za-z])|([^\x1b])", written):
        if letter == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif letter == "\r":
            column = 0
        elif letter:
            rows[row] = rows[row][:column].ljust(column) + letter + rows[row][column + 1 :]
            column += 1
        elif command == "A":
            row -= int(count or 1)
        elif command == "K":
            rows[row] = ""
    return [line.rstrip() for line in rows if line.strip()]

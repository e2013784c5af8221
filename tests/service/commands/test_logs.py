"""The log of a study: what each line says, how it is followed, and what it never shows."""

import io
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from bitfront.trial import Cause, FrontChange, StudyState
from service.cli import main
from service.database_url import file_url
from service.views.progress import PlainReporter
from service.views.status import is_driven, is_interrupted
from service.views.watching import follow_log, watch
from storage.records import LogLine, Request
from storage.store import Store, open_store
from tests.support.store_samples import complete, events, fail, finished, prune, running, trial

TRACEBACK = 'Traceback (most recent call last):\n  File "model.py", line 3\nMemoryError: 12 GB\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--db", str(path)])


def eventful(store: Store) -> None:
    """A study with an attempt of each fate, ended in order."""
    lease = running(store)
    for number in range(3):
        store.start_trial(lease, trial(number))
    values = {"error": 0.086, "nbytes": 2_100_000.0}
    complete(store, lease, 0, values, front=FrontChange((0,), (), 0.25))
    fail(store, lease, 1, 1, Cause.OUT_OF_MEMORY, "12 GB\nasked for", TRACEBACK, retry=True)
    fail(store, lease, 1, 2, Cause.USER_ERROR, "bad batch", "Traceback 2", retry=False)
    store.request("digits", Request.CANCEL)
    store.cancel_running(lease)
    store.release(lease, StudyState.CANCELLED, "cancelled on request")
    lease = store.acquire("digits", "next", 60)
    store.fence(lease)
    prune(store, lease, 2, 2, seconds=65.0, worker="worker-2")
    store.set_state(lease, StudyState.RUNNING, "the space is widened")
    store.save_test_values(lease, {0: {"error": 0.09}})
    store.release(lease, StudyState.COMPLETE)


def test_every_event_is_a_line_in_plain_words(path: Path) -> None:
    with open_store(file_url(path)) as store:
        eventful(store)
        times = [event.at for event in events(store, "digits")]

    result = run(path, "logs", "digits")

    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line[:20] for line in lines] == [f"{at:%Y-%m-%d %H:%M:%S}Z" for at in times]
    assert [line[22:] for line in lines] == [
        "the study is submitted",
        "driver of digits runs the study",
        "trial 0, attempt 1: starts, proposed by sampler",
        "trial 1, attempt 1: starts, proposed by sampler",
        "trial 2, attempt 1: starts, proposed by sampler",
        "trial 0, attempt 1, a worker, 0 s: complete, error 8.6 %, 2.10 MB, hypervolume 0.25",
        "trial 1, attempt 1: fails and starts again, out_of_memory: 12 GB asked for",
        "trial 1, attempt 2: fails for good, user_error: bad batch",
        "somebody asks the driver to cancel",
        "trial 2, attempt 1: cancelled",
        "driver of digits leaves the study cancelled: cancelled on request",
        "next runs the study",
        "trial 2, attempt 2: starts again, for it was cancelled",
        "trial 2, attempt 2, worker-2, 1 min 05 s: stops early, for it cannot reach the front "
        "any more",
        "the study is running: the space is widened",
        "measured on the test split: trial 0",
        "next leaves the study complete",
    ]


def test_one_trial_comes_with_its_tracebacks(path: Path) -> None:
    with open_store(file_url(path)) as store:
        eventful(store)

    lines = run(path, "logs", "digits", "--trial", "1").stdout.splitlines()
    objects = [
        json.loads(line)
        for line in run(
            path, "logs", "digits", "--trial", "1", "--format", "json"
        ).stdout.splitlines()
    ]

    assert [line[22:] for line in lines if not line.startswith(" ")] == [
        "trial 1, attempt 1: starts, proposed by sampler",
        "trial 1, attempt 1: fails and starts again, out_of_memory: 12 GB asked for",
        "trial 1, attempt 2: fails for good, user_error: bad batch",
    ]
    indented = [line for line in lines if line.startswith(" ")]
    assert indented == [f"    {line}" for line in [*TRACEBACK.splitlines(), "Traceback 2"]]
    shown = [(o["event"], o["attempt"], o["cause"], o["traceback"]) for o in objects]
    assert shown == [
        ("started", 1, None, None),
        ("attempt_failed", 1, "out_of_memory", TRACEBACK),
        ("failed", 2, "user_error", "Traceback 2"),
    ]


def test_a_trial_that_is_not_there_is_a_mistake(path: Path) -> None:
    with open_store(file_url(path)) as store:
        eventful(store)

    result = run(path, "logs", "digits", "--trial", "3")

    message = "Error: study 'digits' has no trial 3: see 'bitfront logs digits'\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", message)


def test_following_tells_every_event_once_until_the_study_ends(store: Store) -> None:
    lease = running(store)
    heard: list[LogLine] = []
    looks = 0

    def pause(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks < 4:
            finished(store, lease, looks, error=0.5, nbytes=9)
        else:
            store.release(lease, StudyState.STOPPED, "stopped on request")

    last = follow_log(store, "digits", heard.append, pause=pause)

    assert looks == 4
    assert last.state is StudyState.STOPPED
    assert [line.event for line in heard] == events(store, "digits")
    ended = [(line.event.trial, line.attempt, line.worker) for line in heard if line.seconds]
    assert ended == [(number, 1, "a worker") for number in (1, 2, 3)]


def test_following_reads_a_log_of_any_length(store: Store) -> None:
    lease = running(store)
    for number in range(5):
        finished(store, lease, number, error=0.5, nbytes=9)
    whole = store.log("digits")

    pages = [store.log("digits", limit=4)]
    while pages[-1]:
        pages.append(store.log("digits", pages[-1][-1].event.id, limit=4))

    assert [line for page in pages for line in page] == whole
    assert len(pages) == 4


def test_following_ends_where_nobody_runs_the_study(path: Path) -> None:
    with open_store(file_url(path)) as store:
        running(store)
        age(store, "-61 seconds")

    result = run(path, "logs", "digits", "--follow")

    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr.startswith("nobody runs study digits: 'bitfront resume digits --db")


def test_following_a_study_that_has_ended_says_how(path: Path) -> None:
    with open_store(file_url(path)) as store:
        lease = running(store)
        store.release(lease, StudyState.FAILED, "above half of the trials failed")

    result = run(path, "logs", "digits", "--follow")

    assert result.exit_code == 1
    assert result.stderr == "study digits is failed: above half of the trials failed\n"


def age(store: Store, shift: str) -> None:
    """Moves the last heartbeat, as a driver's death or a clock that jumps does."""
    moved = (
        "UPDATE study SET heartbeat_at = strftime('%Y-%m-%d %H:%M:%f', 'now', :shift)"
        if store._database.is_sqlite
        else "UPDATE study SET heartbeat_at = clock_timestamp() + CAST(:shift AS interval)"
    )
    with store._database.engine.begin() as connection:
        connection.execute(text(moved), {"shift": shift})


@pytest.mark.parametrize(
    ("shift", "driven"),
    [
        ("-50 seconds", True),
        ("-61 seconds", False),
        ("+50 seconds", True),
        ("+3600 seconds", False),
    ],
)
def test_a_heartbeat_counts_for_the_length_of_its_lease(
    store: Store, shift: str, driven: bool
) -> None:
    running(store)  # for a lease of 60 s
    age(store, shift)

    study, (summary,) = store.study("digits"), store.studies()

    assert study.heartbeat_age_s == pytest.approx(-float(shift.split()[0]), abs=8)
    assert (is_driven(study), is_driven(summary)) == (driven, driven)
    assert (is_interrupted(study), is_interrupted(summary)) == (not driven, not driven)


def test_a_pause_is_asked_for_and_shown(path: Path) -> None:
    with open_store(file_url(path)) as store:
        lease = running(store)

        asked = run(path, "pause", "digits")
        waiting = run(path, "status", "digits").stdout
        request = store.heartbeat(lease)
        store.set_state(lease, StudyState.PAUSED)
        paused = run(path, "status", "digits").stdout
        listed = run(path, "list").stdout

    assert request is Request.PAUSE
    assert asked.exit_code == 0
    assert asked.stderr == (
        f"study digits finishes what runs and waits; "
        f"'bitfront resume digits --db {path}' continues it\n"
    )
    assert re.search(
        r"^state +profiling, asked to pause, driven by driver of digits \(seen",
        waiting,
        re.MULTILINE,
    )
    assert re.search(
        r"^state +paused, asked to pause, driven by driver of digits", paused, re.MULTILINE
    )
    assert "): 'bitfront resume digits' continues it\n" in paused
    assert listed.splitlines()[1].split()[:2] == ["digits", "paused"]


def test_watching_goes_on_through_a_pause(store: Store) -> None:
    lease = running(store)
    states = iter([StudyState.RUNNING, StudyState.PAUSED, StudyState.PAUSED, StudyState.RUNNING])
    stream = io.StringIO()

    def pause(_: float) -> None:
        state = next(states, None)
        if state is None:
            store.release(lease, StudyState.COMPLETE)
        else:
            store.set_state(lease, state)

    last = watch(store, "digits", PlainReporter(stream), pause=pause)

    assert last.study.state is StudyState.COMPLETE
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == [
        "cells",
        "trials",
        "study digits is paused",
        "trials",
    ]


@pytest.mark.parametrize(
    "leak",
    [
        "postgresql://ann:geheim@db.example/x",
        "postgresql+psycopg://ann:ge@heim@db.example:5432/x",
        "s3://key:geheim@bucket/y and more",
        "connect(host='db', password='geheim', user='ann')",
        "{'user': 'ann', 'password': 'geheim'}",
        "postgresql://db.example/x?user=ann&password=geheim&sslmode=require",
        "PGPASSWORD=geheim psql",
        "postgresql://ann:ge/heim@db.example/x",
        "host=db passwd=geheim",
        "aws_secret_access_key=geheim",
        "db:\n  password: geheim",
    ],
)
def test_no_password_reaches_the_log_or_any_other_output(path: Path, leak: str) -> None:
    with open_store(file_url(path)) as store:
        lease = running(store)
        store.start_trial(lease, trial(0))
        fail(store, lease, 0, 1, Cause.USER_ERROR, leak, f"E\n{leak}\nF", retry=False)
        store.release(lease, StudyState.FAILED, leak)

    commands = (
        ("logs", "digits"),
        ("logs", "digits", "--follow"),
        ("logs", "digits", "--trial", "0"),
        ("logs", "digits", "--trial", "0", "--format", "json"),
        ("status", "digits"),
        ("status", "digits", "--format", "json"),
        ("export", "digits"),
        ("watch", "digits"),
    )
    for command in commands:
        shown = run(path, *command).output
        assert "heim" not in shown, command
        assert "***" in shown, command
    assert "heim" not in path.read_bytes().decode("latin-1")


@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("status", "s"),
        ("logs", "s"),
        ("pause", "s"),
        ("export", "s"),
        ("front", "--model", "m"),
        ("best", "--model", "m"),
        ("export-optuna", "s", "copy.db"),
    ],
)
def test_a_server_out_of_reach_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr("storage.schema._OPENING_PATIENCE_S", 0.0)
    url = "postgresql://ann:geheim@127.0.0.1:1/x?sslpassword=geheim"

    result = CliRunner().invoke(main, [*command, "--db", url])

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "postgresql://ann:***@127.0.0.1:1/x" in result.stderr
    assert "geheim" not in result.stderr


def test_a_message_cannot_steer_the_terminal(path: Path) -> None:
    with open_store(file_url(path)) as store:
        lease = running(store)
        store.start_trial(lease, trial(0))
        message = "\x1b[2Jgone\r\nnext\x07 ü"
        fail(store, lease, 0, 1, Cause.USER_ERROR, message, message, retry=False)

    lines = run(path, "logs", "digits", "--trial", "0").stdout.splitlines()
    status = run(path, "status", "digits").stdout

    assert lines[1].endswith("user_error: \\x1b[2Jgone next\\x07 ü")
    assert lines[2:] == ["    \\x1b[2Jgone\\r", "    next\\x07 ü"]
    assert re.search(r"^failures +1 x user_error: \\x1b\[2Jgone next\\x07 ü$", status, re.MULTILINE)

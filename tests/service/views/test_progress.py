"""What a reporter shows, and when."""

import io

import pytest
from rich.console import Console

from bitfront.units import duration_text, percent_text, size_text
from service.views.progress import PlainReporter, Reporter, RichReporter, reporter_for


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def trials(reporter: Reporter, clock: Clock, done: range, total: int, each_s: float) -> None:
    for number in done:
        clock.now_s += each_s
        reporter.trial(number, total, 0.079, 0.7312)


def test_plain_lines_come_every_tenth_of_the_work() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = PlainReporter(stream, clock=clock)

    reporter.stage("trials", 20)
    trials(reporter, clock, range(1, 21), 20, each_s=0.1)

    lines = stream.getvalue().splitlines()
    assert lines[0] == "trials: 20 to do"
    assert [line.split(" of ")[0] for line in lines[1:]] == [
        f"trials: {n}" for n in range(2, 21, 2)
    ]


def test_plain_lines_come_every_few_seconds_of_slow_work() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = PlainReporter(stream, clock=clock, every_s=5)

    reporter.stage("trials", 1000)
    trials(reporter, clock, range(1, 13), 1000, each_s=1.0)

    lines = stream.getvalue().splitlines()[1:]
    assert lines == [
        "trials: 5 of 1000, best error at the budget 7.9 %, hypervolume 0.7312, 16 min 35 s left",
        "trials: 10 of 1000, best error at the budget 7.9 %, hypervolume 0.7312, 16 min 30 s left",
    ]


def test_time_left_ignores_what_an_earlier_run_did() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = PlainReporter(stream, clock=clock, every_s=0)

    reporter.stage("trials", 60)
    trials(reporter, clock, range(40, 45), 60, each_s=2.0)

    *early, last = stream.getvalue().splitlines()[1:]
    assert not any("left" in line for line in early)
    assert last.endswith("32 s left")


def test_time_left_ignores_what_the_first_trial_waited_for() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = PlainReporter(stream, clock=clock, every_s=0)

    reporter.stage("trials", 60)
    reporter.trial(0, 60, None, 0.0)
    trials(reporter, clock, range(1, 2), 60, each_s=20.0)  # a worker starts and loads the model
    trials(reporter, clock, range(2, 5), 60, each_s=1.5)

    *early, last = stream.getvalue().splitlines()[1:]
    assert not any("left" in line for line in early)
    assert last.endswith("1 min 24 s left")


def test_results_that_come_all_at_once_tell_no_pace() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = PlainReporter(stream, clock=clock, every_s=0)

    reporter.stage("trials", 60)
    reporter.trial(0, 60, None, 0.0)
    trials(reporter, clock, range(1, 9), 60, each_s=0.01)  # eight workers end their first together
    assert "left" not in stream.getvalue()

    trials(reporter, clock, range(9, 17), 60, each_s=1.0)
    assert stream.getvalue().endswith("s left\n")


def test_a_stage_without_an_end_counts_only() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = PlainReporter(stream, clock=clock, every_s=0)

    reporter.stage("cells", None)
    reporter.advance(3)
    reporter.advance(0)

    assert stream.getvalue() == "cells\ncells: 3\n"


def test_notes_and_warnings_are_lines_of_their_own() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream)

    reporter.note("30 layers in 12 blocks")
    reporter.warn("the proxy misleads")

    assert stream.getvalue() == "30 layers in 12 blocks\nwarning: the proxy misleads\n"


def test_a_terminal_gets_a_bar_with_the_figures() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)

    with RichReporter(console, clock=clock) as reporter:
        reporter.stage("load the model", None)
        reporter.stage("trials", 60)
        trials(reporter, clock, range(1, 39), 60, each_s=1.0)
        reporter.warn("[0.42] is low")

    last = next(line for line in reversed(stream.getvalue().splitlines()) if "trials" in line)
    assert "warning: [0.42] is low" in stream.getvalue()
    assert "38/60" in last
    assert "error 7.9 %  hypervolume 0.7312" in last


def test_a_stream_that_is_no_terminal_gets_plain_lines() -> None:
    assert isinstance(reporter_for(io.StringIO()), PlainReporter)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (212_400, "212 kB"),
        (999_999, "1.00 MB"),
        (1_500_000_000, "1.50 GB"),
        (1_500_000_000_000, "1500 GB"),
    ],
)
def test_sizes_read_well(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.4, "59 s"), (80, "1 min 20 s"), (3600, "1 h 00 min"), (7384, "2 h 03 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_shares_have_one_decimal() -> None:
    assert percent_text(0.0791) == "7.9 %"

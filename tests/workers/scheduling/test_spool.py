"""The spool keeps finished attempts whole, and takes a damaged file for none."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.errors import InvalidMetric
from bitfront.trial import Cause, Evaluation
from workers.scheduling.outcome import Failure, Outcome
from workers.scheduling.spool import Spool

finite = st.floats(allow_nan=False, allow_infinity=False)
outcomes = st.builds(
    Outcome,
    evaluation=st.builds(
        Evaluation,
        values=st.dictionaries(st.text(), finite),
        metrics=st.dictionaries(st.text(), finite),
    ),
    failure=st.none()
    | st.builds(Failure, st.sampled_from(Cause), message=st.text(), traceback=st.text()),
    seconds=finite,
    worker=st.text(),
)
DONE = Outcome(Evaluation({"error": 0.5}), None, 1.0, "host:1")


@given(outcomes)
def test_an_outcome_comes_back_from_its_json(outcome: Outcome) -> None:
    assert Outcome.from_json(outcome.to_json()) == outcome


def test_a_written_outcome_is_read_under_its_number_and_attempt_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "study")

    spool.write(3, 2, DONE)

    assert Spool(tmp_path / "study").read(3, 2) == DONE
    assert spool.read(3, 1) is None
    assert spool.read(2, 2) is None


def test_a_discarded_outcome_is_gone(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write(0, 1, DONE)

    spool.discard(0, 1)
    spool.discard(0, 1)

    assert spool.read(0, 1) is None


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"x", b"\n\n"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, damage: bytes) -> None:
    spool = Spool(tmp_path)
    spool.write(0, 1, DONE)
    (file,) = tmp_path.iterdir()

    file.write_bytes(damage)

    assert spool.read(0, 1) is None


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_truncated_file_counts_as_none(tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path)
    spool.write(0, 1, DONE)
    (file,) = tmp_path.iterdir()

    file.write_bytes(file.read_bytes()[: -cut - 1])

    assert spool.read(0, 1) is None


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError("no room"), Cause.OUT_OF_MEMORY),
        (InvalidMetric("error", "nan"), Cause.INVALID_METRIC),
        (ValueError("two\nlines"), Cause.USER_ERROR),
    ],
)
def test_a_failure_names_its_cause_in_one_line(error: Exception, cause: Cause) -> None:
    failure = Failure.of(error)

    assert failure.cause is cause
    assert "\n" not in failure.message
    assert type(error).__name__ in failure.traceback

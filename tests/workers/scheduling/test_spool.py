"""The spool keeps finished attempts whole, and takes a damaged file for none."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.attempt import AttemptResult, Evaluated, Failed, Pruned
from bitfront.errors import InvalidMetric
from bitfront.samples import SampleResults
from bitfront.trial import Cause, Evaluation
from workers.scheduling.failures import failed_by
from workers.scheduling.result_json import from_json, to_json
from workers.scheduling.spool import Spool

finite = st.floats(allow_nan=False, allow_infinity=False)
ends = {"seconds": finite, "worker": st.text(), "digest": st.text()}
figures = st.dictionaries(st.text(), finite)
samples = st.lists(st.tuples(st.booleans(), st.floats(0, 9, width=32)), min_size=1).map(
    lambda rows: SampleResults.of([right for right, _ in rows], [nats for _, nats in rows])
)
evaluations = st.builds(Evaluation, values=figures, metrics=figures, samples=st.none() | samples)
results: st.SearchStrategy[AttemptResult] = (
    st.builds(Evaluated, evaluations, **ends)
    | st.builds(Failed, st.sampled_from(Cause), st.text(), st.text(), **ends)
    | st.builds(Pruned, **ends)
)
DONE = Evaluated(Evaluation({"error": 0.5}), seconds=1.0, worker="host:1")


@given(results)
def test_a_result_comes_back_from_its_json(result: AttemptResult) -> None:
    assert from_json(to_json(result)) == result


WRITTEN_BEFORE = (
    (
        b"b1dc1c78535cb48c2ca2903ba216d7e8fab4e79fbf913ae3ce610de79efcbb88\n"
        b'{"digest":"abc","metrics":{"nbytes":8.0},"seconds":1.5,"values":{"error":0.5},'
        b'"worker":"host:1"}\n',
        Evaluated(
            Evaluation({"error": 0.5}, {"nbytes": 8.0}), seconds=1.5, worker="host:1", digest="abc"
        ),
    ),
    (
        b"c6dfddb37b5120e5355c1c4708f9739cfdcbfe2979eadc34d6a6c5f8e8a04c76\n"
        b'{"cause":"out_of_memory","digest":"abc","message":"12 GB","seconds":2.0,'
        b'"traceback":"line 1\\nline 2","worker":"host:1"}\n',
        Failed(
            Cause.OUT_OF_MEMORY,
            "12 GB",
            "line 1\nline 2",
            seconds=2.0,
            worker="host:1",
            digest="abc",
        ),
    ),
    (
        b"1ac8ed03e1a7b2ef46cea05ce7a3465aae59564a94dfa097c496fcd4a19b2c6f\n"
        b'{"digest":"","seconds":2.5,"worker":"host:1"}\n',
        Pruned(seconds=2.5, worker="host:1"),
    ),
)
"""Files as the version before one type of result wrote them, and the results that they hold."""


@pytest.mark.parametrize(("content", "result"), WRITTEN_BEFORE)
def test_a_file_is_read_and_written_as_by_the_last_version(
    tmp_path: Path, content: bytes, result: AttemptResult
) -> None:
    spool, file = Spool(tmp_path), tmp_path / "000003-1.json"
    file.write_bytes(content)

    assert spool.read(3, 1) == result
    spool.write(3, 1, result)
    assert file.read_bytes() == content


def test_a_written_result_is_read_under_its_number_and_attempt_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "study")

    spool.write(3, 2, DONE)

    assert Spool(tmp_path / "study").read(3, 2) == DONE
    assert spool.read(3, 1) is None
    assert spool.read(2, 2) is None


def test_a_discarded_result_is_gone(tmp_path: Path) -> None:
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
    failure = failed_by(error)

    assert failure.cause is cause
    assert "\n" not in failure.message
    assert type(error).__name__ in failure.traceback

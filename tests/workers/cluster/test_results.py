"""An error of a remote task is the one that was raised there, without Ray's own wrapping."""

import pytest
from ray.exceptions import RayTaskError

from bitfront.errors import BitfrontError, FailedTask, MissingData
from workers.cluster.results import unwrapped

TRACE = "\x1b[36mray::_inspect()\x1b[39m (pid=1)\n  File 'a.py', line 1\nMissingData: no images"


def _raised_remotely(cause: Exception) -> BitfrontError:
    raised = RayTaskError("_inspect", TRACE, cause)  # type: ignore[no-untyped-call] # Ray's
    as_got: RayTaskError = raised.as_instanceof_cause()  # type: ignore[no-untyped-call]
    return unwrapped(as_got)


def test_an_error_of_ours_keeps_its_sentence_and_type() -> None:
    found = _raised_remotely(MissingData("the class folder a has no images"))

    assert type(found) is MissingData
    assert str(found) == "the class folder a has no images"
    assert found.remote_traceback is not None
    assert "\x1b" not in found.remote_traceback


def test_an_error_of_a_library_keeps_its_cause_on_one_line() -> None:
    found = _raised_remotely(KeyError("vocab\nand more"))

    assert isinstance(found, FailedTask)
    assert "KeyError" in str(found)
    assert "bitfront logs" in str(found)
    assert "\n" not in str(found)


@pytest.mark.parametrize("cause", [ValueError(""), ValueError("\x1b[31mred\x1b[0m\nmore")])
def test_the_sentence_has_no_escape_codes(cause: Exception) -> None:
    assert "\x1b" not in str(_raised_remotely(cause))

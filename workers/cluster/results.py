"""What remote tasks return, and what they raise as it was raised there."""

import re
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError

from bitfront.errors import BitfrontError, FailedTask
from bitfront.passwords import masked

_ESCAPES: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # how Ray colours its tracebacks


def result_of(reference: Any) -> Any:  # noqa: ANN401 - Ray's are untyped
    """What a task, or each of a list of tasks, returns.

    Raises:
        BitfrontError: What the task raised on purpose; its remote traceback is a note on it.
        FailedTask: The task raised anything else, or its worker was lost.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise unwrapped(error) from None
    except RayError as error:
        raise FailedTask(_headline(error), _ESCAPES.sub("", str(error))) from None


def unwrapped(error: RayTaskError) -> BitfrontError:
    """The error of a task as one of our own, which knows its remote traceback."""
    cause: BaseException = error.cause
    trace = masked(_ESCAPES.sub("", str(error)))
    if isinstance(cause, BitfrontError):
        cause.remote_traceback = trace
        return cause
    return FailedTask(_headline(cause), trace)


def _headline(error: BaseException) -> str:
    text = _ESCAPES.sub("", str(error)).strip().partition("\n")[0]
    return masked(f"{type(error).__name__}: {text}" if text else type(error).__name__)

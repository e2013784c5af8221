"""What one attempt at a trial came to: an evaluation, or the cause that prevented it."""

import json
import math
import os
import socket
import traceback
from dataclasses import dataclass
from typing import Self

from bitfront.errors import InvalidMetric
from bitfront.passwords import masked
from bitfront.plan import Configuration, canonical_json
from bitfront.trial import Cause, Evaluation


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt has no result.

    Attributes:
        cause: The kind of failure, which decides whether it is tried again.
        message: The error in one line.
        traceback: Where it was raised; empty where there is none.
    """

    cause: Cause
    message: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """The failure that an exception stands for."""
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        trace = "".join(traceback.format_exception(error))
        return cls(_cause(error), masked(message), masked(trace))


def _cause(error: BaseException) -> Cause:
    # torch.OutOfMemoryError is not imported: this module stays light.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Cause.OUT_OF_MEMORY
    if isinstance(error, InvalidMetric):
        return Cause.INVALID_METRIC
    return Cause.USER_ERROR


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one attempt: an evaluation, a failure, or neither where it stopped early.

    Attributes:
        evaluation: What was measured.
        failure: Why nothing was.
        seconds: How long the attempt took.
        worker: Who made it.
        digest: Of the configuration; empty where the attempt came back by itself.
    """

    evaluation: Evaluation | None
    failure: Failure | None
    seconds: float
    worker: str
    digest: str = ""

    def is_of(self, configuration: Configuration) -> bool:
        """Whether it may be this configuration's: after a restored backup, a file may not be."""
        return self.digest in ("", configuration.digest)

    @property
    def is_pruned(self) -> bool:
        """Whether the trial stopped, since it could not reach the front any more."""
        return self.evaluation is None and self.failure is None

    def to_json(self) -> str:
        """Canonical JSON; `from_json` reads it back."""
        content: dict[str, object] = {
            "seconds": self.seconds,
            "worker": self.worker,
            "digest": self.digest,
        }
        if self.evaluation is not None:
            content["values"] = dict(self.evaluation.values)
            content["metrics"] = dict(self.evaluation.metrics)
        if self.failure is not None:
            content["cause"] = self.failure.cause
            content["message"] = self.failure.message
            content["traceback"] = self.failure.traceback
        return canonical_json(content)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The outcome that `to_json` wrote.

        Raises:
            ValueError: The text is no outcome.
        """
        try:
            content = json.loads(text)
            evaluation = failure = None
            if "values" in content:
                evaluation = Evaluation(_figures(content["values"]), _figures(content["metrics"]))
            if "cause" in content:
                message, trace = _text(content["message"]), _text(content["traceback"])
                failure = Failure(Cause(content["cause"]), message, trace)
            seconds, worker = _figure(content["seconds"]), _text(content["worker"])
            digest = _text(content["digest"])
        except (KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"this is no outcome: {error}") from error
        return cls(evaluation, failure, seconds, worker, digest)


def _figures(content: object) -> dict[str, float]:
    if not isinstance(content, dict):
        raise TypeError(f"{content!r:.40} are no figures")
    return {_text(name): _figure(value) for name, value in content.items()}


def _figure(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r:.40} is no finite number")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def worker_name() -> str:
    """The host and the process that run this."""
    return f"{socket.gethostname()}:{os.getpid()}"

"""Results of attempts as JSON, as the spool keeps them and as a witness of tests tells them."""

import json
import math
from base64 import b64decode, b64encode

from bitfront.attempt import AttemptResult, Evaluated, Failed, Pruned
from bitfront.plan import canonical_json
from bitfront.samples import SampleResults
from bitfront.trial import Cause, Evaluation


def to_json(result: AttemptResult) -> str:
    """Canonical JSON; `from_json` reads it back, as drivers of later versions must too."""
    content: dict[str, object] = {
        "seconds": result.seconds,
        "worker": result.worker,
        "digest": result.digest,
    }
    match result:
        case Evaluated(evaluation=evaluation):
            content["values"] = dict(evaluation.values)
            content["metrics"] = dict(evaluation.metrics)
            if evaluation.samples is not None:
                content["samples"] = b64encode(evaluation.samples.packed).decode()
        case Failed():
            content["cause"] = result.cause
            content["message"] = result.message
            content["traceback"] = result.traceback
            if result.is_final:
                content["final"] = True
        case Pruned():
            pass
    return canonical_json(content)


def from_json(text: str) -> AttemptResult:
    """The result that `to_json` wrote; neither values nor a cause stand for a pruned trial.

    Raises:
        ValueError: The text is not a result.
    """
    try:
        content = json.loads(text)
        seconds, worker = _figure(content["seconds"]), _text(content["worker"])
        digest = _text(content["digest"])
        if "cause" in content:
            cause, message = Cause(content["cause"]), _text(content["message"])
            trace = _text(content["traceback"])
            return Failed(
                cause,
                message,
                trace,
                is_final=content.get("final") is True,
                seconds=seconds,
                worker=worker,
                digest=digest,
            )
        if "values" in content:
            values, metrics = _figures(content["values"]), _figures(content["metrics"])
            evaluation = Evaluation(values, metrics, _samples(content.get("samples")))
            return Evaluated(evaluation, seconds=seconds, worker=worker, digest=digest)
    except (KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"this is not the result of an attempt: {error}") from error
    return Pruned(seconds=seconds, worker=worker, digest=digest)


def _samples(content: object) -> SampleResults | None:
    """What came out for each sample; earlier versions did not tell."""
    return None if content is None else SampleResults(b64decode(_text(content), validate=True))


def _figures(content: object) -> dict[str, float]:
    if not isinstance(content, dict):
        raise TypeError(f"{content!r:.40} is not a mapping of names to numbers")
    return {_text(name): _figure(value) for name, value in content.items()}


def _figure(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r:.40} is not a finite number")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value

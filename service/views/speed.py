"""How fast an artefact is beside the model at full precision, in words."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

TOKEN: Final = "token"
_STORED: Final = {"onnx": " (16 bits on disk, which ONNX Runtime computes in 32)"}


def speed_pairs(verification: Mapping[str, Any], target: str) -> list[tuple[str, str]]:
    """What a build says of times: a label and a text each.

    Args:
        verification: What was found, plain JSON content.
        target: What was built, such as `onnx`.
    """
    references = verification.get("references", ())
    pairs = [("latency", _times(verification))]
    pairs += [(one["dtype"], _times(one) + _STORED.get(target, "")) for one in references]
    figures = (*verification["latency_s"], *([TOKEN] if _writes(verification) else []))
    winners = [_winner(references, figure) for figure in figures]
    pairs += [("speed", sentence) for sentence in winners if sentence is not None]
    if (reason := verification.get("untimed")) is not None:
        pairs.append(("speed", f"the model at full precision was not timed beside it: {reason}"))
    return pairs


def speed_cell(verification: Mapping[str, Any]) -> str:
    """How many times as fast as the fastest form at full precision: a token, or one sample."""
    figure = TOKEN if _writes(verification) else "1"
    fastest = _fastest(verification.get("references", ()), figure)
    return "" if fastest is None else f"{fastest[1]['median']:.3g} x {fastest[0]}"


def time_cell(verification: Mapping[str, Any]) -> str:
    """The time of a token, or of one sample."""
    if _writes(verification):
        return f"{1000 * verification['token_s']:.3g} ms a token"
    return f"{1000 * verification['latency_s']['1']:.3g} ms"


def _writes(verification: Mapping[str, Any]) -> bool:
    return verification.get("token_s") is not None


def _times(known: Mapping[str, Any]) -> str:
    times = [f"{1000 * s:.3g} ms at batch {size}" for size, s in known["latency_s"].items()]
    if known["token_s"] is not None:
        times.append(f"{1000 * known['token_s']:.3g} ms a token")
    return ", ".join(times)


def _winner(references: Sequence[Mapping[str, Any]], figure: str) -> str | None:
    """Says whether the artefact is faster than the fastest form at full precision."""
    fastest = _fastest(references, figure)
    if fastest is None:
        return None
    dtype, found = fastest
    stage = "writing a token" if figure == TOKEN else f"at batch {figure}"
    ratio = f"{found['median']:.3g} ({found['low']:.3g} to {found['high']:.3g}) times as fast"
    if found["median"] < 1:
        return f"{stage} slower than {dtype}, {ratio}"
    return f"{stage} {ratio} as {dtype}"


def _fastest(
    references: Sequence[Mapping[str, Any]], figure: str
) -> tuple[str, Mapping[str, float]] | None:
    """The reference over which the artefact gains least."""
    timed = [one for one in references if figure in one["speedup"]]
    if not timed:
        return None
    fastest = min(timed, key=lambda one: one["speedup"][figure]["median"])
    return fastest["dtype"], fastest["speedup"][figure]

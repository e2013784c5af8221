"""A study's log in plain words, a line for each event.

What a person sees::

    2026-03-01 09:30:02Z  host-1:4711 runs the study
    2026-03-01 09:30:41Z  trial 0, attempt 1: starts, proposed by baseline
    2026-03-01 09:31:09Z  trial 0, attempt 1, worker-2, 28 s: complete, error 8.6 %, 2.10 MB
    2026-03-01 09:31:10Z  trial 3, attempt 1: fails and starts again, out_of_memory: 12 GB asked for
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from bitfront.objective import OBJECTIVES, Figure, Quantity
from bitfront.trial import Cause
from bitfront.units import duration_text
from service.views.tables import one_line, plain
from storage.records import EventKind

if TYPE_CHECKING:
    from storage.records import Event, LogLine

_REASONS: Final[dict[str, str]] = {
    Cause.DRIVER_RESTART: "for its driver ended",
    Cause.CANCELLED: "for it was cancelled",
    Cause.NODE_LOST: "for its node was lost",
}
_PLAIN: Final = {
    EventKind.CREATED: "the study is submitted",
    EventKind.STOPPED_EARLY: "stops early, for it cannot reach the front any more",
    EventKind.CANCELLED: "cancelled",
}


def line_text(line: "LogLine") -> str:
    """A log line for a person; a traceback follows it, further in."""
    event = line.event
    about = "" if event.trial is None else f"{_attempt_text(line)}: "
    text = f"{event.at:%Y-%m-%d %H:%M:%S}Z  {about}{one_line(_event_text(event))}"
    traceback = line.traceback or event.content.get("traceback")
    if not isinstance(traceback, str):
        return text
    return "\n    ".join([text, *plain(traceback.expandtabs()).rstrip().split("\n")])


def _attempt_text(line: "LogLine") -> str:
    parts = [f"trial {line.event.trial}"]
    if line.attempt is not None:
        parts.append(f"attempt {line.attempt}")
    if line.worker is not None:
        parts.append(one_line(line.worker))
    if line.seconds is not None:
        parts.append(duration_text(line.seconds))
    return ", ".join(parts)


def line_dict(study: str, line: "LogLine") -> dict[str, object]:
    """A log line under stable names."""
    event = line.event
    return {
        "study": study,
        "id": event.id,
        "at": event.at.isoformat(),
        "event": str(event.kind),
        "text": _event_text(event),
        "trial": event.trial,
        "attempt": line.attempt,
        "worker": line.worker,
        "seconds": line.seconds,
        "cause": event.content.get("cause"),
        "message": event.content.get("message"),
        "traceback": line.traceback,
        "content": dict(event.content),
    }


def _event_text(event: "Event") -> str:
    """What happened, in words; what a line does not carry is left out."""
    kind, content = event.kind, event.content
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _TEXTS:
        return _TEXTS[kind](content)
    message = content.get("message")
    name = str(kind).replace("_", " ")
    return name if message is None else f"{name}: {message}"


def _with_message(text: str, content: Mapping[str, object]) -> str:
    message = content.get("message")
    return f"{text}: {message}" if message else text


def _failure_text(text: str, content: Mapping[str, object]) -> str:
    return _with_message(f"{text}, {content.get('cause')}", content)


def _taken_over(content: Mapping[str, object]) -> str:
    return f"{content.get('owner')} takes the study over from {content.get('previous')}"


def _changed(content: Mapping[str, object]) -> str:
    differences = content.get("differences")
    count = content.get("outdated")
    outdated = f"; {count} earlier trials are outdated" if count else ""
    if not isinstance(differences, list):
        return f"the job was changed{outdated}"
    return f"changes are accepted: {'; '.join(map(str, differences))}{outdated}"


def _completed(content: Mapping[str, object]) -> str:
    values = content.get("values")
    measured = values if isinstance(values, dict) else {}
    parts = [_value(f, measured[f.name]) for f in OBJECTIVES if f.name in measured]
    hypervolume = content.get("hypervolume")
    if isinstance(hypervolume, float):
        parts.append(f"hypervolume {hypervolume:,.6g}")
    return ", ".join(["complete", *parts])


def _value(figure: Figure, value: float) -> str:
    """In words; a share does not say of itself what it is of."""
    is_share = figure.quantity is Quantity.SHARE
    return f"{figure.label} {figure.text(value)}" if is_share else figure.text(value)


def _restarted(content: Mapping[str, object]) -> str:
    cause = str(content.get("cause"))
    return f"starts again, {_REASONS.get(cause, cause)}"


def _tested(content: Mapping[str, object]) -> str:
    given = content.get("trials")
    numbers = given if isinstance(given, list) else []
    name = "trial" if len(numbers) == 1 else "trials"
    return f"measured on the test split: {name} {', '.join(map(str, numbers)) or '-'}"


_TEXTS: Final[dict[EventKind, Callable[[Mapping[str, object]], str]]] = {
    EventKind.ACQUIRED: lambda content: f"{content.get('owner')} runs the study",
    EventKind.TAKEN_OVER: _taken_over,
    EventKind.RELEASED: lambda content: _with_message(
        f"{content.get('owner')} leaves the study {content.get('state')}", content
    ),
    EventKind.REQUESTED: lambda content: (
        f"somebody asks the driver to {content.get('request') or 'go on'}"
    ),
    EventKind.STATE: lambda content: _with_message(f"the study is {content.get('state')}", content),
    EventKind.CHANGED: _changed,
    EventKind.PROFILED: lambda content: (
        f"{content.get('layers')} layers in {content.get('blocks')} blocks"
    ),
    EventKind.PRUNED: lambda content: (
        f"{content.get('survivors')} options stay, {content.get('removed')} are pruned"
    ),
    EventKind.STARTED: lambda content: f"starts, proposed by {content.get('origin')}",
    EventKind.COMPLETED: _completed,
    EventKind.ATTEMPT_FAILED: lambda content: _failure_text("fails and starts again", content),
    EventKind.FAILED: lambda content: _failure_text("fails for good", content),
    EventKind.RESTARTED: _restarted,
    EventKind.TESTED: _tested,
}

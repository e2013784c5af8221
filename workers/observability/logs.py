"""Log lines of driver and workers: short text for a person, or JSON for a log collector."""

import io
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType, TracebackType
from typing import Final, TextIO

from bitfront.errors import SpecError
from bitfront.passwords import masked

FORM_VARIABLE: Final = "BITFRONT_LOG"
LEVEL_VARIABLE: Final = "BITFRONT_LOG_LEVEL"
JOB_VARIABLE: Final = "BITFRONT_JOB"

logger = logging.getLogger(__name__)
# What a person is told is told at every level, as it is where the log is text.
_messages = logging.getLogger(f"{__name__}.messages")


class Form(StrEnum):
    """How a log line looks."""

    TEXT = "text"
    JSON = "json"


_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_USUAL_LEVEL: Final = {Form.TEXT: "warning", Form.JSON: "info"}
# Other packages are heard from "warning" on, whatever level is asked for.
_PACKAGES: Final = ("bitfront", "objectives", "search", "service", "storage", "workers")
_NAMES: Final = {"levelname": "level", "name": "logger", "exc_info": "exception"}

_bound: ContextVar[Mapping[str, str | int]] = ContextVar(
    "bitfront_bound", default=MappingProxyType({})
)


def set_up(*, form: str | None = None, level: str | None = None) -> None:
    """Sends this process's log to stderr; a second call replaces what the first one set.

    Args:
        form: `text` (`WARNING message`) or `json` (an object a line); None takes
            `BITFRONT_LOG`, or else `text`.
        level: From which level on bitfront is heard; None takes `BITFRONT_LOG_LEVEL`, or else
            `warning` for text and `info` for JSON.

    Raises:
        SpecError: There is no such form or level.
    """
    shape = Form(_chosen(form, FORM_VARIABLE, tuple(Form), Form.TEXT))
    lowest = _chosen(level, LEVEL_VARIABLE, _LEVELS, _USUAL_LEVEL[shape])
    handler = _Stderr()
    handler.addFilter(_add_context)
    handler.setFormatter(_json_formatter() if shape is Form.JSON else _Text())
    root = logging.getLogger()
    for known in [known for known in root.handlers if isinstance(known, _Stderr)]:
        root.removeHandler(known)
    root.addHandler(handler)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(lowest.upper())
    _messages.setLevel(logging.INFO)
    _messages.disabled = False
    logging.captureWarnings(shape is Form.JSON)
    sys.excepthook = _log_uncaught


def _chosen(given: str | None, variable: str, known: tuple[str, ...], usual: str) -> str:
    wanted = (given or os.environ.get(variable) or usual).lower()
    if wanted not in known:
        raise SpecError(f"{variable} cannot be {wanted!r}: choose one of {', '.join(known)}")
    return wanted


@contextmanager
def bound(
    *,
    study: str | None = None,
    job: str | None = None,
    trial: int | None = None,
    attempt: int | None = None,
) -> Iterator[None]:
    """Names what the log lines within the `with` block belong to, beside what is named already.

    A thread that is started within the block inherits nothing, unless it runs in
    `contextvars.copy_context()`.

    Args:
        study: The study's name.
        job: The submission id of the Ray job; `BITFRONT_JOB` names it for a whole process.
        trial: The trial's number.
        attempt: The attempt at the trial, from 1.
    """
    given = {"study": study, "job": job, "trial": trial, "attempt": attempt}
    more = {name: value for name, value in given.items() if value is not None}
    token = _bound.set({**_bound.get(), **more})
    try:
        yield
    finally:
        _bound.reset(token)


def silence_messages() -> None:
    """Drops what this process would write to `messages` from now on, until the next `set_up`."""
    _messages.disabled = True


def messages() -> TextIO:
    """Where to write what a person shall read: stderr, or a stream that logs each of its lines.

    The latter where the log is JSON, so that no plain line comes between the objects; or after
    `silence_messages`, where the lines go nowhere.
    """
    if _messages.disabled:
        return _LoggedLines()
    ours = (handler for handler in logging.getLogger().handlers if isinstance(handler, _Stderr))
    is_text = all(isinstance(handler.formatter, _Text) for handler in ours)
    return sys.stderr if is_text else _LoggedLines()


def _add_context(record: logging.LogRecord) -> bool:
    """Puts on a record what it belongs to and who wrote it."""
    worker = f"{socket.gethostname()}:{record.process}"
    job = os.environ.get(JOB_VARIABLE)
    record.__dict__.update({"worker": worker, "job": job, **_bound.get()})
    return True


class _Stderr(logging.Handler):
    """Writes to what stderr is at that moment: a progress bar may have taken its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - a line that cannot be written must not end the work
            self.handleError(record)


class _Text(logging.Formatter):
    """`WARNING message`, and a traceback where there is one."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


def _json_formatter() -> logging.Formatter:
    """The formatter of JSON lines; its library is imported only where it is used."""
    from pythonjsonlogger.json import JsonFormatter

    class Json(JsonFormatter):
        def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
            return {name: _plain(value) for name, value in log_data.items() if value is not None}

    fields = ("levelname", "name", "message", "study", "job", "trial", "attempt", "worker")
    return Json(fields, rename_fields=_NAMES, timestamp="time")


def _plain(value: object) -> object:
    """A field's value as JSON can hold it, without credentials."""
    return value if isinstance(value, int | datetime) else masked(str(value))


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Logs the exception that ends the process, so that its text is masked like any other."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logger.critical("ended by an unexpected error", exc_info=(kind, error, trace))


class _LoggedLines(io.StringIO):
    """A stream that logs every line that is written to it, and keeps none."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(None, lines):
            _messages.info("%s", line)
        return len(text)

"""What happened to a study."""

from datetime import datetime
from typing import Self

from service.http.models.content import Content
from service.views.logs import line_dict
from storage.records import (
    EventKind,
    LogLine,
)


class LogEntry(Content):
    """A line of a study's log; `text` says in words what happened."""

    id: int
    at: datetime
    event: EventKind
    text: str
    trial: int | None
    attempt: int | None
    worker: str | None
    seconds: float | None

    @classmethod
    def of(cls, study: str, line: LogLine) -> Self:
        """The entry of a line."""
        event = line.event
        return cls(
            id=event.id,
            at=event.at,
            event=event.kind,
            text=str(line_dict(study, line)["text"]),
            trial=event.trial,
            attempt=line.attempt,
            worker=line.worker,
            seconds=line.seconds,
        )


class Log(Content):
    """Some lines of a study's log; `next_after` is what `after` has to be for those that follow."""

    lines: tuple[LogEntry, ...]
    next_after: int | None

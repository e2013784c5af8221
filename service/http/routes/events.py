"""What happens to a study: its log, and the same as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from bitfront.errors import BitfrontError
from bitfront.job.document import cut
from service.http.guard import int_or_none
from service.http.models.log import Log, LogEntry
from service.http.models.studies import StudyStatus
from service.http.parameters import StudyName
from service.http.problems import Refused
from service.http.routes.studies import study_status
from service.http.service import Service, ServiceDependency
from service.views.status import is_over

router = APIRouter(tags=["events"])

_POLL_S: Final = 1.0
_SIGN_OF_LIFE_S: Final = 15
_MOST_LINES: Final = 500
MOST_STREAMS: Final = 100
_LARGEST_ID: Final = 2**62

_EVENT: Final = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["line", "status", "end"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}

After = Annotated[int, Query(ge=0, le=_LARGEST_ID, description="The last line that is known.")]


@router.get("/studies/{study}/log")
def log(
    study: StudyName,
    service: ServiceDependency,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Log:
    """What happened to the study after a line, oldest first."""
    found = service.store.log(study, after, limit=limit)
    return Log(
        lines=tuple(LogEntry.of(study, line) for line in found),
        next_after=found[-1].event.id if len(found) == limit else None,
    )


@router.get(
    "/studies/{study}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": _EVENT}}}},
)
def events(
    study: StudyName,
    service: ServiceDependency,
    after: After = 0,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """The study's log as server-sent events, until nothing more happens to it.

    A `line` has a log line, and its id; who comes back with it as `Last-Event-ID` misses nothing. A
    `status` has the study's status whenever that may have changed. An `end` is the last one.
    """
    service.store.study(study)  # an unknown one is refused before the stream begins
    known = int_or_none(last_event_id or "")
    if last_event_id and known is None:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"the header last-event-id must be the id of a line, not {cut(repr(last_event_id))}",
        )
    if service.streams.open >= MOST_STREAMS:
        raise Refused(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "as many clients follow events as this server takes: ask for the log instead",
        )
    stream = _stream(service, study, after if known is None else min(known, _LARGEST_ID))
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"}
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What is new about a study.

    Attributes:
        lines: Of its log.
        status: How far it is.
        is_last: Whether nothing more happens until somebody resumes it.
    """

    lines: list[LogEntry]
    status: StudyStatus
    is_last: bool

    @property
    def lasting(self) -> StudyStatus:
        """The status without what changes with every heartbeat."""
        same = {"heartbeat_age_s": None, "updated_at": self.status.created_at}
        return self.status.model_copy(update=same)


def _look(service: Service, study: str, after: int) -> _Look:
    is_last = is_over(service.store.study(study))  # before the log, which is whole from then on
    lines = service.store.log(study, after, limit=_MOST_LINES)
    entries = [LogEntry.of(study, line) for line in lines]
    return _Look(entries, study_status(service, study), is_last and len(lines) < _MOST_LINES)


async def _stream(service: Service, study: str, after: int) -> AsyncIterator[str]:
    service.streams.open += 1
    try:
        quiet_s = 0.0
        told: StudyStatus | None = None
        yield "retry: 2000\n\n"
        while not service.stopping.is_set():
            try:
                look = await run_in_threadpool(_look, service, study, after)
            except BitfrontError:  # it was deleted, or the database is away: the client asks again
                return
            for entry in look.lines:
                after = entry.id
                yield f"id: {entry.id}\nevent: line\ndata: {entry.model_dump_json()}\n\n"
            if look.lasting != told:
                told = look.lasting
                yield f"event: status\ndata: {look.status.model_dump_json()}\n\n"
            if look.is_last:
                yield "event: end\ndata: {}\n\n"
                return
            quiet_s = 0.0 if look.lines else quiet_s + _POLL_S
            if quiet_s >= _SIGN_OF_LIFE_S:
                quiet_s = 0.0
                yield ": still here\n\n"
            if len(look.lines) < _MOST_LINES:
                await asyncio.sleep(_POLL_S)
    finally:
        service.streams.open -= 1

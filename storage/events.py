"""The log of a study, the way a row is added only once, and how text becomes storable."""

from collections.abc import Sequence

from sqlalchemy import Connection, Insert, and_, case, func, insert, null, select

from bitfront.passwords import masked
from storage import tables
from storage.records import Event, EventKind, Json, LogLine
from storage.tables import Attempt, Base, Trial

_LONGEST_TEXT = 20_000

_SUCCESSES = (EventKind.COMPLETED, EventKind.STOPPED_EARLY)
_ENDS = (*_SUCCESSES, EventKind.ATTEMPT_FAILED, EventKind.FAILED)
"""Events that end an attempt."""


def add_event(
    connection: Connection,
    study_id: int,
    kind: EventKind,
    content: Json | None = None,
    *,
    trial: int | None = None,
) -> None:
    """Adds one line to the log of a study."""
    row = {"study_id": study_id, "kind": kind, "trial": trial, "content": dict(content or {})}
    connection.execute(insert(tables.Event), row)


def read_log(
    connection: Connection, study_id: int, after_id: int, limit: int, trial: int | None
) -> list[LogLine]:
    """The study's log after an event, oldest first, with the attempts that it is about.

    Whoever writes an event has locked the study's row first, so that none becomes visible
    after one with a higher key.

    Args:
        connection: An open transaction.
        study_id: The study.
        after_id: The last event that is known.
        limit: How many lines at most.
        trial: Only what is about this trial, with tracebacks.
    """
    event = tables.Event
    implied = case(
        (event.kind == EventKind.STARTED, 1), (event.kind.in_(_SUCCESSES), Trial.attempt)
    )
    number = func.coalesce(event.content["attempt"].as_integer(), implied)
    ended = and_(Attempt.trial_id == Trial.id, Attempt.number == number, event.kind.in_(_ENDS))
    traceback = null() if trial is None else Attempt.traceback
    query = (
        select(
            *(event.id, event.at, event.kind, event.trial, event.content),
            *(number.label("attempt"), Attempt.worker, Attempt.seconds),
            traceback.label("traceback"),
        )
        .outerjoin(Trial, and_(Trial.study_id == event.study_id, Trial.number == event.trial))
        .outerjoin(Attempt, ended)
        .where(event.study_id == study_id, event.id > after_id)
        .order_by(event.id)
        .limit(limit)
    )
    if trial is not None:
        query = query.where(event.trial == trial)
    return [
        LogLine(
            Event(row.id, row.at, EventKind(row.kind), row.trial, row.content),
            *(row.attempt, row.worker, row.seconds, row.traceback),
        )
        for row in connection.execute(query)
    ]


def insert_new(connection: Connection, table: type[Base], rows: Sequence[Json]) -> None:
    """Inserts the rows whose keys are not there yet."""
    if rows:
        connection.execute(_ignoring_conflicts(connection, table), [dict(row) for row in rows])


def _ignoring_conflicts(connection: Connection, table: type[Base]) -> Insert:
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table).on_conflict_do_nothing()


def storable(text: str) -> str:
    """The text as every database can hold it and everybody may read it.

    It has no NUL, no lone surrogate and no password, and is cut to its end if it is too long.
    """
    clean = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    clean = masked(clean)
    return clean if len(clean) <= _LONGEST_TEXT else f"...{clean[-_LONGEST_TEXT:]}"

"""The log of a study, the way a row is added only once, and how text becomes storable."""

from collections.abc import Sequence

from sqlalchemy import Connection, Insert, insert, select

from storage import tables
from storage.records import Event, EventKind, Json
from storage.tables import Base

_LONGEST_TEXT = 20_000


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


def read_events(connection: Connection, study_id: int, after_id: int, limit: int) -> list[Event]:
    """The study's log after an event, oldest first."""
    query = (
        select(
            tables.Event.id,
            tables.Event.at,
            tables.Event.kind,
            tables.Event.trial,
            tables.Event.content,
        )
        .where(tables.Event.study_id == study_id, tables.Event.id > after_id)
        .order_by(tables.Event.id)
        .limit(limit)
    )
    return [
        Event(row.id, row.at, EventKind(row.kind), row.trial, row.content)
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
    """The text as every database can hold it: no NUL, no lone surrogate, its end if too long."""
    clean = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= _LONGEST_TEXT else f"...{clean[-_LONGEST_TEXT:]}"

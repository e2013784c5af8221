"""A database of schema 0004, and what the commands of its version said about it.

Two studies of the bundled model ran to their end: `layers` (weights of 3 and 8 bits) and `clips`
(inputs of 4 and 8 bits with two clips). `database.sql.gz` is SQLite's dump of the file;
`answers.json` holds the lines of `bitfront COMMAND STUDY --format json` by "COMMAND STUDY".
"""

import gzip
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from sqlalchemy import MetaData, create_engine, func, insert, select

from storage.location import parse_url
from storage.schema import VERSION_TABLE, run_migrations
from tests.support.databases import Databases

REVISION = "0004"
_FOLDER = files("tests.support.schema_0004")


def answers() -> dict[str, list[dict[str, object]]]:
    """The lines of each command about each study."""
    content: dict[str, list[dict[str, object]]] = json.loads(
        _FOLDER.joinpath("answers.json").read_text()
    )
    return content


def restored(databases: Databases, folder: Path) -> str:
    """The URL of the database as it was left; on PostgreSQL with the same rows."""
    file = folder / "dumped.db"
    dump = gzip.decompress(_FOLDER.joinpath("database.sql.gz").read_bytes()).decode()
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(dump)
    url = databases.empty()
    if url.startswith("sqlite"):
        return f"sqlite:///{file}"
    _copy(f"sqlite:///{file}", url)
    return url


def _copy(source_url: str, target_url: str) -> None:
    source, target = create_engine(parse_url(source_url)), create_engine(parse_url(target_url))
    with target.begin() as connection:
        run_migrations(connection, REVISION)
    theirs, ours = MetaData(), MetaData()
    theirs.reflect(source)
    ours.reflect(target)
    with source.connect() as reading, target.begin() as writing:
        for table in ours.sorted_tables:
            if table.name == VERSION_TABLE:
                continue
            rows = reading.execute(select(theirs.tables[table.name])).mappings().all()
            if rows:
                writing.execute(
                    insert(table),
                    [{name: _with_zone(value) for name, value in row.items()} for row in rows],
                )
            if "id" in table.columns:
                last = select(func.coalesce(func.max(table.c.id), 0)).scalar_subquery()
                sequence = func.pg_get_serial_sequence(table.name, "id")
                writing.execute(select(func.setval(sequence, last + 1)))
    source.dispose()
    target.dispose()


def _with_zone(value: object) -> object:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value

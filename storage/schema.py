"""The schema's version, and how an older database is brought to it."""

import sqlite3

from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.sql import column, table

from bitfront.errors import DatabaseError
from storage.engine import Database
from storage.location import parse_url, prepare_file

VERSION_TABLE = "bitfront_schema"
REVISIONS = (
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
    "0006",
    "0007",
    "0008",
    "0009",
    "0010",
    "0011",
    "0012",
    "0013",
    "0014",
    "0015",
    "0016",
    "0017",
    "0018",
    "0019",
    "0020",
    "0021",
    "0022",
    "0023",
    "0024",
    "0025",
    "0026",
    "0027",
    "0028",
    "0029",
    "0030",
    "0031",
    "0032",
    "0033",
    "0034",
    "0035",
    "0036",
)
"""Every revision of the schema, oldest first. Kept here so that opening needs no Alembic."""

_OPENING_PATIENCE_S = 1.5
_UPGRADE_LOCK = 0x62697466  # any constant: PostgreSQL's advisory locks are numbers


def open_database(url: str, *, create: bool, patience_s: float) -> Database:
    """The database at `url`, at the schema's newest revision.

    Args:
        url: `sqlite:///PATH` or `postgresql://...`.
        create: Makes the tables of an empty database, and upgrades an older one.
        patience_s: How long later transactions retry a broken connection.

    Raises:
        DatabaseError: It cannot be reached, is foreign, damaged or newer; or it is empty or
            older and `create` is not set.
    """
    place = parse_url(url)
    prepare_file(place, create=create)
    database = Database(place, min(patience_s, _OPENING_PATIENCE_S))
    try:
        revision = database.read(read_revision, str(database))
        if revision != REVISIONS[-1]:
            if not create:
                raise DatabaseError(_outdated(str(database), revision))
            _migrate(database)
    except BaseException:
        database.close()
        raise
    database.patience_s = patience_s
    return database


def upgrade(url: str) -> None:
    """Brings the database at `url` to the newest revision; makes the tables of an empty one.

    Raises:
        DatabaseError: It cannot be reached, is foreign, damaged or newer.
    """
    open_database(url, create=True, patience_s=_OPENING_PATIENCE_S).close()


def read_revision(connection: Connection, shown: str) -> str | None:
    """The revision of the schema; None for an empty database.

    Raises:
        DatabaseError: Its tables are not ours, or of a revision that we do not know.
    """
    tables = inspect(connection).get_table_names()
    if VERSION_TABLE not in tables:
        if tables:
            raise DatabaseError(
                f"the database {shown} belongs to another program (it has a table "
                f"{tables[0]}): give bitfront a database of its own"
            )
        return None
    revision = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
    if revision not in REVISIONS:
        raise DatabaseError(
            f"the database {shown} was written by a newer bitfront (schema {revision}, this "
            f"one knows up to {REVISIONS[-1]}): install a newer bitfront"
        )
    return str(revision)


def _outdated(shown: str, revision: str | None) -> str:
    if revision is None:
        return f"the database {shown} is empty: submit a job to fill it, or name another with --db"
    return (
        f"the database {shown} was written by an older bitfront (schema {revision}, this one "
        f"needs {REVISIONS[-1]}): submitting or resuming a study upgrades it"
    )


def _migrate(database: Database) -> None:
    if database.is_sqlite:
        _use_write_ahead_log(database)
    database.write(_upgrade_alone, str(database))


def _use_write_ahead_log(database: Database) -> None:
    connection = database.engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode=WAL")
    except sqlite3.Error as error:
        # The mode stays with the file: if another process is switching it, it will be set.
        if "locked" not in str(error):
            raise database.explain(error) from error
    finally:
        connection.close()


def _upgrade_alone(connection: Connection, shown: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
    if read_revision(connection, shown) != REVISIONS[-1]:
        run_migrations(connection, "head")


def run_migrations(connection: Connection, revision: str) -> None:
    """Upgrades to a revision within the connection's transaction."""
    # Alembic takes longer to import than a query takes to run, and is needed once.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)

"""Databases of other programs: what they hold, before anything is written to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, exc, inspect

from bitfront.errors import DatabaseError
from storage.engine import Database
from storage.location import parse_url, prepare_file
from storage.schema import VERSION_TABLE

_PATIENCE_S = 1.5


@dataclass(frozen=True, slots=True)
class Target:
    """A database that another program's tables go to.

    Attributes:
        url: Where it is, with its password.
        shown: Where it is, without its password.
        tables: The tables that it has.
    """

    url: str
    shown: str
    tables: frozenset[str]


@contextmanager
def open_target(url: str) -> Iterator[Target]:
    """The database at `url`, to be written to by another library; an SQLite file may be new.

    Raises:
        DatabaseError: It cannot be reached or read, holds bitfront's own tables, or fails
            while the context is open.
    """
    place = parse_url(url)
    prepare_file(place, create=True)
    database = Database(place, _PATIENCE_S)
    try:
        tables = database.read(_table_names)
        if VERSION_TABLE in tables:
            raise DatabaseError(
                f"the database {database} is bitfront's own: name another file or database"
            )
        yield Target(place.render_as_string(hide_password=False), str(database), tables)
    except exc.SQLAlchemyError as error:
        raise _explained(database, error) from error
    finally:
        database.close()


def _table_names(connection: Connection) -> frozenset[str]:
    return frozenset(inspect(connection).get_table_names())


def _explained(database: Database, error: exc.SQLAlchemyError) -> Exception:
    if isinstance(error, exc.OperationalError | exc.InterfaceError):
        return database.explain(error)
    return DatabaseError(f"the database {database} cannot be written: {type(error).__name__}")

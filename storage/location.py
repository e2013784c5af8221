"""Where a database is: its URL, checked, and shown without its password."""

from pathlib import Path

from sqlalchemy import URL, exc, make_url

from bitfront.errors import DatabaseError
from bitfront.passwords import is_secret, masked, without

_FORM = "write it like sqlite:///PATH or postgresql://USER@HOST/NAME"


def parse_url(text: str) -> URL:
    """The database's URL, with the driver that bitfront uses.

    Raises:
        DatabaseError: It is not a URL, or of a database that bitfront does not support. The
            message shows no part of it that may be a password.
    """
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):
        raise DatabaseError(f"the database URL cannot be read: {_FORM}") from None
    backend = "postgresql" if url.drivername == "postgres" else url.get_backend_name()
    if backend == "sqlite":
        return _sqlite(url)
    if backend != "postgresql":
        raise DatabaseError(f"databases of type {backend} are not supported: {_FORM}")
    if url.host is not None and "@" in url.host:
        raise DatabaseError("the database URL has an @ in its password: write that as %40")
    return url.set(drivername="postgresql+psycopg")


def _sqlite(url: URL) -> URL:
    if url.database in (None, "", ":memory:"):
        raise DatabaseError("a database in memory keeps nothing: write sqlite:///PATH")
    return url.set(drivername="sqlite+pysqlite")


def prepare_file(url: URL, *, create: bool) -> None:
    """Makes the folder of an SQLite database; does nothing for a server.

    Raises:
        DatabaseError: The path is a folder, the file is missing and must not be created, or
            its folder cannot be made.
    """
    if url.get_backend_name() != "sqlite":
        return
    path = Path(str(url.database))
    if path.is_dir():
        raise DatabaseError(f"the database {shown(url)} is a folder: name a file in it")
    if path.exists():
        return
    if not create:
        raise DatabaseError(
            f"there is no database at {path}: submit a job to create it, or name another with --db"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(
            f"the folder {path.parent} of the database cannot be made: {error.strerror}"
        ) from error


def shown(url: URL) -> str:
    """The URL as a person may see it: the password masked, secret options left out."""
    plain = url.set(drivername=url.get_backend_name())
    kept = plain.difference_update_query([name for name in url.query if is_secret(name)])
    return masked(kept.render_as_string(hide_password=True))


def mask(text: str, url: URL) -> str:
    """The text without any of the URL's passwords."""
    secrets = [url.password or ""]
    for name, values in url.normalized_query.items():
        secrets += values if is_secret(name) else ()
    return without(text, secrets)

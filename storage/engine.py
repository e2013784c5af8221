"""An open database: short transactions, each tried again while the connection is lost."""

import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from bitfront.errors import DatabaseError
from bitfront.failpoints import failpoint
from bitfront.plan import canonical_json
from storage.location import mask, shown

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

_BUSY_S = 30
_QUIET_S = 1.0  # a connection that breaks for a moment is not news
_CONNECT = {
    "application_name": "bitfront",
    "connect_timeout": 10,
    # Without these a driver waits two hours for a server that the network has lost.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_WAYS_OUT = {
    "not a database": "is not a SQLite database: choose another file",
    "malformed": "is damaged: restore it from a backup",
    "readonly": "cannot be written: check the rights of the file and its folder",
    "unable to open": "cannot be opened: check that its folder exists and can be written",
    "disk is full": "cannot grow, for the disk is full: free some space and resume the study",
    "locked": f"was locked by another program for {_BUSY_S} s: close that program",
}


class Database:
    """An engine and the way its transactions are run.

    Every transaction must be safe to run twice: it is repeated if the connection breaks.

    Args:
        url: Where the database is; `storage.location.parse_url` makes it.
        patience_s: How long a broken connection is tried again.

    Attributes:
        on_wait: Called with the seconds of each transaction, back-off included.
    """

    def __init__(self, url: URL, patience_s: float) -> None:
        self.url = url
        self.patience_s = patience_s
        self.engine = _engine(url)
        self.on_wait: Callable[[float], None] = lambda _seconds: None
        self._writer = self.engine.execution_options(immediate=True)

    def __str__(self) -> str:
        """Where the database is, without its password."""
        return shown(self.url)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file of this machine."""
        return self.url.get_backend_name() == "sqlite"

    def read(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `work` finds in one transaction.

        Raises:
            DatabaseError: The database cannot be reached or read.
        """
        return self._run(self.engine, lambda connection, _: work(connection, *args, **kwargs))

    def write(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `work` yields in one transaction that may write; committed on return.

        Raises:
            DatabaseError: The database cannot be reached or written.
        """
        return self._run_named(
            work.__name__, lambda connection, _: work(connection, *args, **kwargs)
        )

    def write_once(
        self, work: Callable[Concatenate[Connection, bool, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Like `write`, and tells `work` whether an earlier try may have been committed.

        Raises:
            DatabaseError: The database cannot be reached or written.
        """
        return self._run_named(
            work.__name__, lambda connection, again: work(connection, again, *args, **kwargs)
        )

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()

    def _run_named(self, name: str, work: Callable[[Connection, bool], T]) -> T:
        """One writing transaction, with the points at which a test may end the process."""

        def probed(connection: Connection, again: bool) -> T:
            result = work(connection, again)
            failpoint(f"{name}.before_commit")
            return result

        failpoint(f"{name}.before")
        result = self._run(self._writer, probed)
        failpoint(f"{name}.after_commit")
        return result

    def _run(self, engine: Engine, work: Callable[[Connection, bool], T]) -> T:
        tries = Retrying(
            retry=retry_if_exception(_is_passing),
            stop=stop_after_delay(self.patience_s),
            wait=wait_random_exponential(multiplier=0.1, max=10.0),
            before_sleep=self._say_that_it_waits,
            reraise=True,
        )
        started_s = time.monotonic()
        try:
            for attempt in tries:
                with attempt, engine.begin() as connection:
                    return work(connection, attempt.retry_state.attempt_number > 1)
        except (exc.DBAPIError, sqlite3.Error) as error:
            raise self.explain(error) from error
        finally:
            self.on_wait(time.monotonic() - started_s)
        raise AssertionError("tenacity returns or raises")

    def _say_that_it_waits(self, state: RetryCallState) -> None:
        waited_s = state.seconds_since_start or 0.0
        error = state.outcome.exception() if state.outcome is not None else None
        if waited_s >= _QUIET_S and isinstance(error, exc.DBAPIError):
            logger.warning(
                "%s; waited %.0f of at most %.0f s", self.explain(error), waited_s, self.patience_s
            )

    def explain(self, error: exc.DBAPIError | sqlite3.Error) -> Exception:
        """One sentence on a database's failure; a broken rule of the schema stays as it is."""
        denied = isinstance(error, exc.DBAPIError) and _is_denied(error)
        broken = isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError)
        if broken and not denied:
            return error
        reason = str(error.orig) if isinstance(error, exc.DBAPIError) else str(error)
        for fragment, way_out in _WAYS_OUT.items():
            if self.is_sqlite and fragment in reason:
                return DatabaseError(f"the database {self} {way_out}")
        line = mask(reason.strip().splitlines()[0], self.url) if reason.strip() else "no answer"
        return DatabaseError(f"the database {self} cannot be used: {line}")


def _is_denied(error: exc.DBAPIError) -> bool:
    """Whether PostgreSQL's user may not do this (its error class 42501)."""
    return getattr(error.orig, "sqlstate", None) == "42501"


def _is_passing(error: BaseException) -> bool:
    if not isinstance(error, exc.OperationalError | exc.InterfaceError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        # Processes that open a new file at once can meet while its journal is switched.
        reason = str(error.orig)
        return any(word in reason for word in ("locked", "locking protocol", "disk is full"))
    return True


def _engine(url: URL) -> Engine:
    is_sqlite = url.get_backend_name() == "sqlite"
    given = {name: value for name, value in _CONNECT.items() if name not in url.query}
    engine = create_engine(
        url,
        connect_args={"timeout": _BUSY_S} if is_sqlite else given,
        pool_pre_ping=not is_sqlite,
        json_serializer=canonical_json,
        hide_parameters=True,  # an error shows the statement without the rows
    )
    if is_sqlite:
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # our own BEGIN, not the driver's late one
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock before it reads, so what it read is still true when it writes.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

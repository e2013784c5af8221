import os
import socket
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.exc import ProgrammingError

from bitfront.errors import DatabaseError
from bitfront.trial import StudyState
from storage.schema import REVISIONS, VERSION_TABLE
from storage.store import open_store
from tests.support.databases import Databases
from tests.support.store_samples import events, job


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE trials (trial_id INTEGER)")
    connection.close()


def of_another_alembic_program(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.close()


def newer(path: Path) -> None:
    open_store(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")  # noqa: S608
    connection.close()


def text(path: Path) -> None:
    path.write_text("study: digits\n" * 100)


def truncated(path: Path) -> None:
    open_store(f"sqlite:///{path}").close()
    path.write_bytes(path.read_bytes()[:6000])


def overwritten(path: Path) -> None:
    open_store(f"sqlite:///{path}").close()
    content = bytearray(path.read_bytes())
    content[100:8192] = b"\xff" * 8092
    path.write_bytes(content)


def folder(path: Path) -> None:
    path.mkdir()


MALFORMED: list[tuple[Callable[[Path], None], str]] = [
    (foreign, "belongs to another program (it has a table trials): give bitfront"),
    (of_another_alembic_program, "belongs to another program (it has a table alembic_version)"),
    (newer, f"was written by a newer bitfront (schema 9999, this one knows up to {REVISIONS[-1]})"),
    (text, "is not a SQLite database: choose another file"),
    (truncated, "is damaged: restore it from a backup"),
    (overwritten, "is damaged: restore it from a backup"),
    (folder, "is a folder: name a file in it"),
]


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("spoil", "message"), MALFORMED, ids=[spoil.__name__ for spoil, _ in MALFORMED]
)
def test_a_file_that_is_not_ours_is_refused_and_left_as_it_is(
    tmp_path: Path, spoil: Callable[[Path], None], message: str, create: bool
) -> None:
    path = tmp_path / "studies.db"
    spoil(path)
    before = None if path.is_dir() else path.read_bytes()

    with pytest.raises(DatabaseError) as caught:
        open_store(f"sqlite:///{path}", create=create)

    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before is None or path.read_bytes() == before


URLS = [
    ("", "the database URL cannot be read: write it like sqlite:///PATH or postgresql://"),
    ("studies.db", "the database URL cannot be read"),
    ("postgresql://me:secret@host:port/name", "the database URL cannot be read"),
    ("postgresql://me:sec@secret@host/name", "has an @ in its password: write that as %40"),
    ("mysql://me:secret@host/name", "databases of type mysql are not supported"),
    ("sqlite://", "a database in memory keeps nothing: write sqlite:///PATH"),
    ("sqlite:///:memory:", "a database in memory keeps nothing"),
    ("sqlite:////proc/nowhere/studies.db", "the folder /proc/nowhere of the database cannot be"),
    ("sqlite:////proc/studies.db", "cannot be opened: check that its folder exists and can be"),
]


@pytest.mark.parametrize(("url", "message"), URLS, ids=[url for url, _ in URLS])
def test_a_url_that_leads_nowhere_is_refused_in_one_sentence(url: str, message: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        open_store(url)

    assert message in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_missing_file_is_not_made_by_a_query(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "studies.db"

    with pytest.raises(DatabaseError, match=f"there is no database at {path}: submit a job"):
        open_store(f"sqlite:///{path}", create=False)

    assert not path.parent.exists()


def test_the_folder_of_a_new_file_is_made(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path / 'a' / 'b' / 'studies.db'}") as store:
        assert store.studies() == []


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://me:secret@127.0.0.1:{port}/studies",
        "postgres://127.0.0.1:{port}/studies?user=me&password=secret",
    ],
)
def test_an_unreachable_server_is_named_without_its_password(form: str) -> None:
    url = form.format(port=closed_port())

    with pytest.raises(DatabaseError) as caught:
        open_store(url)

    assert "refused" in str(caught.value)
    assert "127.0.0.1" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_missing_database_of_a_server_is_named(postgres_url: str) -> None:
    with pytest.raises(DatabaseError, match='"nowhere" does not exist'):
        open_store(postgres_url.replace("/postgres?", "/nowhere?"))


def test_a_server_database_of_another_program_is_refused(postgres_databases: Databases) -> None:
    url = postgres_databases.empty()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE trials (trial_id INTEGER)")

    with pytest.raises(DatabaseError, match="it has a table trials"):
        open_store(url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_server_is_named_in_any_of_its_schemes(
    postgres_databases: Databases, scheme: str
) -> None:
    url = postgres_databases.ready().replace("postgresql", scheme, 1)

    with open_store(url, create=False) as store:
        assert store.studies() == []
        assert str(store).startswith("postgresql://")


def test_a_full_disk_is_told_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    with open_store(f"sqlite:///{path}", patience_s=0.2) as store:
        store.create_study(job(), {})
        lease = store.acquire("digits", "me", 60)
        with store._database.engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

        with pytest.raises(DatabaseError, match="the disk is full: free some space"):
            store.set_state(lease, StudyState.RUNNING, "x" * 19_000)

        with store._database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        store.set_state(lease, StudyState.RUNNING, "x" * 19_000)
        assert len(events(store, "digits")) == 3


def test_space_that_is_freed_in_time_is_waited_for(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path / 'studies.db'}", patience_s=60) as store:
        store.create_study(job(), {})
        lease = store.acquire("digits", "me", 60)
        limits = iter(["page_count"] * 3)

        def limit(connection: sqlite3.Connection, *_: object) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            room = pages if next(limits, None) else 100_000
            connection.execute(f"PRAGMA max_page_count = {room}")

        event.listen(store._database.engine, "checkout", limit)
        store.set_state(lease, StudyState.RUNNING, "x" * 19_000)

        assert next(limits, None) is None
        assert [found.kind for found in events(store, "digits")][-1] == "state"


QUERY = """
import sys
from storage.store import open_store

with open_store({url!r}, create=False) as store:
    store.best("digits")
print(*sorted({{"alembic", "psycopg", "pydantic", "torch", "numpy"}} & set(sys.modules)))
"""


def test_a_query_loads_nothing_slow(sqlite_databases: Databases) -> None:
    url = sqlite_databases.ready()
    with open_store(url) as store:
        store.create_study(job(), {})

    command = [sys.executable, "-W", "error", "-c", QUERY.format(url=url)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)

    assert answer.stdout.strip() == ""
    assert answer.stderr == ""


def test_what_the_user_may_not_do_is_one_sentence(postgres_databases: Databases) -> None:
    url = postgres_databases.ready()
    with open_store(url) as store:
        store.create_study(job(), {})
        with store._database.engine.begin() as connection:
            connection.exec_driver_sql("DROP ROLE IF EXISTS guest")
            connection.exec_driver_sql("CREATE ROLE guest")
        with store._database.engine.connect() as connection:
            connection.exec_driver_sql("SET ROLE guest")
            with pytest.raises(ProgrammingError) as denied:
                connection.exec_driver_sql("SELECT * FROM study")
        told = store._database.explain(denied.value)
        with store._database.engine.begin() as connection:
            connection.exec_driver_sql("DROP ROLE guest")

    assert isinstance(told, DatabaseError)
    assert "permission denied for table study" in str(told)

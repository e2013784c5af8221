from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect

from bitfront.errors import DatabaseError
from storage.location import parse_url
from storage.schema import REVISIONS, VERSION_TABLE, upgrade
from storage.store import open_store
from storage.tables import Base
from tests.databases import Databases
from tests.store_samples import job


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(parse_url(database_url))
    yield engine
    engine.dispose()


def test_migrations_make_the_schema_of_the_models(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "version_table": VERSION_TABLE}
        )

        assert compare_metadata(context, Base.metadata) == []


def test_migrations_make_the_checks_of_the_models(databases: Databases, engine: Engine) -> None:
    by_models = create_engine(parse_url(databases.empty()))
    Base.metadata.create_all(by_models)
    migrated, modelled = inspect(engine), inspect(by_models)

    for table in Base.metadata.tables:
        ours = {
            (check["name"], check["sqltext"]) for check in migrated.get_check_constraints(table)
        }
        theirs = {
            (check["name"], check["sqltext"]) for check in modelled.get_check_constraints(table)
        }
        assert ours == theirs
    assert any(modelled.get_check_constraints(table) for table in Base.metadata.tables)
    by_models.dispose()


def test_every_migration_is_known_without_alembic() -> None:
    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    scripts = ScriptDirectory.from_config(config).walk_revisions()

    assert tuple(reversed([script.revision for script in scripts])) == REVISIONS


def test_migrations_run_from_any_folder(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = databases.empty()
    monkeypatch.chdir(tmp_path)

    upgrade(url)
    upgrade(url)

    with open_store(url, create=False) as store:
        assert store.studies() == []


def test_the_first_migration_can_be_taken_back(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    assert inspect(engine).get_table_names() == [VERSION_TABLE]


def test_an_empty_database_is_filled_only_when_asked(databases: Databases) -> None:
    url = databases.empty()
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).touch()

    with pytest.raises(DatabaseError, match="is empty: submit a job to fill it"):
        open_store(url, create=False)
    with open_store(url) as store:
        store.create_study(job(), {})
    with open_store(url, create=False) as store:
        assert [study.name for study in store.studies()] == ["digits"]


def test_many_may_open_a_new_database_at_once(databases: Databases) -> None:
    url = databases.empty()

    def open_and_list(_: int) -> int:
        start.wait()
        with open_store(url) as store:
            return len(store.studies())

    start = Barrier(5)
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(open_and_list, range(5))) == [0] * 5


def test_a_new_sqlite_file_keeps_a_write_ahead_log(sqlite_databases: Databases) -> None:
    names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    with (
        open_store(sqlite_databases.empty()) as store,
        store._database.engine.connect() as connection,
    ):
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert settings == ["wal", 2, 1, 30_000]

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
from sqlalchemy import Engine, MetaData, create_engine, exc, inspect, select, text

from bitfront.errors import DatabaseError
from bitfront.profile import StageArtefactKind
from bitfront.trial import Cause, FrontChange, TrialState
from storage.engine import Database
from storage.location import parse_url
from storage.records import Lease
from storage.schema import REVISIONS, VERSION_TABLE, upgrade
from storage.store import Store, open_store
from storage.tables import Base
from tests.support.databases import Databases
from tests.support.store_samples import complete, fail, job, prune, running, show, trial


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


def test_the_first_migration_can_be_taken_back(database_url: str, engine: Engine) -> None:
    downgrade(database_url, "base")

    assert inspect(engine).get_table_names() == [VERSION_TABLE]


Rows = dict[str, set[str]]


def rows(url: str) -> Rows:
    """Every row of every table but the revision's: the columns that hold something."""
    engine = create_engine(parse_url(url))
    found = MetaData()
    found.reflect(engine)
    with engine.connect() as connection:
        kept = {
            table.name: {
                str({name: value for name, value in sorted(row.items()) if value is not None})
                for row in connection.execute(select(table)).mappings()
            }
            for table in found.sorted_tables
            if table.name != VERSION_TABLE
        }
    engine.dispose()
    return kept


def fill(store: Store) -> Lease:
    """A study with trials of every state that the first schema knows; number 3 still runs."""
    lease = running(store)
    store.set_provenance(lease, {"model": "m", "data": "d"})
    for number in (4, 0, 1, 2):
        store.start_trial(lease, trial(number))
        if number == 4:
            store.cancel_running(lease)
    values = {"error": 0.25, "nbytes": 8.0}
    complete(store, lease, 0, values, front=FrontChange((0,), (), 0.5))
    fail(store, lease, 1, 1, Cause.NODE_LOST, "gone", "a trace", retry=True)
    fail(store, lease, 2, 1, Cause.USER_ERROR, "bad batch", retry=False)
    store.start_trial(lease, trial(3))
    return lease


def of_revision(databases: Databases, revision: str) -> tuple[str, Lease]:
    """A filled database in an older schema."""
    url = databases.ready()
    with open_store(url) as store:
        lease = fill(store)
        if revision != "0001":
            content = {"evaluations": 25}
            store.put_stage_artefact(lease, "key", StageArtefactKind.CLIPS, content, 0.5)
    downgrade(url, revision)
    return url, lease


def downgrade(url: str, revision: str) -> None:
    engine = create_engine(parse_url(url))
    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    engine.dispose()


def _named_as_now(old: Rows) -> Rows:
    """Rows of an older schema under today's names; the specification is another test's."""
    names = {"finding": "stage_artefact"}
    return {names.get(name, name): kept for name, kept in old.items() if name != "study"}


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_an_older_database_comes_up_with_every_row(databases: Databases, revision: str) -> None:
    url, _ = of_revision(databases, revision)
    before = rows(url)

    with pytest.raises(DatabaseError, match=f"schema {revision}, this one needs {REVISIONS[-1]}"):
        open_store(url, create=False)
    upgrade(url)

    after = rows(url)
    kept = _named_as_now(before)
    assert {name: after[name] for name in kept} == kept
    assert after["intermediate"] == set()
    assert len(after["study"]) == len(before["study"])
    with open_store(url, create=False) as store:
        assert store.study("digits").spec == job()
    filled = {"model", "study", "provenance", "trial", "attempt", "front", "hypervolume", "event"}
    assert all(before[name] for name in filled | {"evaluation"})


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_the_store_that_upgrades_a_database_can_stop_its_trials(
    databases: Databases, revision: str
) -> None:
    url, lease = of_revision(databases, revision)

    with open_store(url) as store:
        assert show(store, lease, 3, 1, 15, 0.5)
        assert prune(store, lease, 3, 1, seconds=1.0)

        assert store.intermediates("digits") == {3: {15: 0.5}}
        with (
            store._database.engine.connect() as connection,
            pytest.raises(exc.IntegrityError, match="ck_trial_state_known"),
        ):
            connection.execute(text("UPDATE trial SET state = 'dreamt' WHERE number = 3"))
        if url.startswith("sqlite"):
            with store._database.engine.connect() as connection:
                assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
                assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        store.release(lease, store.study("digits").state)
        store.delete_study("digits")

    left = rows(url)
    assert not any(left[name] for name in ("trial", "attempt", "front", "intermediate"))


def test_a_client_that_is_open_while_a_database_is_upgraded_goes_on(databases: Databases) -> None:
    url, lease = of_revision(databases, "0002")
    with Store(Database(parse_url(url), 1.0)) as before:
        assert before.heartbeat(lease) is None

        upgrade(url)

        assert prune(before, lease, 3, 1, seconds=1.0)


def test_a_pruned_trial_runs_again_in_the_schema_that_does_not_know_it(
    databases: Databases,
) -> None:
    url, lease = of_revision(databases, "0002")
    before = rows(url)
    with open_store(url) as store:
        show(store, lease, 3, 1, 15, 0.5)
        prune(store, lease, 3, 1, seconds=1.0)
    downgrade(url, "0002")
    engine = create_engine(parse_url(url))
    with engine.connect() as connection, pytest.raises(exc.IntegrityError):
        connection.execute(text("UPDATE trial SET state = 'pruned' WHERE number = 3"))
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
    engine.dispose()

    after = rows(url)
    unrelated = before.keys() - {"trial", "attempt", "study", "event"}
    assert before.keys() == after.keys()
    assert {name: after[name] for name in unrelated} == {name: before[name] for name in unrelated}
    with open_store(url) as store:
        stopped = store.trials("digits", {TrialState.CANCELLED})
        assert [(kept.number, kept.cause) for kept in stopped] == [
            (3, "cancelled"),
            (4, "cancelled"),
        ]
        assert [kept.number for kept in store.fence(lease)] == [1, 3, 4]


def test_an_outdated_trial_has_failed_in_the_schema_that_does_not_know_it(
    databases: Databases,
) -> None:
    url, lease = of_revision(databases, REVISIONS[-1])
    with open_store(url) as store:
        store.replace_spec(lease, job(search={"seed": 1}), changes_results=True)
        assert store.trials("digits")[0].state is TrialState.OUTDATED

    downgrade(url, "0008")
    upgrade(url)

    with open_store(url) as store:
        found = store.trials("digits")[0]
        assert (found.state, found.cause) == (TrialState.FAILED, Cause.USER_ERROR)
        assert "error" not in found.values


def test_the_names_of_the_last_schema_come_back(databases: Databases) -> None:
    url, _ = of_revision(databases, "0004")
    before = rows(url)
    upgrade(url)

    downgrade(url, "0004")

    engine = create_engine(parse_url(url))
    indexes = {index["name"] for index in inspect(engine).get_indexes("finding")}
    engine.dispose()
    assert rows(url) == before
    assert indexes == {"ix_finding_study_id"}


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


@pytest.mark.parametrize("recovery", [None, {"steps": [40]}])
def test_a_study_from_before_recoveries_had_learning_rates_is_the_same_job(
    databases: Databases, recovery: dict[str, object] | None
) -> None:
    url = databases.ready()
    spec = job(space={"recovery": recovery})
    with open_store(url) as store:
        store.create_study(spec, {})
    engine = create_engine(parse_url(url))
    query = text("SELECT spec, spec_digest FROM study")

    downgrade(url, "0010")
    with engine.connect() as connection:
        with_rates = connection.execute(query).one()
    downgrade(url, "0009")
    with engine.connect() as connection:
        stored = connection.execute(query).one()
    assert "learning_rate_multiplier" not in str(stored.spec)
    assert (stored.spec_digest == with_rates.spec_digest) == (recovery is None)
    upgrade(url)

    with engine.connect() as connection:
        assert connection.execute(query).one().spec_digest == spec.digest
    engine.dispose()
    with open_store(url) as store:
        assert store.study("digits").spec == spec


def test_an_older_job_with_a_rounding_method_keeps_the_target_and_the_ranges_that_it_had(
    databases: Databases,
) -> None:
    url = databases.ready()
    had = {"rounding": "descent", "target": "own", "ranges": "measured"}
    with open_store(url) as store:
        store.create_study(job(quantizer={"rounding": "descent"}), {})

    downgrade(url, "0014")
    upgrade(url)

    with open_store(url) as store:
        assert store.study("digits").spec == job(quantizer=had)


def test_a_job_that_leaves_the_rounding_open_is_descent_to_the_version_before(
    databases: Databases,
) -> None:
    url = databases.ready()
    with open_store(url) as store:
        store.create_study(job(quantizer={}), {})

    downgrade(url, "0015")
    upgrade(url)

    with open_store(url) as store:
        assert store.study("digits").spec == job(quantizer={"rounding": "descent"})

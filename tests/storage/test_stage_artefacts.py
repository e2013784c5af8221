from pathlib import Path

from sqlalchemy import create_engine, text

from bitfront.profile import StageArtefactKind
from storage.location import parse_url
from storage.schema import run_migrations
from storage.store import Store, open_store
from tests.support.databases import Databases
from tests.support.store_samples import job, running

CONTENT: dict[str, object] = {"options": ["w4a4c0.99+w4a4"], "evaluations": 25}


def test_an_artefact_is_there_for_every_study_and_stays(store: Store) -> None:
    lease = running(store)

    store.put_stage_artefact(lease, "key", StageArtefactKind.CLIPS, CONTENT, 0.5)
    store.put_stage_artefact(lease, "key", StageArtefactKind.CLIPS, {"options": []}, 0.5)

    assert store.stage_artefacts(["key", "other"]) == {"key": CONTENT}
    assert store.stage_artefacts([f"key {n}" for n in range(2000)]) == {}


def test_a_database_of_the_first_schema_is_upgraded_with_its_studies(databases: Databases) -> None:
    url = databases.empty()
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).touch()
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        run_migrations(connection, "0001")
        connection.execute(
            text(
                "INSERT INTO study (name, state, spec, spec_digest, objectives, epoch, created_at,"
                " updated_at) VALUES ('old', 'stopped', :spec, '', '[]', 0,"
                " '2026-01-01 00:00:00+00:00', '2026-01-01 00:00:00+00:00')"
            ),
            {"spec": job("old").model_dump_json()},
        )
    engine.dispose()

    with open_store(url) as store:
        assert [study.name for study in store.studies()] == ["old"]
        assert store.stage_artefacts(["key"]) == {}

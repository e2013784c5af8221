"""A database that the last version wrote answers as it did then, and its studies resume."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, inspect, text

from bitfront.spec import Granularity, Rounding
from service.cli import main
from service.study.spec_diff import accept_spec, spec_differences
from storage.location import parse_url
from storage.store import open_store
from tests.support.databases import Databases
from tests.support.schema_0004 import answers, restored

STUDIES = ("layers", "clips")


@pytest.fixture
def url(databases: Databases, tmp_path: Path) -> str:
    url = restored(databases, tmp_path)
    open_store(url).close()
    return url


def test_every_command_answers_as_the_version_did_that_wrote_it(url: str) -> None:
    for command, then in answers().items():
        result = CliRunner().invoke(main, [*command.split(), "--format", "json", "--db", url])

        now = [json.loads(line) for line in result.stdout.splitlines()]
        assert result.exit_code == 0, result.stderr
        assert len(now) == len(then)
        for before, after in zip(then, now, strict=True):
            # What a line says in words may be said better.
            kept = {name: value for name, value in before.items() if name != "text"}
            assert {name: after[name] for name in kept} == kept


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_of_it_is_resumed_as_the_same_job(url: str, study: str) -> None:
    with open_store(url) as store:
        spec = store.study(study).spec
        lease = store.acquire(study, "a driver", 30.0)

        accept_spec(store, lease, spec, accept_changes=False)

        assert spec.partition.granularity is Granularity.LAYER
        assert spec.quantizer.rounding is Rounding.NEAREST  # all that there was
        assert spec_differences(store.study(study).spec, spec) == ()


def test_its_stored_hashes_are_those_of_its_specifications(url: str) -> None:
    engine = create_engine(parse_url(url))
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT name, spec_digest FROM study"))
        stored = {row.name: row.spec_digest for row in rows}
    engine.dispose()

    with open_store(url) as store:
        assert stored == {study: store.study(study).spec.digest for study in STUDIES}


def test_its_clips_are_found_again(url: str) -> None:
    engine = create_engine(parse_url(url))
    with engine.connect() as connection:
        keys = connection.scalars(text("SELECT key FROM stage_artefact")).all()
    names = inspect(engine).get_table_names()
    engine.dispose()

    with open_store(url) as store:
        found = store.stage_artefacts(keys)

    assert len(found) == len(keys) == 37
    assert all(content["options"] for content in found.values())
    assert "finding" not in names

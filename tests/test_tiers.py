"""A test's tier follows from what it uses, and Ray does not start without its fixture."""

from pathlib import Path

import pytest

from bitfront.errors import UnstartedCluster
from workers.cluster.connection import connected

TESTS = """
import pytest

@pytest.fixture(scope="module")
def cluster(ray_folder):
    return ray_folder

def test_plain():
    pass

def test_with_ray(cluster):
    pass

def test_with_both_databases(store):
    pass

def test_with_postgres(postgres_databases):
    pass

def test_with_sqlite(sqlite_databases):
    pass
"""


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        ("ray", {"test_with_ray"}),
        ("postgres", {"test_with_both_databases[postgresql]", "test_with_postgres"}),
        (
            "not ray and not postgres",
            {"test_plain", "test_with_both_databases[sqlite]", "test_with_sqlite"},
        ),
    ],
)
def test_a_tier_follows_from_the_fixtures_that_a_test_uses(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tier: str, expected: set[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makepyfile(TESTS)
    plugins = ("-p", "tests.support.tiers", "-p", "tests.support.databases")

    shown = pytester.runpytest_subprocess(*plugins, "--collect-only", "-q", "-m", tier)

    assert {line.partition("::")[2] for line in shown.outlines if "::" in line} == expected


def test_ray_does_not_start_in_a_test_that_did_not_ask_for_it() -> None:
    with pytest.raises(UnstartedCluster, match="no-fixture"), connected(1):
        pass

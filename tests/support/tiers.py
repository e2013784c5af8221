"""Which tier a test belongs to follows from what it uses; no list names tests.

Ray and PostgreSQL come from fixtures, and only from them, so whoever uses one has its marker.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MARKERS = {"ray_folder": "ray", "postgres_url": "postgres"}
_NOWHERE = f"{os.devnull}/no-fixture-ray_folder"


def pytest_configure() -> None:
    """One thread a process, here and in all that tests start; and no Ray without its fixture."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["RAY_TMPDIR"] = _NOWHERE


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[str]:
    """What a test must use to start Ray: the folder where its clusters live."""
    with (
        # Ray's sockets lie in it, whose paths may not be long.
        tempfile.TemporaryDirectory(prefix="bf-ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()  # not every way to start Ray makes it
        yield folder


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what a test needs; the longest tests, which need Ray, come first."""
    for item in items:
        for marker in {_MARKERS[name] for name in _fixtures(item) & _MARKERS.keys()}:
            item.add_marker(marker)
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


def _fixtures(item: pytest.Item) -> set[str]:
    names = set(getattr(item, "fixturenames", ()))
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if parameters.get("databases") == "postgresql":  # which then gets its fixture itself
        names.add("postgres_url")
    return names

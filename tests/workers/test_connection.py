"""Where a cluster of our own puts its sockets."""

from pathlib import Path

import pytest

from bitfront.errors import SpecError
from workers.cluster.connection import connected


def test_a_folder_that_is_too_long_for_sockets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 90)))

    with pytest.raises(SpecError, match=r"RAY_TMPDIR is .*too long .* of at most \d+ bytes"):
        connected(1).__enter__()

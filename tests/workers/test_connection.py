"""Where a cluster of our own puts its sockets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitfront.errors import SpecError, UnstartedCluster
from workers.cluster.connection import connected


def test_a_folder_that_is_too_long_for_sockets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 90)))

    with pytest.raises(SpecError, match=r"RAY_TMPDIR is .*too long .* of at most \d+ bytes"):
        connected(1).__enter__()


def test_a_cluster_that_does_not_start_gets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"{os.devnull}/nowhere")

    with pytest.raises(UnstartedCluster, match=r"Ray does not start on this machine \(.*nowhere"):
        connected(1).__enter__()


@pytest.mark.usefixtures("ray_folder")
def test_sockets_have_a_short_folder_where_that_for_temporary_files_is_long(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    del environment["RAY_TMPDIR"]
    code = (
        "from workers.cluster.connection import connected, node_resources\n"
        "with connected(1):\n    assert len(node_resources()) == 1\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []

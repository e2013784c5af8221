"""Runs one of the peers' programs in the peer's environment."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]


def call_peer(environment: Path, program: str, folder: Path, arguments: Sequence[str]) -> None:
    """Runs a module of `benchmarks.peers` on an exchange folder.

    Args:
        environment: The peer's virtual environment.
        program: The module's name.
        folder: What `write_exchange` wrote.
        arguments: Further ones.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    command = [str(environment.absolute() / "bin" / "python"), "-m", f"benchmarks.peers.{program}"]
    subprocess.run(
        [*command, str(folder.absolute()), *arguments],
        capture_output=True,
        cwd=_ROOT,
        env={**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
        check=True,
    )

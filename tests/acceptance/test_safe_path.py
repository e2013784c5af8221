"""Nothing that lies in a person's folder is imported: not by the driver, not by a worker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.studies import JOB

pytestmark = [pytest.mark.usefixtures("ray_folder"), pytest.mark.timeout(600)]

# Ours, and others that both a driver and a worker import.
NAMES = (
    *("bitfront", "objectives", "search", "service", "storage", "workers"),
    *("ray", "torch", "numpy", "yaml", "optuna", "sqlalchemy", "open_clip", "transformers"),
    *("random", "json", "typing_extensions", "sitecustomize", "usercustomize"),
)


def lay_traps(folder: Path, log: Path) -> None:
    """A file of each name in the folder; whoever imports one writes its name into the log."""
    for name in NAMES:
        (folder / f"{name}.py").write_text(
            f"with open({str(log)!r}, 'a') as log:\n    log.write({name + chr(10)!r})\n"
            "raise ImportError('a file of the person was imported')\n"
        )


def test_no_file_of_a_person_is_imported(tmp_path: Path) -> None:
    current, jobs, log = tmp_path / "current", tmp_path / "jobs", tmp_path / "imported.txt"
    for folder in (current, jobs):
        folder.mkdir()
        lay_traps(folder, log)
    job = jobs / "job.yaml"
    job.write_text(f"study: safe\nstop: {{trials: 3}}{JOB}")
    script = Path(sys.executable).parent / "bitfront"

    done = subprocess.run(
        [str(script), "submit", str(job), "--db", str(tmp_path / "b.db")],
        cwd=current,
        env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert not log.exists(), log.read_text()
    assert done.returncode == 0, done.stderr

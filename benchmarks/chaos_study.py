"""The studies of a chaos run, one after the other, and the drivers that are started for them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.chaos_database import ChaosDatabase

CHECKPOINT_S = 0.5
_ENDS_S = 60

# Each study has calibration data of its own, so that none finds its cells measured already.
_JOB = """
study: {name}
model: {{source: reference}}
data:
  source: reference
  samples: {{calibration: {calibration}, tuning: 64, selection: 128, test: 64}}
quantizer: {{rounding: nearest}}
space:
  weight_bits: [3, 8]
  recovery: {{context_length: [4], reduction: [4], blend: [0.2], steps: [{steps}]}}
partition: {{granularity: layer}}
search:
  budgets: 2
  workers: 2
  gpus_per_worker: 0.5
  early_stop: {early_stop}
  checkpoint_s: {checkpoint_s}
  seed: {seed}
stop: {{trials: {trials}}}
"""


class ChaosStudy:
    """One study, and the driver that runs it at the moment.

    Attributes:
        name: Its name.
        trials: How many it is to have.
    """

    def __init__(
        self,
        folder: Path,
        database: ChaosDatabase,
        environment: Mapping[str, str],
        place: int,
        seed: int,
        *,
        trials: int,
        steps: int,
    ) -> None:
        """Writes its job; every second study stops trainings early."""
        self.name = f"chaos-{place}"
        self.trials = trials
        self._database = database
        self._environment = dict(environment)
        self._log = folder / f"{self.name}.log"
        self._job = folder / f"{self.name}.yaml"
        self._job.write_text(
            _JOB.format(
                name=self.name,
                calibration=32 + place,
                steps=steps,
                early_stop="true" if place % 2 else "false",
                checkpoint_s=CHECKPOINT_S,
                seed=seed,
                trials=trials,
            )
        )
        self._driver: subprocess.Popen[bytes] | None = None

    def drive(self, address: str) -> None:
        """Starts a driver, the first or another one."""
        known = self._database.rows(f"SELECT 1 FROM study WHERE name = '{self.name}'")  # noqa: S608 - a name of our own
        what = ["resume", self.name] if known else ["submit", str(self._job)]
        command = [sys.executable, "-m", "service", *what, "--db", self._database.url]
        with self._log.open("ab") as log:
            self._driver = subprocess.Popen(
                [*command, "--address", address],
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """What the driver ended with; None while it runs."""
        return None if self._driver is None else self._driver.poll()

    @property
    def is_driven(self) -> bool:
        """Whether a driver runs."""
        return self._driver is not None and self._driver.poll() is None

    def kill(self) -> None:
        """Ends the driver with SIGKILL."""
        assert self._driver is not None
        self._driver.kill()
        self._driver.wait()

    def terminate(self) -> list[str]:
        """Asks the driver to end with SIGTERM; what it did not do as it should."""
        assert self._driver is not None
        self._driver.send_signal(signal.SIGTERM)
        try:
            self._driver.wait(timeout=_ENDS_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return [f"the driver did not end within {_ENDS_S} s of SIGTERM"]
        owner = f":{self._driver.pid}"
        held = [row[0] for row in self._rows("owner") if str(row[0]).endswith(owner)]
        return [f"{owner} kept its lease after SIGTERM" for owner in held]

    def wait(self, timeout_s: float) -> bool:
        """Whether the driver ended by itself in time."""
        assert self._driver is not None
        try:
            self._driver.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def state(self) -> str | None:
        """The study's state; None where it cannot be read."""
        rows = self._rows("state")
        return str(rows[0][0]) if rows else None

    def counts(self) -> dict[str, int]:
        """How many trials are in each state."""
        rows = self._database.rows(
            "SELECT trial.state, count(*) FROM trial JOIN study ON study.id = study_id"  # noqa: S608 - a name of our own
            f" WHERE name = '{self.name}' GROUP BY trial.state"
        )
        return {str(state): int(str(count)) for state, count in rows}

    def finished(self) -> int:
        """How many trials have a result or stopped early."""
        counts = self.counts()
        return counts.get("complete", 0) + counts.get("pruned", 0)

    def last_words(self) -> str:
        """The end of the log of the drivers."""
        lines = self._log.read_text(errors="replace").strip().splitlines() or [""]
        return lines[-1]

    def _rows(self, column: str) -> list[tuple[object, ...]]:
        return self._database.rows(f"SELECT {column} FROM study WHERE name = '{self.name}'")  # noqa: S608 - names of our own


def environment_for(folder: Path, witness: Path) -> dict[str, str]:
    """What drivers and clusters of a run inherit: this checkout, the log, and the spool."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path.cwd()),
        "BITFRONT_WITNESS": str(witness.absolute()),
        "BITFRONT_SPOOL": str((folder / "spool").absolute()),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def now_s() -> float:
    """Seconds since the epoch, by the clock that the log and the databases of a run share."""
    return time.time()

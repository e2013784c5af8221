"""Studies that tests run as a person does: real processes, a real database, real Ray."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

JOB = """
model: {source: reference}
data:
  source: reference
  samples: {calibration: 32, tuning: 64, selection: 128, test: 64}
quantizer: {rounding: nearest}
space:
  weight_bits: [3, 8]
  recovery: {context_length: [0], reduction: [0, 4], blend: [0.2], steps: [20]}
partition: {granularity: layer}
search: {budgets: 5, workers: 2, early_stop: false}
"""


class Study:
    """A job that is run and killed as a person's own process would be."""

    def __init__(self, folder: Path, name: str, trials: int, job: str = JOB) -> None:
        self.database = folder / "bitfront.db"
        self.job = folder / "job.yaml"
        self.job.write_text(f"study: {name}\nstop: {{trials: {trials}}}{job}")
        self.log = folder / "log.txt"

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "service", *arguments, "--db", str(self.database)]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        if not self.database.exists():
            return []
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            try:
                return connection.execute(statement).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def count(self, statement: str) -> int:
        rows = self.rows(statement)
        return int(str(rows[0][0])) if rows else 0

    def wait_for(self, driver: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not ready():
            assert driver.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def kill_when(self, driver: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        self.wait_for(driver, ready)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()

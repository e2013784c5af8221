"""Driving a study in a process of its own, which goes on when this one ends."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from platformdirs import user_state_path

from bitfront.spec import JobSpec
from service.database_url import VARIABLE
from service.study.submission import await_start, is_cluster, refused

TOKEN_VARIABLE = "BITFRONT_TOKEN"
"""Holds what every request to `bitfront serve` has to show."""


class LocalDriver:
    """A driver that runs on this machine.

    Attributes:
        name: What a person may call it.
        log_command: What shows all that it printed.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self.name = f"process {process.pid}"
        self.log_command = f"cat {log}"

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._process.poll() is not None

    def log(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")


def start_driver(
    url: str,
    study: str,
    arguments: Sequence[str],
    spec: JobSpec | None = None,
    *,
    address: str | None = None,
) -> None:
    """Starts `bitfront ARGUMENTS` in the background, and waits until it drives the study.

    With the address of a cluster that takes jobs, it is the cluster's driver that is waited for.

    Args:
        url: The database.
        study: The study's name.
        arguments: The command's own, of which a job's file is left out.
        spec: The job that the command is given as its file, after its name.
        address: The Ray cluster that it runs on; None is this machine.

    Raises:
        FailedDriver: The driver ended before it held the study; the error is its own.
    """
    folder = user_state_path("bitfront") / "drivers"
    folder.mkdir(parents=True, exist_ok=True)
    command, *options = arguments
    if spec is not None:
        job = folder / f"{study}.json"
        job.write_text(spec.model_dump_json())
        options.insert(0, str(job))
    if address is not None:
        options += ["--address", address]
    log = folder / f"{study}.log"
    with log.open("wb") as stream:
        # -P: nothing of the current folder is imported.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service", command, *options],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**_environment(), VARIABLE: url},
            start_new_session=True,
        )
    # A thread waits for its end: a process that nobody waited for seems to live.
    threading.Thread(target=process.wait, name=f"driver of {study}", daemon=True).start()
    driver = LocalDriver(process, log)
    if not is_cluster(address):
        await_start(driver, study)
    elif process.wait() != 0:  # which submits there, and ends when the study is driven
        raise refused(driver)


def _environment() -> dict[str, str]:
    """This process's own, without what only a server may know."""
    return {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}

"""Drivers of studies, each a process of its own that outlives the server."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Final

from platformdirs import user_state_path

from bitfront.errors import FailedDriver
from service.http.settings import TOKEN_VARIABLE, Settings
from service.study.submission import driven_line, is_cluster

JOB_FILE: Final = "job.yaml"
LOG_FILE: Final = "driver.log"

_START_S: Final = 120.0
_POLL_S: Final = 0.1
_REFUSED: Final = "Error: "


def driver_folder(url: str, study: str) -> Path:
    """A new folder for a driver's job file and log: beside a SQLite file, else with the state.

    Raises:
        FailedDriver: It cannot be made.
    """
    prefix = "sqlite:///"
    is_file = url.startswith(prefix)
    root = Path(f"{url.removeprefix(prefix)}.drivers") if is_file else user_state_path("bitfront")
    folder = root if is_file else root / "drivers"
    place = folder / f"{study}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    try:
        place.mkdir(parents=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FailedDriver(f"the folder {place} cannot be made: {reason}") from error
    return place


def start_driver(settings: Settings, study: str, arguments: Sequence[str], folder: Path) -> None:
    """Starts `bitfront ARGUMENTS` in a process of its own, and waits until it drives the study.

    Args:
        settings: The database and the cluster.
        study: The study's name.
        arguments: The command's own.
        folder: Where its log goes.

    Raises:
        FailedDriver: It ended before it held the study; the error is its own.
    """
    command = [sys.executable, "-m", "service", *arguments]
    if settings.address is not None:
        command += ["--address", settings.address]
    # The URL may hold a password, which the list of processes would show.
    environment = {**os.environ, "BITFRONT_DB": settings.url}
    environment.pop(TOKEN_VARIABLE, None)
    log = folder / LOG_FILE
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
    # Somebody has to hear of its end, or it stays as a zombie for as long as the server runs.
    Thread(target=process.wait, name=f"driver of {study}", daemon=True).start()
    _await_start(process, study, log, on_cluster=is_cluster(settings.address))


def _await_start(
    process: subprocess.Popen[bytes], study: str, log: Path, *, on_cluster: bool
) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        code = process.poll()
        text = log.read_text(encoding="utf-8", errors="replace")
        if code == 0 or (not on_cluster and driven_line(study) in text):
            return
        if code is not None:
            raise FailedDriver(_reason(text, log))
        time.sleep(_POLL_S)


def _reason(text: str, log: Path) -> str:
    """The driver's own error; without one, where its log is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(_REFUSED)]
    if errors:
        return errors[-1].removeprefix(_REFUSED)
    last = f"it printed last {lines[-1][:200]!r}" if lines else "it printed nothing"
    return f"the driver ended before it held its study; {last} ({log} has all)"

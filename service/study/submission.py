"""Driving a study elsewhere: as a Ray Job of a cluster, and this machine may go home."""

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import click

from bitfront.errors import FailedDriver
from workers.observability.logs import messages

if TYPE_CHECKING:
    from bitfront.spec import JobSpec

JOB_FILE = "job.json"
"""The name of a job's specification in the driver's working folder."""

_START_S = 300.0
_POLL_S = 0.5
_REFUSED = "Error: "
_ENTRYPOINT = "Running entrypoint for job "


class Driver(Protocol):
    """A driver that was started and runs elsewhere.

    Attributes:
        name: What a person may call it.
        log_command: What shows all that it printed.
    """

    name: str
    log_command: str

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        ...

    def log(self) -> str:
        """What it has printed so far."""
        ...


def is_cluster(address: str | None) -> bool:
    """Whether an address is that of a cluster which takes jobs, not of one to connect to."""
    return address is not None and address.startswith(("http://", "https://"))


def submit_driver(
    address: str, study: str, arguments: Sequence[str], spec: "JobSpec | None" = None
) -> None:
    """Starts `bitfront ARGUMENTS` on a cluster, and waits until it drives the study.

    Args:
        address: The cluster's dashboard, such as `http://head:8265`.
        study: The study's name.
        arguments: The command's own; `JOB_FILE` stands for the specification.
        spec: The specification that is shipped.

    Raises:
        UnreachableCluster: The cluster does not answer.
        FailedDriver: The driver ended before it held the study.
    """
    from workers.cluster.jobs import ClusterJob

    files = {} if spec is None else {JOB_FILE: json.dumps(spec.model_dump(mode="json"))}
    job = ClusterJob.submit(address, study, [*arguments, "--address", "auto"], files)
    _tell(f"study {study} is Ray job {job.id} at {address}")
    await_start(job, study)
    _tell("it runs there without this machine; from any that reaches its database:")
    for command in ("watch", "logs", "stop", "front"):
        _tell(f"  bitfront {command} {study}")


def _tell(text: str) -> None:
    click.echo(text, file=messages())


def driven_line(study: str) -> str:
    """How the line begins that a driver prints as soon as it holds the study."""
    return f"study {study} is driven by "


def await_start(driver: Driver, study: str) -> None:
    """Waits until a driver holds its study, but some minutes at most.

    Raises:
        FailedDriver: It ended before; the error is its own.
    """
    deadline_s = time.monotonic() + _START_S
    while driven_line(study) not in driver.log():
        if driver.is_over:
            if driven_line(study) in driver.log():
                return
            raise refused(driver)
        if time.monotonic() > deadline_s:
            _tell(f"the driver has not begun yet: '{driver.log_command}' tells why")
            return
        time.sleep(_POLL_S)


def refused(driver: Driver) -> FailedDriver:
    """The driver's own error, as if it had run here; without one, the last that was printed."""
    # Ray writes the command into the same file, and may do so after what the command prints.
    lines = [
        line.strip()
        for line in driver.log().splitlines()
        if line.strip() and not line.startswith(_ENTRYPOINT)
    ]
    errors = [line for line in lines if line.startswith(_REFUSED)]
    if errors:
        return FailedDriver(errors[-1].removeprefix(_REFUSED))
    last = f"it printed last {lines[-1]!r}" if lines else "it printed nothing"
    return FailedDriver(
        f"{driver.name} ended before it held its study; {last} ('{driver.log_command}' has all)"
    )

"""Drivers on a cluster: submitted as Ray Jobs, together with a copy of the project they run."""

import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self
from urllib.request import urlopen
from uuid import uuid4

from ray.job_submission import JobStatus, JobSubmissionClient

from bitfront.errors import UnreachableCluster
from workers.observability.logs import FORM_VARIABLE, JOB_VARIABLE, LEVEL_VARIABLE

_LOG_VARIABLES = (FORM_VARIABLE, LEVEL_VARIABLE)

PACKAGES = ("bitfront", "objectives", "search", "service", "storage", "workers")
"""What a driver and its workers import from the copy that is shipped."""

_PATIENCE_S: Final = 60.0
_PAUSE_S: Final = 1.0
_OWN_FAULT: Final = "status code 5"

_ENDED = frozenset({JobStatus.FAILED, JobStatus.STOPPED, JobStatus.SUCCEEDED})


class ClusterJob:
    """A driver that runs on a cluster.

    What Ray keeps of a job (its command, runtime environment and metadata) is shown to
    everybody who reaches the cluster, so it holds the study's name and its job, and nothing
    secret: the database's URL is in the environment of the cluster's head.

    Attributes:
        id: The submission, as Ray's own tools name it.
        name: What a person may call it.
        log_command: What shows all that it printed.
    """

    def __init__(self, client: JobSubmissionClient, submission_id: str) -> None:
        self._client = client
        self.id = submission_id
        self.name = f"Ray job {submission_id}"
        self.log_command = f"ray job logs {submission_id}"

    @classmethod
    def submit(
        cls, address: str, study: str, arguments: Sequence[str], files: Mapping[str, str]
    ) -> Self:
        """Starts `bitfront ARGUMENTS` on the cluster's head.

        Args:
            address: The cluster's dashboard, such as `http://head:8265`.
            study: The study's name, for the job's name.
            arguments: The command's own, which may name the files.
            files: Further files of its working folder, name to text.

        Raises:
            UnreachableCluster: The cluster does not answer, or refuses the job.
        """
        submission_id = f"bitfront-{study}-{uuid4().hex[:8]}"
        with _reaching(address), _project(files) as folder:
            client = JobSubmissionClient(address)
            job = {
                "entrypoint": f"python -m service {shlex.join(arguments)}",
                "submission_id": submission_id,
                "runtime_env": {
                    "working_dir": str(folder),
                    "env_vars": {JOB_VARIABLE: submission_id, **_log_settings()},
                },
                "metadata": {"study": study},
            }
            _submit_patiently(client, submission_id, job)
        return cls(client, submission_id)

    @property
    def is_over(self) -> bool:
        """Whether the driver has ended, in whatever way."""
        with _reaching(self._client.get_address()):
            return self._client.get_job_status(self.id) in _ENDED

    def log(self) -> str:
        """What the driver has printed so far."""
        with _reaching(self._client.get_address()):
            return self._client.get_job_logs(self.id)


def _submit_patiently(
    client: JobSubmissionClient, submission_id: str, job: Mapping[str, Any]
) -> None:
    """Submits a job, again for a while where Ray says that the fault is its own.

    A cluster that has just started answers before it has an agent that takes jobs.

    Raises:
        RuntimeError: Ray refuses the job, or has no agent after a while.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            client.submit_job(**job)
        except RuntimeError as error:
            if _is_known(client, submission_id):  # it was taken, and only the answer was lost
                return
            if _OWN_FAULT not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def _is_known(client: JobSubmissionClient, submission_id: str) -> bool:
    try:
        client.get_job_status(submission_id)
    except RuntimeError:
        return False
    return True


def ray_version(address: str) -> str:
    """The version of Ray on the cluster whose dashboard is at an address.

    Raises:
        UnreachableCluster: It does not answer, or something else does.
    """
    with _reaching(address), urlopen(f"{address.rstrip('/')}/api/version", timeout=10) as answer:
        content = answer.read()
    try:
        return str(json.loads(content)["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise UnreachableCluster(address, "what answers there is no dashboard of Ray") from error


def _log_settings() -> dict[str, str]:
    """How the person wants the driver's log, from this machine's environment."""
    return {name: os.environ[name] for name in _LOG_VARIABLES if name in os.environ}


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Names the cluster where it does not answer; that says nothing of the job."""
    try:
        yield
    except (ConnectionError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UnreachableCluster(address, reason) from error


@contextmanager
def _project(files: Mapping[str, str]) -> Iterator[Path]:
    """A folder with the packages that run now, and the files beside them."""
    with tempfile.TemporaryDirectory(prefix="bitfront-ship-") as name:
        folder = Path(name)
        for package in PACKAGES:
            found = find_spec(package)
            assert found is not None
            assert found.origin is not None
            source = Path(found.origin).parent
            shutil.copytree(
                source, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        for path, text in files.items():
            (folder / path).write_text(text)
        yield folder

"""The check of a job before there is a study, in a process of its own, for it may load torch."""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Lock

from bitfront.errors import InvalidModel
from bitfront.job import Examined
from bitfront.processes import FRESH
from service.http.job_files import Checked, mistakes_of


def check(examined: Examined, folder: Path | None, *, has_lines: bool) -> Checked:
    """Everything that is wrong with a job, as `bitfront submit` finds it.

    Args:
        examined: The job, and what is wrong in its file.
        folder: Where the database lies as a file; None for one on a server.
        has_lines: Whether the person knows the lines of the file.
    """
    from service.study.check import check_job, check_model

    spec = examined.spec
    if spec is None:
        return Checked(mistakes_of(examined, has_lines=has_lines))
    findings = check_job(spec, unsure=examined.unsure, folder=folder)
    if not findings.problems and not examined.mistakes and not spec.is_bundled:
        check_model(spec, findings)
    found = mistakes_of(examined, findings.problems, has_lines=has_lines)
    return Checked(found, tuple(findings.warnings), tuple(findings.notes))


class Checker:
    """Checks jobs one after the other, in a process that starts with the first of them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pool: ProcessPoolExecutor | None = None

    def check(self, examined: Examined, folder: Path | None, *, has_lines: bool) -> Checked:
        """Everything that is wrong with a job.

        Raises:
            InvalidModel: The process was ended from outside.
        """
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, mp_context=FRESH)
            try:
                return self._pool.submit(check, examined, folder, has_lines=has_lines).result()
            except BrokenProcessPool as error:
                self._pool = None
                raise InvalidModel(
                    "the process that checked the job was ended from outside, as systems do where "
                    "memory runs out: use a smaller model or a larger machine"
                ) from error

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
                self._pool = None

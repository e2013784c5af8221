"""A job in whatever form a program has it, and what it is given beside."""

import os
from collections.abc import Mapping
from pathlib import Path

from bitfront.errors import SpecError
from bitfront.job import Examined, examine_content, examine_job
from bitfront.spec import MOST_WORKERS, JobSpec

Job = str | os.PathLike[str] | Mapping[str, object] | JobSpec
"""The path of a job file, its content, or the specification that was made of it."""


def examine(job: Job, changes: Mapping[str, object], *, elsewhere: bool = False) -> Examined:
    """Every mistake of a job that shows in the job itself.

    Relative paths start at the folder of a file, and else at the current one.

    Args:
        job: The job.
        changes: Dotted keys to values that replace the job's, such as `{"stop.trials": 20}`.
        elsewhere: The job runs on other machines, whose paths it has.

    Raises:
        SpecError: The file cannot be read, or this is no job at all.
    """
    if isinstance(job, JobSpec):
        content = job.model_dump(mode="json", exclude_unset=True)
        return examine_content(content, Path.cwd(), changes, elsewhere=elsewhere)
    if isinstance(job, Mapping):
        return examine_content(job, Path.cwd(), changes, elsewhere=elsewhere)
    if isinstance(job, str | os.PathLike):
        return examine_job(Path(job), changes, elsewhere=elsewhere)
    raise SpecError(  # of callers that no type checker has seen
        f"a job is the path of its file, a mapping or a JobSpec, not {type(job).__name__}"
    )


def changes_of(
    *,
    study: str | None = None,
    trials: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    warm_start: tuple[str, ...] = (),
) -> dict[str, object]:
    """What is said beside a job, by dotted key."""
    pairs = {
        "study": study,
        "stop.trials": trials,
        "search.seed": seed,
        "search.workers": workers,
        "search.warm_start": list(warm_start) or None,
    }
    return {key: value for key, value in pairs.items() if value is not None}


def with_changes(spec: JobSpec, *, trials: int | None, workers: int | None) -> JobSpec:
    """A known study's job with another number of trials or workers.

    Raises:
        SpecError: No job can have that number.
    """
    if trials is not None and trials < 1:
        raise SpecError(f"trials must be at least 1, not {trials}")
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise SpecError(f"workers must be from 1 to {MOST_WORKERS}, not {workers}")
    stop, search = spec.stop, spec.search
    if trials is not None:
        stop = stop.model_copy(update={"trials": trials})
    if workers is not None:
        search = search.model_copy(update={"workers": workers})
    return spec.model_copy(update={"stop": stop, "search": search})

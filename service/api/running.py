"""Running a study for a person: the check before it, and its driver here, behind, or elsewhere."""

from collections.abc import Sequence

from bitfront.errors import DuplicateStudy
from bitfront.job import Examined
from bitfront.spec import JobSpec
from service.api.connection import Connection
from service.api.jobs import Job, examine
from service.database_url import patience_s
from service.study.check import Depth, refuse_mistakes
from service.study.submission import JOB_FILE, is_cluster, submit_driver
from service.views.progress import reporter_for
from workers.observability.logs import messages


def submit(
    connection: Connection,
    job: Job,
    changes: dict[str, object],
    *,
    address: str | None,
    resume: bool,
    accept_changes: bool,
    trust: bool,
    wait: bool,
) -> str:
    """Checks a job and runs its study; see `Database.submit`.

    Returns:
        The study's name.
    """
    if address is not None and is_cluster(address):
        spec = examine(job, changes, elsewhere=True).sound()
        flags = {"--accept-changes": accept_changes, "--resume": resume, "--trust": trust}
        submit_driver(address, spec.study, ["submit", JOB_FILE, *_chosen(flags)], spec)
        return spec.study
    examined = examine(job, changes)
    known = is_known(connection, examined)
    if not known:
        depth = Depth.FILE if trust else Depth.DATA if address is not None else Depth.MODEL
        check(examined, depth, connection.url)
    spec = examined.sound()
    goes_on = known and (accept_changes or resume)
    if not wait:
        if known and not goes_on:
            raise DuplicateStudy(spec.study)
        flags = {"--accept-changes": accept_changes, "--resume": goes_on}
        _start(connection, spec.study, ["submit", *_chosen(flags), "--trust"], address, spec)
    else:
        run(connection, spec, address, resume=goes_on, accept_changes=accept_changes)
    return spec.study


def profile(
    connection: Connection, job: Job, changes: dict[str, object], address: str | None
) -> str:
    """Checks a job and runs the stages before its trials; see `Database.profile`.

    Returns:
        The study's name.
    """
    from service.study.driver import profile_model

    examined = examine(job, changes)
    if not is_known(connection, examined):
        check(examined, Depth.MODEL if address is None else Depth.DATA, connection.url)
    spec = examined.sound()
    with reporter_for(messages()) as reporter:
        profile_model(spec, connection.url, reporter, address)
    return spec.study


def resume(
    connection: Connection,
    spec: JobSpec,
    *,
    address: str | None,
    trials: int | None,
    workers: int | None,
    accept_changes: bool,
    wait: bool,
) -> None:
    """Goes on with a study that has a driver no more; see `Study.resume`.

    Args:
        connection: The database.
        spec: The study's job, with the changes.
        address: A Ray cluster; None runs on this machine.
        trials: How many trials, if that changes.
        workers: How many workers, if that changes.
        accept_changes: Goes on although the job, the model or the data changed.
        wait: Waits until it ends.
    """
    given = {"--trials": trials, "--workers": workers}
    options = [word for name, n in given.items() if n is not None for word in (name, str(n))]
    options += _chosen({"--accept-changes": accept_changes})
    if address is not None and is_cluster(address):
        submit_driver(address, spec.study, ["resume", spec.study, *options])
    elif wait:
        run(connection, spec, address, resume=True, accept_changes=accept_changes)
    else:
        _start(connection, spec.study, ["resume", spec.study, *options], address)


def run(
    connection: Connection,
    spec: JobSpec,
    address: str | None,
    *,
    resume: bool,
    accept_changes: bool,
) -> None:
    """Drives a study in this process, in view of the person, until it ends."""
    from service.study.driver import run_study

    with reporter_for(messages()) as reporter:
        run_study(
            spec,
            connection.url,
            reporter=reporter,
            resume=resume,
            accept_changes=accept_changes,
            address=address,
            patience_s=patience_s(),
        )


def check(examined: Examined, depth: Depth, url: str | None = None) -> None:
    """Shows what a job's data are, and refuses one that cannot run; see `refuse_mistakes`."""
    with reporter_for(messages()) as reporter:
        refuse_mistakes(examined, depth, reporter, url)


def is_known(connection: Connection, examined: Examined) -> bool:
    """Whether there is a study of the job's name that has trials.

    One of that name that failed before its first trial is forgotten.
    """
    if examined.mistakes:
        return False
    name, store = examined.sound().study, connection.store(create=True)
    store.replace_untried(name)
    return any(summary.name == name for summary in store.studies())


def _chosen(flags: dict[str, bool]) -> list[str]:
    return [flag for flag, is_set in flags.items() if is_set]


def _start(
    connection: Connection,
    study: str,
    arguments: Sequence[str],
    address: str | None,
    spec: JobSpec | None = None,
) -> None:
    from service.study.background import start_driver

    where = [] if address is None else ["--address", address]
    start_driver(connection.url, study, [*arguments, *where], spec)

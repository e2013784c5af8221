"""Commands that work on a model: demo, submit, resume, profile."""

import sys
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bitfront.errors import SpecError
from service.commands.deployment import (
    address_option,
    command_line,
    database_option,
    file_folder,
    file_url,
    patience_s,
    workers_option,
)

if TYPE_CHECKING:
    from bitfront.job import Examined
    from bitfront.spec import JobSpec
    from bitfront.trial import StudyState

# Everything that takes long to import is imported by the command that needs it.

JOB: Final = click.Path(path_type=Path)

trust_option = click.option(
    "--trust", is_flag=True, help="Open neither samples nor model: that was done before."
)


@click.command()
@click.argument("job", type=JOB)
@click.option("--study", help="Name of the study.  [default: the one in JOB]")
@click.option("--trials", type=click.IntRange(1), help="How many trials, instead of JOB's number.")
@click.option(
    "--accept-changes",
    is_flag=True,
    help="Go on with a study of that name although its job, model or data changed.",
)
@click.option(
    "--warm-start",
    multiple=True,
    metavar="STUDY",
    help="Try the front of an earlier study of the same model first; may be repeated.",
)
@click.option(
    "--resume", "goes_on", is_flag=True, help="Go on with a study of that name if there is one."
)
@click.option(
    "--dry-run", is_flag=True, help="Only say what the study would take: time, memory and disk."
)
@trust_option
@workers_option
@address_option
@database_option
def submit(
    job: Path,
    study: str | None,
    trials: int | None,
    accept_changes: bool,
    warm_start: tuple[str, ...],
    goes_on: bool,
    dry_run: bool,
    trust: bool,
    workers: int | None,
    address: str | None,
    url: str,
) -> None:
    """Run the search that the file JOB describes.

    With the --address of a cluster's dashboard (http://HEAD:8265) it runs there, on a copy of
    this bitfront, and its results go to the database that the cluster's environment names.
    """
    from bitfront.job import examine_job, load_job
    from service.study.submission import JOB_FILE, is_cluster, submit_driver

    changes = overrides(study=study, trials=trials, workers=workers, warm_start=warm_start)
    if dry_run:
        if address is not None:
            raise SpecError("--dry-run times this machine: leave --address out")
        _dry_run(examine_job(job, changes), trust=trust)
        return
    if address is not None and is_cluster(address):
        spec = load_job(job, changes, elsewhere=True)
        flags = {"--accept-changes": accept_changes, "--resume": goes_on, "--trust": trust}
        chosen = [flag for flag, is_set in flags.items() if is_set]
        submit_driver(address, spec.study, ["submit", JOB_FILE, *chosen], spec)
        return
    examined = examine_job(job, changes)
    known = _is_known(examined, url)
    if not known:
        depth = Depth.FILE if trust else Depth.DATA if address is not None else Depth.MODEL
        _check(examined, depth, url)
    _run(
        examined.sound(),
        url,
        address,
        resume=known and (accept_changes or goes_on),
        accept_changes=accept_changes,
    )


@click.command()
@click.argument("job", type=JOB)
@trust_option
def validate(job: Path, trust: bool) -> None:
    """Check JOB without running it: its values, data, samples, captions, kernels and model.

    Everything that is wrong is shown at once, each with its line; then the exit code is 2.
    """
    from bitfront.job import examine_job

    _check(examine_job(job), Depth.FILE if trust else Depth.MEASURED)
    click.echo(f"{job} can be submitted", err=True)


def _dry_run(examined: "Examined", *, trust: bool) -> None:
    """Prints what the study would take; nothing is stored."""
    from service.study.dry_run import dry_run
    from service.views.dry_run import dry_run_lines
    from service.views.progress import reporter_for
    from workers.observability.logs import messages

    _check(examined, Depth.FILE if trust else Depth.DATA)
    spec = examined.sound()
    with reporter_for(messages()) as reporter:
        estimate = dry_run(spec, lambda name: reporter.stage(name, total=None))
    for line in dry_run_lines(estimate, spec):
        click.echo(line)


def _is_known(examined: "Examined", url: str) -> bool:
    """Whether there is a study of the job's name that has trials."""
    from storage.store import open_store

    name = examined.sound().study if not examined.mistakes else None
    if name is None:
        return False
    with open_store(url) as store:
        store.replace_untried(name)
        return any(summary.name == name for summary in store.studies())


class Depth(IntEnum):
    """How far a job is looked into before there is a study."""

    FILE = 0
    DATA = 1
    MODEL = 2
    MEASURED = 3


def _check(examined: "Examined", depth: Depth, url: str | None = None) -> None:
    """Shows what a job's data are, and refuses one that cannot run.

    Raises:
        SpecError: The job has problems; all are named, a line each.
    """
    from service.study.check import check_full_precision, check_job, check_model
    from service.views.progress import reporter_for
    from workers.observability.logs import messages

    spec = examined.spec
    if spec is None:
        raise SpecError(examined.told())
    with reporter_for(messages()) as reporter:
        opens = spec.data.source != "reference" and "data" not in examined.unsure
        if opens and depth >= Depth.DATA:
            total = sum(spec.data.samples.model_dump().values())
            reporter.stage("check the samples", total=total)
        findings = check_job(
            spec,
            trust=depth < Depth.DATA,
            unsure=examined.unsure,
            folder=None if url is None else file_folder(url),
            on_progress=reporter.advance,
        )
        if depth >= Depth.MODEL and not findings.problems and not examined.mistakes:
            if depth is Depth.MEASURED:
                check_full_precision(spec, findings, lambda name: reporter.stage(name, total=None))
            elif not spec.is_bundled:
                reporter.stage("load the model", total=None)
                check_model(spec, findings)
        for note in findings.notes:
            reporter.note(note)
        for warning in findings.warnings:
            reporter.warn(warning)
    if findings.problems or examined.mistakes:
        raise SpecError(examined.told(findings.problems))


@click.command()
@click.argument("study")
@click.option("--trials", type=click.IntRange(1), help="How many trials in all, from now on.")
@click.option(
    "--accept-changes", is_flag=True, help="Go on although the model or the data changed."
)
@workers_option
@address_option
@database_option
def resume(
    study: str,
    trials: int | None,
    accept_changes: bool,
    workers: int | None,
    address: str | None,
    url: str,
) -> None:
    """Go on with STUDY where it ended, however it ended; or where it was paused."""
    from bitfront.trial import StudyState
    from service.study.submission import is_cluster, submit_driver
    from service.views.status import is_driven
    from storage.records import Request
    from storage.store import open_store

    with open_store(url, create=False) as store:
        record = store.study(study)
        if is_driven(record) and record.request is Request.PAUSE:
            store.withdraw_request(study)
            click.echo(f"study {study} goes on", err=True)
            return
        finished = store.status(study).finished
    wanted = record.spec.stop.trials if trials is None else trials
    if record.state is StudyState.COMPLETE and finished >= wanted and not accept_changes:
        click.echo(
            f"study {study} is complete: {finished} trials are done, and "
            f"--trials {finished + 1} or more adds to them",
            err=True,
        )
        return
    if address is not None and is_cluster(address):
        given = {"--trials": trials, "--workers": workers}
        options = [word for name, n in given.items() if n is not None for word in (name, str(n))]
        flags = ["--accept-changes"] if accept_changes else []
        submit_driver(address, study, ["resume", study, *options, *flags])
        return
    spec = record.spec
    spec = _overridden(spec, trials=trials, workers=workers)
    _run(spec, url, address, resume=True, accept_changes=accept_changes)


@click.command()
@click.argument("job", type=JOB)
@click.option("--study", help="Name of the study.  [default: the one in JOB]")
@workers_option
@address_option
@database_option
def profile(
    job: Path, study: str | None, workers: int | None, address: str | None, url: str
) -> None:
    """Measure and print the blocks and cells of JOB's model."""
    from bitfront.job import examine_job

    examined = examine_job(job, overrides(study=study, workers=workers))
    if not _is_known(examined, url):
        _check(examined, Depth.MODEL if address is None else Depth.DATA, url)
    spec = examined.sound()

    from service.study.driver import profile_model
    from service.views.profile import profile_table
    from service.views.progress import reporter_for
    from storage.store import open_store
    from workers.observability.logs import messages

    with reporter_for(messages()) as reporter:
        profile_model(spec, url, reporter, address)
    with open_store(url, create=False) as store:
        record = store.load_profile(spec.study)
        options = store.options(spec.study)
    if record is not None:
        click.echo(profile_table(record, options))


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the database and the pictures.",
)
@click.option(
    "--model",
    type=click.Choice(["clip", "llava"]),
    default="clip",
    show_default=True,
    help="The bundled model: one that tells scenes apart, or one that answers questions.",
)
@click.option("--trials", type=click.IntRange(1), help="How many trials, instead of the demo's.")
@click.option("--seed", type=click.IntRange(0), help="Seed of the sampler.")
@workers_option
def demo(out: Path, model: str, trials: int | None, seed: int | None, workers: int | None) -> None:
    """Search a bundled model and show its front.

    It needs nothing but the install.
    """
    from service.commands.demo import DemoModel, demo_job, show
    from storage.store import open_store

    url = file_url(out / "bitfront.db")
    with open_store(url) as store:
        changes = overrides(trials=trials, seed=seed, workers=workers)
        spec = demo_job(store, changes, DemoModel(model))
    _drive(spec, url, None, resume=False, accept_changes=False)
    with open_store(url) as store:
        show(store, spec.study, out)


def overrides(
    *,
    study: str | None = None,
    trials: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    warm_start: tuple[str, ...] = (),
) -> dict[str, object]:
    """What the command line says against the job, by dotted key."""
    pairs = {
        "study": study,
        "stop.trials": trials,
        "search.seed": seed,
        "search.workers": workers,
        "search.warm_start": list(warm_start) or None,
    }
    return {key: value for key, value in pairs.items() if value is not None}


def _overridden(spec: "JobSpec", *, trials: int | None, workers: int | None) -> "JobSpec":
    stop, search = spec.stop, spec.search
    if trials is not None:
        stop = stop.model_copy(update={"trials": trials})
    if workers is not None:
        search = search.model_copy(update={"workers": workers})
    return spec.model_copy(update={"stop": stop, "search": search})


def _drive(
    spec: "JobSpec", url: str, address: str | None, *, resume: bool, accept_changes: bool
) -> "StudyState":
    """Runs the study in view of the person; a study that did not get through ends the command."""
    from bitfront.trial import StudyState
    from service.study.driver import run_study
    from service.views.progress import reporter_for
    from workers.observability.logs import messages

    with reporter_for(messages()) as reporter:
        state = run_study(
            spec,
            url,
            reporter=reporter,
            resume=resume,
            accept_changes=accept_changes,
            address=address,
            patience_s=patience_s(),
        )
    if state is not StudyState.COMPLETE:
        command = command_line(f"resume {spec.study}", url)
        click.echo(f"study {spec.study} is {state}: '{command}' continues it", file=messages())
        sys.exit(0 if state is StudyState.STOPPED else 1)
    return state


def _run(
    spec: "JobSpec", url: str, address: str | None, *, resume: bool, accept_changes: bool
) -> None:
    from workers.observability.logs import messages

    state = _drive(spec, url, address, resume=resume, accept_changes=accept_changes)
    click.echo(f"study {spec.study} is {state}; next:", file=messages())
    for command in ("front {}", "best {} --max-nbytes SIZE", "plot {}"):
        click.echo(f"  {command_line(command.format(spec.study), url)}", file=messages())


COMMANDS: Final = (demo, validate, submit, resume, profile)

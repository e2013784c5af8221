"""Commands that work on a model: demo, submit, resume, profile."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bitfront.errors import SpecError
from service.commands.deployment import StudyName, address_option, database_option, workers_option
from service.commands.formats import TEXT_OR_JSON
from service.commands.messages import tell
from service.database_url import command_line, file_url

if TYPE_CHECKING:
    from service.api.study import Study

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
@click.option(
    "--format",
    "form",
    type=TEXT_OR_JSON,
    default="table",
    show_default=True,
    help="Of what --dry-run prints.",
)
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
    form: str,
    workers: int | None,
    address: str | None,
    url: str,
) -> None:
    """Run the search that the file JOB describes.

    With the --address of a cluster's dashboard (http://HEAD:8265) it runs there, on a copy of
    this bitfront, and its results go to the database that the cluster's environment names.
    """
    from service.api.database import open_database
    from service.api.jobs import changes_of
    from service.study.submission import is_cluster

    if dry_run:
        if address is not None:
            raise SpecError("--dry-run times this machine: leave --address out")
        changes = changes_of(study=study, trials=trials, workers=workers, warm_start=warm_start)
        _dry_run(job, changes, form, trust=trust)
        return
    with open_database(url) as database:
        found = database.submit(
            job,
            study=study,
            trials=trials,
            workers=workers,
            warm_start=warm_start,
            address=address,
            resume=goes_on,
            accept_changes=accept_changes,
            trust=trust,
        )
        if not is_cluster(address):
            _tell_end(found, url)


@click.command()
@click.argument("job", type=JOB)
@trust_option
def validate(job: Path, trust: bool) -> None:
    """Check JOB without running it: its values, data, samples, captions, kernels and model.

    Everything that is wrong is shown at once, each with its line; then the exit code is 2.
    """
    from service.api.jobs import examine
    from service.api.running import check
    from service.study.check import Depth

    check(examine(job, {}), Depth.FILE if trust else Depth.MEASURED)
    tell(f"{job} can be submitted")


def _dry_run(job: Path, changes: dict[str, object], form: str, *, trust: bool) -> None:
    """Prints what the study would take; nothing is stored."""
    from service.api.jobs import examine
    from service.api.running import check
    from service.study.check import Depth
    from service.study.dry_run import dry_run
    from service.views.dry_run import dry_run_lines
    from service.views.progress import reporter_for
    from workers.observability.logs import messages

    examined = examine(job, changes)
    check(examined, Depth.FILE if trust else Depth.DATA)
    spec = examined.sound()
    with reporter_for(messages()) as reporter:
        estimate = dry_run(spec, lambda name: reporter.stage(name, total=None))
    if form == "json":
        click.echo(json.dumps(asdict(estimate)))
        return
    for line in dry_run_lines(estimate, spec):
        click.echo(line)


@click.command()
@click.argument("study", type=StudyName())
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
    from service.api.database import open_database
    from service.study.submission import is_cluster

    with open_database(url) as database:
        found = database.study(study)
        if found.withdraw_pause():
            tell(f"study {study} goes on")
            return
        if not found.has_work(trials, accept_changes=accept_changes):
            finished = found.status.finished
            tell(
                f"study {study} is complete: {finished} trials are done, and "
                f"--trials {finished + 1} or more adds to them"
            )
            return
        found.resume(trials=trials, workers=workers, address=address, accept_changes=accept_changes)
        if not is_cluster(address):
            _tell_end(found, url)


@click.command()
@click.argument("job", type=JOB)
@click.option("--study", help="Name of the study.  [default: the one in JOB]")
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@workers_option
@address_option
@database_option
def profile(
    job: Path, study: str | None, form: str, workers: int | None, address: str | None, url: str
) -> None:
    """Measure and print the blocks and cells of JOB's model."""
    from service.api.database import open_database
    from service.views.profile import option_rows, profile_table

    with open_database(url) as database:
        found = database.profile(job, study=study, workers=workers, address=address)
        record, options = found.profile, found.options
    if form == "json":
        for row in option_rows(options):
            click.echo(json.dumps(row))
    elif record is not None:
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
    from service.api.database import open_database
    from service.api.jobs import changes_of
    from service.api.running import run
    from service.commands.demo import DemoModel, demo_job, show

    url = file_url(out / "bitfront.db")
    with open_database(url) as database:
        database.create()
        changes = changes_of(trials=trials, seed=seed, workers=workers)
        spec = demo_job(database, changes, DemoModel(model))
        run(database.connection, spec, None, resume=False, accept_changes=False)
        study = database.study(spec.study)
        _refuse_unfinished(study, url)
        show(study, out)


def _refuse_unfinished(study: "Study", url: str) -> None:
    """Ends the command where the study did not get through."""
    from bitfront.trial import StudyState

    state = study.state
    if state is not StudyState.COMPLETE:
        command = command_line(f"resume {study.name}", url)
        tell(f"study {study.name} is {state}: '{command}' continues it")
        sys.exit(0 if state is StudyState.STOPPED else 1)


def _tell_end(study: "Study", url: str) -> None:
    """Says how a study ended, and what to ask it; one that did not get through ends the command."""
    _refuse_unfinished(study, url)
    tell(f"study {study.name} is {study.state}; next:")
    for command in ("front {}", "best {} --max-nbytes SIZE", "plot {}"):
        tell(f"  {command_line(command.format(study.name), url)}")


COMMANDS: Final = (demo, validate, submit, resume, profile)

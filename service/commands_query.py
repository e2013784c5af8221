"""Commands that ask the database: list, status, watch, stop, cancel, front, best, plot."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from service.deployment import command_line, database_option
from service.exports import FORMATS, write_results
from service.limits import limit_options, refusal

# Everything that takes long to import is imported by the command that needs it: a query
# answers in well under a second.

TEXT_OR_JSON: Final = click.Choice(["table", "json"])


@click.command("list")
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def list_studies(form: str, url: str) -> None:
    """List all studies, the newest first."""
    from service.standing import studies_table, study_dict
    from storage.store import open_store

    with open_store(url, create=False) as store:
        studies = store.studies()
    if form == "json":
        for study in studies:
            click.echo(json.dumps(study_dict(study)))
    elif studies:
        click.echo(studies_table(studies, datetime.now(UTC)))
    else:
        click.echo("there are no studies yet: 'bitfront submit JOB.yaml' starts one", err=True)


@click.command()
@click.argument("study")
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def status(study: str, form: str, url: str) -> None:
    """Show how far STUDY is."""
    from service.standing import status_dict, status_text
    from storage.store import open_store

    with open_store(url, create=False) as store:
        found = store.status(study)
    now = datetime.now(UTC)
    click.echo(json.dumps(status_dict(found, now)) if form == "json" else status_text(found, now))


@click.command()
@click.argument("study")
@database_option
def watch(study: str, url: str) -> None:
    """Follow STUDY while it runs elsewhere.

    Ctrl-C ends the watching, not the study.
    """
    from bitfront.trial import StudyState
    from service.progress import reporter_for
    from service.standing import is_interrupted
    from service.watching import watch as follow
    from storage.store import open_store

    with open_store(url, create=False) as store:
        try:
            with reporter_for(sys.stderr) as reporter:
                last = follow(store, study, reporter).study
        except KeyboardInterrupt:
            command = command_line(f"watch {study}", url)
            click.echo(f"study {study} goes on; '{command}' comes back", err=True)
            return
    if is_interrupted(last, datetime.now(UTC)):
        command = command_line(f"resume {study}", url)
        click.echo(f"nobody runs study {study}: '{command}' goes on", err=True)
        sys.exit(1)
    reason = f": {last.message}" if last.message else ""
    click.echo(f"study {study} is {last.state}{reason}", err=True)
    sys.exit(1 if last.state is StudyState.FAILED else 0)


@click.command()
@click.argument("study")
@database_option
def stop(study: str, url: str) -> None:
    """Let STUDY finish the trials that run and start no more."""
    from storage.records import Request

    _request(study, url, Request.STOP, "finishes what runs, then stops")


@click.command()
@click.argument("study")
@database_option
def cancel(study: str, url: str) -> None:
    """End STUDY now; complete trials are kept."""
    from storage.records import Request

    _request(study, url, Request.CANCEL, "ends now")


def _request(study: str, url: str, asked: str, consequence: str) -> None:
    from service.standing import is_driven
    from storage.records import Request
    from storage.store import open_store

    with open_store(url, create=False) as store:
        record = store.study(study)
        if not is_driven(record, datetime.now(UTC)):
            click.echo(f"study {study} is {record.state}, and nobody runs it", err=True)
            return
        store.request(study, Request(asked))
    command = command_line(f"resume {study}", url)
    click.echo(f"study {study} {consequence}; '{command}' goes on later", err=True)


@click.command()
@click.argument("study")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="json is one object a line.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@database_option
def front(study: str, form: str, out: Path | None, url: str) -> None:
    """Print the Pareto front of STUDY, lowest error first."""
    from service.describe import trial_names
    from storage.store import open_store

    with open_store(url, create=False) as store:
        results = store.front(study)
    if not results:
        click.echo(f"study {study} has no complete trial yet: see 'bitfront status'", err=True)
    write_results(results, trial_names(results), form, out)


@click.command()
@click.argument("study")
@limit_options
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def best(
    study: str,
    max_nbytes: int | None,
    max_latency_s: float | None,
    max_error: float | None,
    max_bits: float | None,
    form: str,
    url: str,
) -> None:
    """Print the best configuration of STUDY under limits.

    Any mix of limits will do; the first objective that is not limited is minimised. If nothing
    fits, the exit code is 1 and stderr says what comes nearest.
    """
    from service.describe import trial_names
    from service.render import best_text, result_json
    from storage.records import Limits
    from storage.store import open_store

    limits = Limits(max_nbytes, max_latency_s, max_error, max_bits)
    with open_store(url, create=False) as store:
        found = store.best(study, limits)
        if found is None:
            sentence = refusal(study, limits, store.nearest(study, limits))
            raise click.ClickException(sentence)
        names = trial_names([found])
        if form == "json":
            click.echo(result_json(found, names))
        else:
            click.echo(best_text(found, names, store.load_profile(study)))


@click.command()
@click.argument("study")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to write to.  [default: the current one]",
)
@click.option("--trial", type=click.IntRange(0), help="Trial whose bits are shown.")
@database_option
def plot(study: str, out: Path, trial: int | None, url: str) -> None:
    """Draw the front and one trial of STUDY as PNG and HTML."""
    from service.pictures import write_pictures
    from storage.store import open_store

    with open_store(url, create=False) as store:
        for path in write_pictures(store, study, out, trial):
            click.echo(path)


COMMANDS: Final = (list_studies, status, watch, stop, cancel, front, best, plot)

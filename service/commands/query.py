"""Commands that ask the database: list, status, watch, logs, front, best, plot."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, Unpack

import click

from bitfront.errors import SpecError
from service.commands.deployment import StudyName, database_option
from service.commands.formats import TEXT_OR_JSON
from service.commands.limits import limit_options, ranking_option
from service.commands.messages import tell
from service.database_url import command_line
from service.views.exports import FORMATS

if TYPE_CHECKING:
    from service.api.limits import By, LimitOptions
    from storage.records import LogLine, StudyRecord

Command = TypeVar("Command", bound=Callable[..., object])

# Everything that takes long to import is imported by the command that needs it: a query
# answers in well under a second.


@click.command("list")
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def list_studies(form: str, url: str) -> None:
    """List all studies, the newest first."""
    from service.api.database import open_database
    from service.views.status import study_dict

    with open_database(url) as database:
        studies = database.studies
    if form == "json":
        for summary in studies.summaries:
            click.echo(json.dumps(study_dict(summary)))
    elif studies:
        click.echo(studies)
    else:
        tell("there are no studies yet: 'bitfront submit JOB.yaml' starts one")


@click.command()
@click.argument("study", type=StudyName())
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def status(study: str, form: str, url: str) -> None:
    """Show how far STUDY is."""
    from service.api.database import open_database

    with open_database(url) as database:
        found = database.study(study).status
    click.echo(json.dumps(found.to_dict()) if form == "json" else found)


@click.command()
@click.argument("study", type=StudyName())
@database_option
def watch(study: str, url: str) -> None:
    """Follow STUDY while it runs elsewhere.

    Ctrl-C ends the watching, not the study.
    """
    from service.api.database import open_database

    with open_database(url) as database:
        found = database.study(study)
        try:
            last = found.wait().record
        except KeyboardInterrupt:
            command = command_line(f"watch {study}", url)
            tell(f"study {study} goes on; '{command}' comes back")
            return
    _end(last, url)


@click.command()
@click.argument("study", type=StudyName())
@click.option("--follow", "-f", is_flag=True, help="Go on until the study ends.")
@click.option("--trial", type=click.IntRange(0), help="Only this trial, with its tracebacks.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json is one object a line.",
)
@database_option
def logs(study: str, follow: bool, trial: int | None, form: str, url: str) -> None:
    """Print what happened to STUDY, oldest first.

    It is read from the database, whether or not the cluster still exists. Times are in UTC.
    """
    from service.api.database import open_database
    from service.views.logs import line_dict, line_text

    def show(line: "LogLine") -> None:
        click.echo(json.dumps(line_dict(study, line)) if form == "json" else line_text(line))

    with open_database(url) as database:
        found = database.study(study)
        try:
            last = found.tell_log(show, trial=trial, follow=follow)
        except KeyboardInterrupt:
            command = command_line(f"logs {study} --follow", url)
            tell(f"study {study} goes on; '{command}' comes back")
            return
    if follow:
        _end(last, url)


def _end(study: "StudyRecord", url: str) -> NoReturn:
    """Says how a study stands that was followed to its end, and leaves with its exit code."""
    from bitfront.trial import StudyState
    from service.views.status import is_interrupted

    if is_interrupted(study):
        command = command_line(f"resume {study.name}", url)
        tell(f"nobody runs study {study.name}: '{command}' resumes it")
        sys.exit(1)
    reason = f": {study.message}" if study.message else ""
    tell(f"study {study.name} is {study.state}{reason}")
    sys.exit(1 if study.state is StudyState.FAILED else 0)


def _model_option(command: Command) -> Command:
    option = click.option(
        "--model", metavar="NAME", help="All studies of a model, by its name or hash."
    )
    return option(command)


def _check_scope(study: str | None, model: str | None) -> None:
    if study is None and model is None:
        raise SpecError("name a STUDY, or all studies of a model with --model NAME")
    if study is not None and model is not None:
        raise SpecError("name a STUDY or a --model, not both")


@click.command()
@click.argument("study", type=StudyName(), required=False)
@_model_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", *FORMATS]),
    help="json is one object a line.  [default: by the suffix of --out, or table]",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@ranking_option
@limit_options
@database_option
def front(
    study: str | None,
    model: str | None,
    form: str | None,
    out: Path | None,
    by: "By",
    url: str,
    **limits: Unpack["LimitOptions"],
) -> None:
    """Print the Pareto front of STUDY, lowest error first.

    A trial is on it if it is better by more than chance than each smaller one, or smaller at no
    loss; --by error gives the front of what was measured, chance included.

    With --model, it is the front of all studies of a model, by what all of them minimised. With
    limits, it is the part of the front that holds all of them; if nothing does, the exit code is 1
    and stderr says what comes nearest.
    """
    from service.api.database import open_database
    from service.views.exports import chosen_format, write, write_rows

    _check_scope(study, model)
    chosen = chosen_format(form, out, "table")
    with open_database(url) as database:
        if study is not None:
            found = database.study(study).front(by=by, **limits)
        else:
            found = database.front(model=str(model), by=by, **limits)
        text = str(found) if chosen == "table" else ""
    if study is None and found.studies:
        by_what, names = " and ".join(found.objectives), ", ".join(found.studies)
        tell(f"by {by_what} over the studies {names}")
    if not found:
        what, way_out = (
            (f"model {model}", "list") if study is None else (f"study {study}", "status")
        )
        tell(f"{what} has no complete trial yet: see 'bitfront {way_out}'")
    if chosen == "table":
        write(f"{text}\n".encode(), out)
    else:
        write_rows(found.rows(), chosen, out)


@click.command()
@click.argument("study", type=StudyName(), required=False)
@_model_option
@ranking_option
@limit_options
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def best(
    study: str | None,
    model: str | None,
    form: str,
    by: "By",
    url: str,
    **limits: Unpack["LimitOptions"],
) -> None:
    """Print the best configuration of STUDY under limits.

    Any mix of limits will do; the first objective that is not limited is minimised. The error is
    an estimate with less chance in it than what was measured, which --by error takes. If nothing
    fits, the exit code is 1 and stderr says what comes nearest. With --model, all studies of a
    model are asked.
    """
    from service.api.database import open_database

    _check_scope(study, model)
    with open_database(url) as database:
        if study is not None:
            found = database.study(study).best(by=by, **limits)
        else:
            found = database.best(model=str(model), by=by, **limits)
        click.echo(json.dumps(found.to_dict()) if form == "json" else found)


@click.command()
@click.argument("study", type=StudyName())
@click.argument("trial", type=click.IntRange(0))
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def show(study: str, trial: int, form: str, url: str) -> None:
    """Show everything about TRIAL of STUDY: values, bits, attempts, what reproduces it."""
    from service.api.database import open_database

    with open_database(url) as database:
        found = database.study(study).trial(trial)
        text = json.dumps(found.details_dict()) if form == "json" else found.details()
    click.echo(text)


@click.command()
@click.argument("first", type=StudyName(), metavar="STUDY")
@click.argument("second", type=StudyName(), metavar="OTHER")
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def compare(first: str, second: str, form: str, url: str) -> None:
    """Show STUDY and OTHER side by side: jobs, fronts, and the best of each at every size."""
    from service.api.database import open_database

    with open_database(url) as database:
        found = database.compare(first, second)
    click.echo(json.dumps(found.to_dict()) if form == "json" else found)


@click.command()
@click.argument("study", type=StudyName())
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to write to.  [default: the current one]",
)
@click.option("--trial", type=click.IntRange(0), help="Trial whose bits are shown.")
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def plot(study: str, out: Path, trial: int | None, form: str, url: str) -> None:
    """Draw the front and one trial of STUDY as PNG, SVG and HTML."""
    from service.api.database import open_database

    with open_database(url) as database:
        for path in database.study(study).plot(out, trial=trial):
            click.echo(json.dumps({"file": str(path)}) if form == "json" else path)


COMMANDS: Final = (list_studies, status, watch, logs, front, best, show, compare, plot)

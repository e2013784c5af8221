"""Commands that ask the database: list, status, watch, logs, front, best, plot."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

import click

from bitfront.errors import SpecError
from service.commands.deployment import command_line, database_option
from service.commands.limits import limit_options, ranking_option
from service.views.exports import FORMATS
from service.views.refusal import nearest_of, refusal

if TYPE_CHECKING:
    from storage.records import LogLine, StudyRecord
    from storage.store import Store

Command = TypeVar("Command", bound=Callable[..., object])

# Everything that takes long to import is imported by the command that needs it: a query
# answers in well under a second.

TEXT_OR_JSON: Final = click.Choice(["table", "json"])


@click.command("list")
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def list_studies(form: str, url: str) -> None:
    """List all studies, the newest first."""
    from service.views.status import studies_table, study_dict
    from storage.store import open_store

    with open_store(url, create=False) as store:
        studies = store.studies()
    if form == "json":
        for study in studies:
            click.echo(json.dumps(study_dict(study)))
    elif studies:
        click.echo(studies_table(studies))
    else:
        click.echo("there are no studies yet: 'bitfront submit JOB.yaml' starts one", err=True)


@click.command()
@click.argument("study")
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def status(study: str, form: str, url: str) -> None:
    """Show how far STUDY is."""
    from service.views.status import status_dict, status_text
    from service.views.watching import best_error_at_budget
    from storage.store import open_store

    with open_store(url, create=False) as store:
        found = store.status(study)
        best = best_error_at_budget(store, found.study)
    click.echo(json.dumps(status_dict(found)) if form == "json" else status_text(found, best))


@click.command()
@click.argument("study")
@database_option
def watch(study: str, url: str) -> None:
    """Follow STUDY while it runs elsewhere.

    Ctrl-C ends the watching, not the study.
    """
    from service.views.progress import reporter_for
    from service.views.watching import watch as follow
    from storage.store import open_store

    with open_store(url, create=False) as store:
        try:
            with reporter_for(sys.stderr) as reporter:
                last = follow(store, study, reporter).study
        except KeyboardInterrupt:
            command = command_line(f"watch {study}", url)
            click.echo(f"study {study} goes on; '{command}' comes back", err=True)
            return
    _end(last, url)


@click.command()
@click.argument("study")
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
    from service.views.logs import line_dict, line_text
    from service.views.watching import follow_log, tell_log
    from storage.store import open_store

    def show(line: "LogLine") -> None:
        click.echo(json.dumps(line_dict(study, line)) if form == "json" else line_text(line))

    with open_store(url, create=False) as store:
        if trial is not None and not store.attempts(study, [trial]):
            raise SpecError(f"study {study!r} has no trial {trial}: see 'bitfront logs {study}'")
        if not follow:
            tell_log(store, study, show, trial=trial)
            return
        try:
            last = follow_log(store, study, show, trial=trial)
        except KeyboardInterrupt:
            command = command_line(f"logs {study} --follow", url)
            click.echo(f"study {study} goes on; '{command}' comes back", err=True)
            return
    _end(last, url)


def _end(study: "StudyRecord", url: str) -> NoReturn:
    """Says how a study stands that was followed to its end, and leaves with its exit code."""
    from bitfront.trial import StudyState
    from service.views.status import is_interrupted

    if is_interrupted(study):
        command = command_line(f"resume {study.name}", url)
        click.echo(f"nobody runs study {study.name}: '{command}' resumes it", err=True)
        sys.exit(1)
    reason = f": {study.message}" if study.message else ""
    click.echo(f"study {study.name} is {study.state}{reason}", err=True)
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
@click.argument("study", required=False)
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
    by: str,
    url: str,
    **options: float | None,
) -> None:
    """Print the Pareto front of STUDY, lowest error first.

    A trial is on it if it is better by more than chance than each smaller one, or smaller at no
    loss; --by error gives the front of what was measured, chance included.

    With --model, it is the front of all studies of a model, by what all of them minimised. With
    limits, it is the part of the front that holds all of them; if nothing does, the exit code is 1
    and stderr says what comes nearest.
    """
    from dataclasses import replace

    from search.choice import Ranking
    from service.views.choosing import full_precision, shown_front, shown_joint_front
    from service.views.describe import trial_names
    from service.views.exports import chosen_format, write, write_rows
    from service.views.render import cross_study_front_table, front_rows, front_table
    from storage.records import Limits
    from storage.store import open_store

    _check_scope(study, model)
    chosen = chosen_format(form, out, "table")
    limits = Limits(**options)
    with open_store(url, create=False) as store:
        if study is not None:
            shown, full = shown_front(store, study, Ranking(by)), full_precision(store, study)
        else:
            shown, full = shown_joint_front(store, str(model), limits, Ranking(by)), None
    if shown.studies:
        names = ", ".join(shown.studies)
        click.echo(f"by {' and '.join(shown.objectives)} over the studies {names}", err=True)
    whole = shown.trials
    trials = [trial for trial in whole if limits.hold(shown.values(trial))]
    shown = replace(shown, trials=tuple(trials))
    if whole and not trials:
        scope = f"the front of {_scope_text(study, model)}"
        nearest = nearest_of(whole, limits)
        across = study is None
        raise click.ClickException(refusal(scope, limits, nearest, way_out="list", across=across))
    if not trials:
        what, way_out = (
            (f"model {model}", "list") if study is None else (f"study {study}", "status")
        )
        click.echo(f"{what} has no complete trial yet: see 'bitfront {way_out}'", err=True)
    if chosen != "table":
        write_rows(front_rows(shown), chosen, out)
    elif study is None:
        write(f"{cross_study_front_table(shown)}\n".encode(), out)
    else:
        write(f"{front_table(shown, trial_names(trials), full)}\n".encode(), out)


def _refuse_while_profiling(store: "Store", study: str) -> None:
    from bitfront.trial import StudyState

    if store.study(study).state is StudyState.PROFILING:
        raise click.ClickException(
            f"study {study!r} is still measuring cells, and its trials come after them: "
            f"see 'bitfront status {study}'"
        )


def _scope_text(study: str | None, model: str | None) -> str:
    return f"study {study!r}" if model is None else f"model {model!r}"


@click.command()
@click.argument("study", required=False)
@_model_option
@ranking_option
@limit_options
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def best(
    study: str | None,
    model: str | None,
    form: str,
    by: str,
    url: str,
    **options: float | None,
) -> None:
    """Print the best configuration of STUDY under limits.

    Any mix of limits will do; the first objective that is not limited is minimised. The error is
    an estimate with less chance in it than what was measured, which --by error takes. If nothing
    fits, the exit code is 1 and stderr says what comes nearest. With --model, all studies of a
    model are asked.
    """
    from search.choice import Ranking
    from service.views.choosing import best_answer
    from service.views.describe import trial_names
    from service.views.render import best_json, best_text
    from service.views.targets import deployable
    from storage.records import Limits
    from storage.store import open_store

    _check_scope(study, model)
    limits = Limits(**options)
    with open_store(url, create=False) as store:
        found = best_answer(store, study, limits, model=model, ranking=Ranking(by))
        if found is None:
            nearest = store.nearest(study, limits, model=model)
            if nearest is None and study is not None:
                _refuse_while_profiling(store, study)
            scope, way_out = _scope_text(study, model), f"status {study}" if study else "list"
            across = study is None
            raise click.ClickException(
                refusal(scope, limits, nearest, way_out=way_out, across=across)
            )
        baselines = trial_names(store.baselines(found.trial.study))
        names = {**baselines, **trial_names([found.trial])}
        targets = deployable(store, found.trial)
        if form == "json":
            click.echo(best_json(found, names, targets))
        else:
            profile = store.load_profile(found.trial.study)
            click.echo(best_text(found, names, profile, targets, across=study is None))


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
    from service.views.pictures import write_pictures
    from storage.store import open_store

    with open_store(url, create=False) as store:
        for path in write_pictures(store, study, out, trial):
            click.echo(path)


COMMANDS: Final = (list_studies, status, watch, logs, front, best, plot)

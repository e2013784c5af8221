"""Commands that put a stored configuration to work: classify, ask."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, Unpack

import click

from service.commands.deployment import StudyName, database_option
from service.commands.formats import TEXT_OR_JSON
from service.commands.limits import limit_options
from service.commands.messages import tell

if TYPE_CHECKING:
    from bitfront.plan import Configuration
    from objectives.evaluation.evaluator import Evaluator
    from service.api.found import FoundConfiguration
    from service.api.limits import LimitOptions

Command = TypeVar("Command", bound=Callable[..., object])

PICTURE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


def configuration_options(command: Command) -> Command:
    """Adds what picks a configuration: a study, and a trial or limits; or a tuned recovery."""
    study = click.option("--study", type=StudyName(), help="The study whose results are used.")
    trial = click.option(
        "--trial", type=click.IntRange(0), help="A trial.  [default: the best within the limits]"
    )
    tuned = click.option(
        "--tuned",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="A folder that 'bitfront tune' wrote, in place of a study.",
    )
    return study(trial(limit_options(tuned(command))))


@click.command()
@click.argument("pictures", type=PICTURE, nargs=-1, required=True)
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="How many classes."
)
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@configuration_options
@database_option
def classify(
    pictures: tuple[Path, ...],
    top: int,
    form: str,
    study: str | None,
    trial: int | None,
    tuned: Path | None,
    url: str,
    **limits: Unpack["LimitOptions"],
) -> None:
    """Say what PICTURES show, with a configuration that a study found."""
    from objectives.data.images import read_image

    for path in pictures:
        read_image(path)  # one that cannot be read is told before the model is loaded
    evaluator, configuration = _pick(url, study, trial, tuned, limits)
    opened = [read_image(path, evaluator.spec.data.background) for path in pictures]
    rows = evaluator.scorer.classify(configuration, opened, top)
    for path, row in zip(pictures, rows, strict=True):
        if form == "json":
            shares = [{"class": name, "share": share} for name, share in row]
            click.echo(json.dumps({"picture": str(path), "classes": shares}))
            continue
        named = ", ".join(f"{name} {100 * share:.1f} %" for name, share in row)
        click.echo(f"{path}: {named}")


@click.command()
@click.argument("picture", type=PICTURE)
@click.argument("question")
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@configuration_options
@database_option
def ask(
    picture: Path,
    question: str,
    form: str,
    study: str | None,
    trial: int | None,
    tuned: Path | None,
    url: str,
    **limits: Unpack["LimitOptions"],
) -> None:
    """Answer QUESTION about PICTURE, with a configuration that a study found."""
    from objectives.data.images import read_image

    read_image(picture)  # one that cannot be read is told before the model is loaded
    evaluator, configuration = _pick(url, study, trial, tuned, limits)
    opened = read_image(picture, evaluator.spec.data.background)
    answer = evaluator.scorer.answer(configuration, question, opened)
    content = {"picture": str(picture), "question": question, "answer": answer}
    click.echo(json.dumps(content) if form == "json" else answer)


def _pick(
    url: str,
    study: str | None,
    trial: int | None,
    tuned: Path | None,
    limits: "LimitOptions",
) -> tuple["Evaluator", "Configuration"]:
    """What is put to work: a study's configuration, or a tuned one.

    Raises:
        BitfrontError: It is not there or cannot be loaded, or neither or both are named.
    """
    from bitfront.errors import SpecError
    from objectives.evaluation.tuned import read_tuned

    if (study is None) == (tuned is None):
        raise SpecError("say what to use: either --study NAME, or --tuned FOLDER")
    if study is not None:
        with found_configuration(url, study, trial, limits) as found:
            return found.load(), found.configuration
    assert tuned is not None
    return read_tuned(tuned)


@contextmanager
def found_configuration(
    url: str, study: str, trial: int | None, limits: "LimitOptions"
) -> Iterator["FoundConfiguration"]:
    """The configuration that was picked from a study; no model is loaded for it.

    Args:
        url: The database.
        study: The study.
        trial: A trial; None for the best within the limits.
        limits: Upper limits.

    Raises:
        BitfrontError: There is no such study or trial.
        NothingFits: No trial holds the limits.
    """
    from service.api.database import open_database

    with open_database(url) as database:
        known = database.study(study)
        found = known.best(**limits) if trial is None else known.trial(trial)
        tell(f"trial {found.number} of study {study}")
        yield found


COMMANDS: Final = (classify, ask)

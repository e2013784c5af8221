"""Commands that put a stored configuration to work: classify, ask."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click

from service.commands.deployment import database_option
from service.commands.limits import limit_options, refusal

if TYPE_CHECKING:
    from bitfront.plan import Configuration
    from objectives.evaluation.evaluator import Evaluator

Command = TypeVar("Command", bound=Callable[..., object])

PICTURE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


def configuration_options(command: Command) -> Command:
    """Adds what picks a configuration: a study, and a trial or limits; or a tuned recovery."""
    study = click.option("--study", help="The study whose results are used.")
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
@configuration_options
@database_option
def classify(
    pictures: tuple[Path, ...],
    top: int,
    study: str | None,
    trial: int | None,
    tuned: Path | None,
    url: str,
    **limits: float | None,
) -> None:
    """Say what PICTURES show, with a configuration that a study found."""
    from objectives.data.images import read_image

    for path in pictures:
        read_image(path)  # one that cannot be read is told before the model is loaded
    evaluator, configuration = _pick(url, study, trial, tuned, limits)
    opened = [read_image(path, evaluator.spec.data.background) for path in pictures]
    rows = evaluator.scorer.classify(configuration, opened, top)
    for path, row in zip(pictures, rows, strict=True):
        named = ", ".join(f"{name} {100 * share:.1f} %" for name, share in row)
        click.echo(f"{path}: {named}")


@click.command()
@click.argument("picture", type=PICTURE)
@click.argument("question")
@configuration_options
@database_option
def ask(
    picture: Path,
    question: str,
    study: str | None,
    trial: int | None,
    tuned: Path | None,
    url: str,
    **limits: float | None,
) -> None:
    """Answer QUESTION about PICTURE, with a configuration that a study found."""
    from objectives.data.images import read_image

    read_image(picture)  # one that cannot be read is told before the model is loaded
    evaluator, configuration = _pick(url, study, trial, tuned, limits)
    opened = read_image(picture, evaluator.spec.data.background)
    click.echo(evaluator.scorer.answer(configuration, question, opened))


def _pick(
    url: str,
    study: str | None,
    trial: int | None,
    tuned: Path | None,
    limits: dict[str, float | None],
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
        return load_configuration(url, study, trial, limits)
    assert tuned is not None
    return read_tuned(tuned)


def load_configuration(
    url: str,
    study: str,
    trial: int | None,
    limits: dict[str, float | None],
    features: Path | None = None,
) -> tuple["Evaluator", "Configuration"]:
    """The study's model and data, and the configuration that was picked.

    Args:
        url: The database.
        study: The study.
        trial: A trial; None for the best within the limits.
        limits: Upper limits.
        features: Folder for features that memory has no room for.

    Raises:
        BitfrontError: There is no such study or trial, or its model cannot be loaded.
        ClickException: No trial holds the limits.
    """
    from bitfront.errors import SpecError
    from bitfront.identity.identities import Identities
    from bitfront.quant.inputs import bounds_from_json
    from objectives.evaluation.evaluator import Evaluator
    from service.study.bounds import stored_bounds
    from storage.records import Limits
    from storage.store import open_store

    with open_store(url, create=False) as store:
        record = store.study(study)
        spec = record.spec
        bounds: dict[str, object] | None = {}
        if spec.profile.vision is not None:
            bounds = stored_bounds(store, spec, Identities.from_provenance(record.provenance))
        if bounds is None:
            raise SpecError(
                f"study {study!r} has not learned the bounds of its vision tower's inputs yet: "
                "'bitfront resume' does"
            )
        if trial is None:
            asked = Limits(**limits)
            best = store.best(study, asked)
            if best is None:
                nearest = store.nearest(study, asked)
                raise click.ClickException(
                    refusal(f"study {study!r}", asked, nearest, way_out=f"status {study}")
                )
            trial = best.number
        found = {known.number: known for known in store.trials(study)}
    if trial not in found:
        raise SpecError(f"study {study!r} has no trial {trial}: see 'bitfront front {study}'")
    click.echo(f"trial {trial} of study {study}", err=True)
    evaluator = Evaluator.from_spec(spec, bounds_from_json(bounds), features=features)
    return evaluator, found[trial].configuration


COMMANDS: Final = (classify, ask)

"""The demonstration: the bundled model's job, and what it found beside uniform precisions."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from importlib.resources import as_file, files
from itertools import count
from pathlib import Path
from typing import Final

import click

from bitfront.errors import NothingFits
from bitfront.job import load_job
from bitfront.spec import JobSpec
from bitfront.trial import Trial, TrialState
from bitfront.units import percent_text, size_text
from service.api.database import Database
from service.api.found import FoundConfiguration
from service.api.study import Study
from service.database_url import command_line, file_url
from service.views.describe import FULL_NAME, trial_names
from service.views.tables import table

SHOWN_BASELINE: Final = "w3"


class DemoModel(StrEnum):
    """The bundled model that a demo searches."""

    CLIP = "clip"
    LLAVA = "llava"


def demo_job(
    database: Database, overrides: Mapping[str, object], model: DemoModel = DemoModel.CLIP
) -> JobSpec:
    """The demo's job under the first name that is free: demo, demo-2, demo-3 and so on."""
    taken = {study.name for study in database.studies}
    with as_file(files("service.commands") / f"demo-{model}.yaml") as path:
        spec = load_job(path, overrides)
        names = (spec.study if n == 1 else f"{spec.study}-{n}" for n in count(1))
        name = next(name for name in names if name not in taken)
        return spec.model_copy(update={"study": name})


def show(study: Study, out: Path) -> None:
    """Prints the front, how uniform precisions compare, one configuration, and what is next."""
    trials = study.trials({TrialState.COMPLETE})
    names = trial_names(trials)
    baselines = [t for t in trials if names.get(t.number, FULL_NAME) != FULL_NAME]
    pruned = len(study.trials({TrialState.PRUNED}))
    early = f", and {pruned} that stopped early" if pruned else ""
    click.echo(f"\nThe front of {len(trials)} trials{early}:\n")
    click.echo(study.front())
    click.echo("\nUniform precision, and the best of the search in at most as many bytes:\n")
    best = {t.number: _best(study, t.values["nbytes"]) for t in baselines}
    click.echo(_comparison(baselines, best, names))
    shown = next((t for t in baselines if names[t.number] == SHOWN_BASELINE), None)
    chosen = None if shown is None else best[shown.number]
    if shown is not None and chosen is not None:
        size = size_text(shown.values["nbytes"])
        click.echo(f"\nThe best within the size of uniform 3 bits, {size}:\n")
        click.echo(chosen)
    click.echo("\nPictures:\n")
    for path in study.plot(out, trial=None if chosen is None else chosen.number):
        click.echo(f"  {path}")
    click.echo("\nWhat to try next:\n")
    url = file_url(out / "bitfront.db")
    for command in (f"best {study.name} --max-error 0.1", f"front {study.name} --format csv"):
        click.echo(f"  {command_line(command, url)}")
    click.echo(
        "\nFor a model of your own, 'init' asks for model, data and budget and writes a job file:\n"
    )
    click.echo("  bitfront init job.yaml\n  bitfront submit job.yaml")


def _best(study: Study, nbytes: float) -> FoundConfiguration | None:
    try:
        return study.best(max_nbytes=nbytes)
    except NothingFits:
        return None


def _comparison(
    baselines: Sequence[Trial],
    best: Mapping[int, FoundConfiguration | None],
    names: Mapping[int, str],
) -> str:
    header = ["uniform", "size", "error", "test error", "search", "size", "error", "test error"]
    rows = []
    for trial in sorted(baselines, key=lambda t: t.values["nbytes"]):
        answer = best[trial.number]
        found = ["-"] * 4
        if answer is not None:
            found = [
                f"trial {answer.number}",
                size_text(answer.values["nbytes"]),
                percent_text(answer.values["error"]),
                _percent(answer.test_values.get("error")),
            ]
        rows.append(
            [
                names[trial.number],
                size_text(trial.values["nbytes"]),
                percent_text(trial.values["error"]),
                _percent(trial.test_values.get("error")),
                *found,
            ]
        )
    return table(header, rows, left=(0,))


def _percent(share: float | None) -> str:
    return "-" if share is None else percent_text(share)

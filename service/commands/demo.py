"""The demonstration: the bundled model's job, and what it found beside uniform precisions."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from importlib.resources import as_file, files
from itertools import count
from pathlib import Path
from typing import Final

import click

from bitfront.job import load_job
from bitfront.spec import JobSpec
from bitfront.trial import Trial, TrialState
from bitfront.units import percent_text, size_text
from service.database_url import command_line, file_url
from service.views.choosing import best_answer, full_precision, shown_front
from service.views.describe import FULL_NAME, trial_names
from service.views.pictures import write_pictures
from service.views.render import best_text, front_table
from service.views.tables import table
from service.views.targets import deployable
from storage.records import Limits
from storage.store import Store

SHOWN_BASELINE: Final = "w3"


class DemoModel(StrEnum):
    """The bundled model that a demo searches."""

    CLIP = "clip"
    LLAVA = "llava"


def demo_job(
    store: Store, overrides: Mapping[str, object], model: DemoModel = DemoModel.CLIP
) -> JobSpec:
    """The demo's job under the first name that is free: demo, demo-2, demo-3 and so on."""
    taken = {summary.name for summary in store.studies()}
    with as_file(files("service.commands") / f"demo-{model}.yaml") as path:
        spec = load_job(path, overrides)
        names = (spec.study if n == 1 else f"{spec.study}-{n}" for n in count(1))
        name = next(name for name in names if name not in taken)
        return spec.model_copy(update={"study": name})


def show(store: Store, study: str, out: Path) -> None:
    """Prints the front, how uniform precisions compare, one configuration, and what is next."""
    trials = store.trials(study, {TrialState.COMPLETE})
    names = trial_names(trials)
    baselines = [t for t in trials if names.get(t.number, FULL_NAME) != FULL_NAME]
    pruned = len(store.trials(study, {TrialState.PRUNED}))
    early = f", and {pruned} that stopped early" if pruned else ""
    click.echo(f"\nThe front of {len(trials)} trials{early}:\n")
    click.echo(front_table(shown_front(store, study), names, full_precision(store, study)))
    click.echo("\nUniform precision, and the best of the search in at most as many bytes:\n")
    click.echo(_comparison(store, study, baselines, names))
    chosen = next((t for t in baselines if names[t.number] == SHOWN_BASELINE), None)
    if chosen is not None:
        nbytes = chosen.values["nbytes"]
        best = best_answer(store, study, Limits(max_nbytes=nbytes))
        if best is not None:
            click.echo(f"\nThe best within the size of uniform 3 bits, {size_text(nbytes)}:\n")
            targets = deployable(store, best.trial)
            click.echo(best_text(best, names, store.load_profile(study), targets))
    click.echo("\nPictures:\n")
    number = None if chosen is None else _best_number(store, study, chosen)
    for path in write_pictures(store, study, out, number):
        click.echo(f"  {path}")
    click.echo("\nWhat to try next:\n")
    url = file_url(out / "bitfront.db")
    for command in (f"best {study} --max-error 0.1", f"front {study} --format csv"):
        click.echo(f"  {command_line(command, url)}")
    click.echo(
        "\nFor a model of your own, write a job with your model and data (examples/open_clip.yaml, "
        "transformers.yaml and llava.yaml\nin the repository are whole ones), then:\n"
    )
    click.echo("  bitfront submit job.yaml")


def _best_number(store: Store, study: str, baseline: Trial) -> int | None:
    best = best_answer(store, study, Limits(max_nbytes=baseline.values["nbytes"]))
    return None if best is None else best.trial.number


def _comparison(
    store: Store, study: str, baselines: Sequence[Trial], names: Mapping[int, str]
) -> str:
    header = ["uniform", "size", "error", "test error", "search", "size", "error", "test error"]
    rows = []
    for trial in sorted(baselines, key=lambda t: t.values["nbytes"]):
        answer = best_answer(store, study, Limits(max_nbytes=trial.values["nbytes"]))
        found = ["-"] * 4
        if answer is not None:
            best = answer.trial
            found = [
                f"trial {best.number}",
                size_text(best.values["nbytes"]),
                percent_text(best.values["error"]),
                _percent(best.test_values.get("error")),
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

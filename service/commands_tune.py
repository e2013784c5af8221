"""The command that applies a recovery to one given plan: tune.

What a person types, and what they see::

    $ bitfront tune --study first --max-nbytes 200kB --steps 200 --out tuned
    trial 17 of study first
    tune ━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 200/200
    error on the selection split: 13.9 % quantized, 12.3 % tuned, 10.0 % in full precision
    181 kB, of which prompt 1024 B and adapter 2304 B

    $ bitfront classify photo.png --tuned tuned
"""

from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click

from bitfront.errors import SpecError
from bitfront.plan import ClassPosition, Configuration, Plan, Recovery, TeacherText
from service.deployment import database_option
from service.limits import limit_options

if TYPE_CHECKING:
    from bitfront.spec import JobSpec
    from bitfront.vlm import LayeredModel
    from objectives.evaluation import Evaluator

Command = TypeVar("Command", bound=Callable[..., object])

COUNT: Final = click.IntRange(0)

_HELP: Final = {
    "context_length": "Learnable context vectors; 0 for no prompt.",
    "class_position": "Where the class's name stands among them.",
    "class_specific": "A context for each class.",
    "reduction": "What the adapter's width is divided by; 0 for no adapter.",
    "adapter_bits": "Bits of the adapter.",
    "blend": "Share of the adapter's output.",
    "distillation": "Weight of the teacher beside the labels.",
    "teacher": "What the teacher reads.",
    "shots": "Tuning samples of each class; 0 for all.",
    "views": "Augmented views of each sample beside itself.",
    "steps": "Optimiser steps.",
}
_TYPES: Final[dict[str, click.ParamType[object] | type]] = {
    "class_position": click.Choice([position.value for position in ClassPosition]),
    "class_specific": bool,
    "adapter_bits": click.Choice([4, 6, 8, 16]),
    "blend": click.FloatRange(0, 1),
    "distillation": click.FloatRange(0),
    "teacher": click.Choice([teacher.value for teacher in TeacherText]),
    "steps": click.IntRange(1),
}


def recovery_options(command: Command) -> Command:
    """Adds an option for each setting of a recovery."""
    for field in reversed(fields(Recovery)):
        name = f"--{field.name.replace('_', '-')}"
        kind = _TYPES.get(field.name, COUNT)
        option = click.option(
            name, type=kind, default=_default(field.name), show_default=True, help=_HELP[field.name]
        )
        if kind is bool:
            option = click.option(name, is_flag=True, help=_HELP[field.name])
        command = option(command)
    return command


def _default(name: str) -> object:
    """What the search tries where a job says nothing; a person tunes longer than a trial."""
    chosen = {"distillation": 4.0, "reduction": 2, "steps": 200}
    value = chosen.get(name, getattr(Recovery(), name))
    return str(value) if isinstance(value, StrEnum) else value


@click.command()
@click.option("--study", help="A study, whose best trial within the limits is tuned.")
@click.option("--trial", type=click.IntRange(0), help="A trial of the study.")
@limit_options
@click.option(
    "--job",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A job's file, in place of a study; needs --plan.",
)
@click.option(
    "--plan", help="Of the job: a precision for all layers, such as w4a8, or a JSON file."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the tensors and their card.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is in the folder.")
@recovery_options
@database_option
def tune(
    study: str | None,
    trial: int | None,
    job: Path | None,
    plan: str | None,
    out: Path,
    overwrite: bool,
    url: str,
    **settings: object,
) -> None:
    """Win back what one given plan lost: train a prompt and an adapter for it.

    The plan is that of a study's trial, or one of your own with --job and --plan. A tuning that
    was ended goes on when the same command is given again.
    """
    from objectives.tuned import CARD

    names = {field.name for field in fields(Recovery)}
    values = {name: settings.pop(name) for name in names}
    recovery = Recovery(**values).canonical  # type: ignore[arg-type]  # click has checked them
    if (out / CARD).exists() and not overwrite:
        raise SpecError(f"{out} holds a tuned recovery already: give --overwrite, or another --out")
    if job is not None:
        if plan is None or study is not None:
            raise SpecError("--job needs --plan, such as --plan w4a8, and no --study")
        evaluator, chosen = _from_job(job, plan)
    else:
        if study is None or plan is not None:
            raise SpecError("say what to tune: --study NAME, or --job FILE with --plan PLAN")
        from service.commands_model import load_configuration

        evaluator, stored = load_configuration(url, study, trial, settings)  # type: ignore[arg-type]  # the limits
        chosen = stored.plan
    _tune(evaluator, Configuration(chosen, recovery), out)


def _from_job(path: Path, plan: str) -> "tuple[Evaluator, Plan]":
    from bitfront.job import load_job
    from objectives.evaluation import Evaluator

    spec = load_job(path, {})
    evaluator = Evaluator.from_spec(spec)
    return evaluator, _read_plan(plan, evaluator.model, spec)


def _read_plan(text: str, model: "LayeredModel", spec: "JobSpec") -> Plan:
    """A plan as a person gives it.

    Raises:
        SpecError: It is neither a precision nor a file that holds a plan.
    """
    import json

    from bitfront.precision import Precision
    from search.seeds import uniform_precision

    if not Path(text).is_file():
        wanted = Precision.parse(text)
        bits = wanted.weight_bits, wanted.activation_bits
        return Plan.of({x.name: uniform_precision(x, *bits, spec.space) for x in model.layers})
    try:
        return Plan.from_dict(json.loads(Path(text).read_text()))
    except (ValueError, AttributeError, TypeError) as error:
        raise SpecError(
            f"{text} holds no plan, which is a JSON object of layer names and precisions "
            f'such as "w4a8": {error}'
        ) from error


def _tune(evaluator: "Evaluator", configuration: Configuration, out: Path) -> None:
    """Trains in view of the person, and writes the folder."""
    import sys

    from objectives.recovery import advance
    from objectives.tuned import write_tuned
    from search.seeds import full_precision
    from service.progress import reporter_for
    from service.units import percent_text, size_text
    from workers.resident import package_versions

    assert configuration.recovery is not None
    steps = configuration.recovery.steps
    saved = evaluator.checkpoint(configuration, out / "checkpoint.safetensors")
    with reporter_for(sys.stderr) as reporter:
        training = evaluator.judge.begin(configuration)
        saved.resume(training)
        reporter.stage("tune", total=steps)
        reporter.advance(training.steps)
        advance(training, steps, saved, lambda _loss: reporter.advance())
    evaluator.judge.keep(configuration, training.stored())
    errors = {
        name: evaluator.evaluate(known).values["error"]
        for name, known in (
            ("full_precision", full_precision(evaluator.model.layers)),
            ("quantized", Configuration(configuration.plan)),
            ("tuned", configuration),
        )
    }
    card = write_tuned(out, evaluator, configuration, errors, package_versions())
    saved.remove()
    click.echo(
        f"error on the selection split: {percent_text(errors['quantized'])} quantized, "
        f"{percent_text(errors['tuned'])} tuned, "
        f"{percent_text(errors['full_precision'])} in full precision"
    )
    parts = [
        f"{part} {size_text(card.nbytes[part])}"
        for part in ("prompt", "adapter")
        if part in card.nbytes
    ]
    click.echo(f"{size_text(sum(card.nbytes.values()))}, of which {' and '.join(parts)}")


COMMANDS: Final = (tune,)

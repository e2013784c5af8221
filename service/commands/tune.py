"""The command that applies a recovery to one given plan: tune.

What a person types, and what they see::

    $ bitfront tune --study demo --max-nbytes 162kB --steps 400 --out tuned
    trial 36 of study demo
    tune ━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 400/400
    error on the selection split: 16.8 % quantized, 15.4 % tuned, 8.6 % in full precision
    161 kB, of which prompt 1.02 kB and adapter 1.27 kB

    $ bitfront classify photo.png --tuned tuned
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import click

from bitfront.errors import SpecError
from bitfront.plan import ClassPosition, Configuration, Plan, Recovery, TeacherText
from service.commands.deployment import database_option
from service.commands.limits import limit_options

if TYPE_CHECKING:
    from bitfront.spec import JobSpec
    from bitfront.vlm import LayeredModel
    from objectives.evaluation.evaluator import Evaluator

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
    "learning_rate_multiplier": "What the learning rates are multiplied with.",
}
_TYPES: Final[dict[str, click.ParamType[object] | type]] = {
    "class_position": click.Choice([position.value for position in ClassPosition]),
    "class_specific": bool,
    "adapter_bits": click.Choice([4, 6, 8, 16]),
    "blend": click.FloatRange(0, 1),
    "distillation": click.FloatRange(0),
    "teacher": click.Choice([teacher.value for teacher in TeacherText]),
    "steps": click.IntRange(1),
    "learning_rate_multiplier": click.FloatRange(0, min_open=True),
}


# A person tunes longer than a trial does.
STEPS: Final = 200
_USUAL: Final = Recovery(context_length=8, reduction=2, distillation=4.0, steps=STEPS)


def recovery_options(command: Command) -> Command:
    """Adds an option for each setting of a recovery; None where it is not given."""
    for field in reversed(fields(Recovery)):
        name = f"--{field.name.replace('_', '-')}"
        kind = _TYPES.get(field.name, COUNT)
        if kind is bool:
            name = f"{name}/--no-{name.removeprefix('--')}"
        shown = f"{_HELP[field.name]}  [default: {_shown_default(field.name)}]"
        command = click.option(name, type=kind, default=None, help=shown)(command)
    return command


def _shown_default(name: str) -> str:
    if name == "steps":
        return str(STEPS)
    usual = getattr(_USUAL, name)
    return f"the trial's, or {'no' if usual is False else usual}"


def _chosen(stored: Recovery | None, given: Mapping[str, object]) -> Recovery:
    """The settings: those given, else the trial's own, else the usual ones; never its steps."""
    base = _USUAL if stored is None else replace(stored, steps=STEPS)
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(base, **changes).canonical  # type: ignore[arg-type]  # click has checked them


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
@click.option(
    "--keep-worse",
    is_flag=True,
    help="Keep a recovery even where the plan does no worse without it.",
)
@recovery_options
@database_option
def tune(
    study: str | None,
    trial: int | None,
    job: Path | None,
    plan: str | None,
    out: Path,
    overwrite: bool,
    keep_worse: bool,
    url: str,
    **settings: object,
) -> None:
    """Win back what one given plan lost: train a prompt and an adapter for it.

    The plan is that of a study's trial, or one of your own with --job and --plan. A tuning that
    was ended goes on when the same command is given again.
    """
    from objectives.evaluation.tuned import CARD

    given = {field.name: settings.pop(field.name) for field in fields(Recovery)}
    limits = cast("dict[str, float | None]", settings)
    if (out / CARD).exists() and not overwrite:
        raise SpecError(f"{out} holds a tuned recovery already: give --overwrite, or another --out")
    if job is not None:
        if plan is None or study is not None:
            raise SpecError("--job needs --plan, such as --plan w4a8, and no --study")
        evaluator, chosen = _from_job(job, plan)
        configuration = Configuration(chosen, _chosen(None, given))
    else:
        if study is None or plan is not None:
            raise SpecError("say what to tune: --study NAME, or --job FILE with --plan PLAN")
        from service.commands.model import load_configuration
        from workers.process.model_cache import feature_folder

        evaluator, stored = load_configuration(url, study, trial, limits, feature_folder())
        configuration = Configuration(stored.plan, _chosen(stored.recovery, given))
    _refuse_larger(evaluator, configuration, limits["max_nbytes"])
    _tune(evaluator, configuration, out, keep_worse=keep_worse)


def _refuse_larger(
    evaluator: "Evaluator", configuration: Configuration, limit: float | None
) -> None:
    """Refuses a recovery that takes its plan above the size that was asked for."""
    from bitfront.units import size_text

    nbytes = sum(evaluator.nbytes(configuration).values())
    if limit is not None and nbytes > limit:
        raise SpecError(
            f"with this recovery the plan takes {size_text(nbytes)} ({nbytes:,} bytes), above "
            f"--max-nbytes {limit:,.0f}: give a larger --reduction, a smaller --context-length or "
            "fewer --adapter-bits, or name a smaller plan with --trial"
        )


def _from_job(path: Path, plan: str) -> "tuple[Evaluator, Plan]":
    from bitfront.job import load_job
    from objectives.evaluation.evaluator import Evaluator
    from workers.process.model_cache import feature_folder

    spec = load_job(path, {})
    evaluator = Evaluator.from_spec(spec, features=feature_folder())
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


def _tune(
    evaluator: "Evaluator", configuration: Configuration, out: Path, *, keep_worse: bool
) -> None:
    """Trains in view of the person, and writes the folder if that helped."""
    import sys

    from objectives.evaluation.tuned import write_tuned
    from objectives.recovery.checkpointed_training import advance
    from search.seeds import full_precision
    from service.views.progress import reporter_for
    from workers.process.model_cache import package_versions

    assert configuration.recovery is not None
    steps = configuration.recovery.steps
    saved = evaluator.checkpoint(configuration, out / "checkpoint.safetensors")
    with reporter_for(sys.stderr) as reporter:
        training = evaluator.scorer.begin(configuration)
        saved.resume(training)
        reporter.stage("tune", total=steps)
        reporter.advance(training.steps)
        advance(training, steps, saved, lambda _loss: reporter.advance())
    evaluator.scorer.keep(configuration, training.stored())
    errors = {
        name: evaluator.evaluate(known).values["error"]
        for name, known in (
            ("full_precision", full_precision(evaluator.model.layers)),
            ("quantized", Configuration(configuration.plan)),
            ("tuned", configuration),
        )
    }
    click.echo(errors_line(errors))
    if errors["tuned"] >= errors["quantized"] and not keep_worse:
        # With --keep-worse the same command has nothing left to train.
        saved.save(training)
        raise click.ClickException(refused_recovery(errors))
    card = write_tuned(out, evaluator, configuration, errors, package_versions())
    saved.remove()
    click.echo(size_line(card.nbytes))


def errors_line(errors: Mapping[str, float]) -> str:
    """How a plan does without recovery, with it, and in full precision."""
    from bitfront.units import percent_text

    return (
        f"error on the selection split: {percent_text(errors['quantized'])} quantized, "
        f"{percent_text(errors['tuned'])} tuned, "
        f"{percent_text(errors['full_precision'])} in full precision"
    )


def refused_recovery(errors: Mapping[str, float]) -> str:
    """Says that a recovery does not help, and is not kept."""
    from bitfront.units import percent_text

    return (
        f"this recovery does not help: the error on the selection split is "
        f"{percent_text(errors['quantized'])} without it and {percent_text(errors['tuned'])} "
        "with it, so it is not kept: try other settings, or give --keep-worse"
    )


def size_line(nbytes: Mapping[str, int]) -> str:
    """What a plan takes with its recovery, and what that takes of it."""
    from bitfront.units import size_text

    parts = [
        f"{part} {size_text(nbytes[part])}" for part in ("prompt", "adapter") if part in nbytes
    ]
    return f"{size_text(sum(nbytes.values()))}, of which {' and '.join(parts)}"


COMMANDS: Final = (tune,)

"""The command that applies a recovery to one given plan: tune.

What a person types, and what they see::

    $ bitfront tune demo --max-nbytes 162kB --steps 400 --out tuned
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
from service.commands.deployment import StudyName, address_option, database_option, workers_option
from service.commands.limits import limit_options
from service.commands.messages import tell
from service.commands.model import find_configuration
from service.commands.tune_samples import Search, search_recovery
from service.views.tuning import errors_line, refused_recovery, size_line

if TYPE_CHECKING:
    from bitfront.spec import JobSpec
    from bitfront.vlm import LayeredModel
    from objectives.evaluation.evaluator import Evaluator
    from service.api.limits import LimitOptions

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
USUAL: Final = Recovery(context_length=8, reduction=2, distillation=4.0, steps=STEPS)


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
    usual = getattr(USUAL, name)
    return f"the trial's, or {'no' if usual is False else usual}"


def _chosen(stored: Recovery | None, given: Mapping[str, object]) -> Recovery:
    """The settings: those given, else the trial's own, else the usual ones; never its steps."""
    base = USUAL if stored is None else replace(stored, steps=STEPS)
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(base, **changes).canonical  # type: ignore[arg-type]  # click has checked them


@click.command()
@click.argument("study", type=StudyName(), required=False)
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
    "--samples",
    type=click.IntRange(1),
    help="Search the settings that are not given, with so many recoveries.",
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
@workers_option
@address_option
@database_option
def tune(
    study: str | None,
    trial: int | None,
    job: Path | None,
    plan: str | None,
    samples: int | None,
    out: Path,
    overwrite: bool,
    keep_worse: bool,
    workers: int | None,
    address: str | None,
    url: str,
    **settings: object,
) -> None:
    """Win back what one given plan lost: train a prompt and an adapter for it.

    The plan is that of STUDY's best trial within the limits, or of its --trial, or one of your own
    with --job and --plan. With --samples the settings that are not given are searched: each sample
    is a recovery, the worse ones stop early, and the best one is kept. A tuning that was ended
    resumes when the same command is given again.
    """
    from objectives.evaluation.tuned import CARD

    given = {field.name: settings.pop(field.name) for field in fields(Recovery)}
    limits = cast("LimitOptions", settings)
    most_nbytes = cast("int | None", settings["max_nbytes"])
    if (out / CARD).exists() and not overwrite:
        raise SpecError(f"{out} holds a tuned recovery already: give --overwrite, or another --out")
    if job is not None:
        if plan is None or study is not None:
            raise SpecError("--job needs --plan, such as --plan w4a8, and no study")
        if samples is not None:
            raise SpecError(
                "--samples needs a study, whose database keeps what they show: submit the job first"
            )
        evaluator, chosen = _from_job(job, plan)
        configuration = Configuration(chosen, _chosen(None, given))
    else:
        if study is None or plan is not None:
            raise SpecError("say what to tune: a study, or --job FILE with --plan PLAN")
        found = find_configuration(url, study, trial, limits)
        tell(f"trial {found.trial.number} of study {study}")
        stored = found.trial.configuration
        configuration = Configuration(stored.plan, _chosen(stored.recovery, given))
        if samples is not None:
            fixed = {name for name, value in given.items() if value is not None} - {"steps"}
            searched = Search(url, samples, frozenset(fixed), workers, address)
            search_recovery(found, configuration, searched, most_nbytes, out, keep_worse=keep_worse)
            return
        from service.study.stored_configuration import load_evaluator
        from workers.process.cache_folder import feature_folder

        evaluator = load_evaluator(found.study, found.bounds, feature_folder())
    _refuse_larger(evaluator, configuration, most_nbytes)
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
    from workers.process.cache_folder import feature_folder

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

    from bitfront.files import write_whole
    from objectives.data.split_name import SplitName
    from objectives.evaluation.tuned import recovery_errors, tuned_files
    from objectives.recovery.checkpointed_training import advance
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
    errors = recovery_errors(evaluator, configuration, SplitName.SELECTION)
    click.echo(errors_line(errors))
    if errors["tuned"] >= errors["quantized"] and not keep_worse:
        # With --keep-worse the same command has nothing left to train.
        saved.save(training)
        raise click.ClickException(refused_recovery(errors))
    files = tuned_files(evaluator, configuration, errors, package_versions())
    for name, content in files.items():
        write_whole(out / name, content)
    saved.remove()
    click.echo(size_line(evaluator.nbytes(configuration)))


COMMANDS: Final = (tune,)

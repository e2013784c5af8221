"""The command that applies a recovery to one given plan: tune.

What a person types, and what they see::

    $ bitfront tune demo --max-nbytes 162kB --steps 400 --out tuned
    trial 36 of study demo
    tune ━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 400/400
    error on the selection split: 16.8 % quantized, 15.4 % tuned, 8.6 % in full precision
    161 kB, of which prompt 1.02 kB and adapter 1.27 kB

    $ bitfront classify photo.png --tuned tuned

    $ bitfront tune demo --max-nbytes 165kB --samples 16 --out tuned
    trial 36 of study demo
    samples ━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 16/16
    sample   error  step     size  state          settings
         9  13.9 %   200   162 kB  complete       adapter /1 in 8 bits, blend 0.5, ...
         0  15.4 %   200   161 kB  complete       prompt 8, class end, adapter /2 in 8 bits, ...
         4  17.0 %    23   161 kB  stopped early  prompt 4, class front, ...
    error on the selection split: 16.8 % quantized, 13.9 % tuned, 8.6 % in full precision
    error on the test split: 17.5 % quantized, 14.8 % tuned, 9.0 % in full precision
    162 kB, of which adapter 4.36 kB
"""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import click

from bitfront.errors import Interrupted, SpecError
from bitfront.plan import ClassPosition, Recovery, TeacherText
from service.api.tuning import STEPS, USUAL
from service.commands.deployment import StudyName, address_option, database_option, workers_option
from service.commands.limits import limit_options
from service.commands.model import found_configuration
from service.views.tuning import errors_line, refused_recovery, samples_table, size_line

if TYPE_CHECKING:
    from service.api.limits import LimitOptions
    from service.api.tuning import Tuned

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
    from service.api.tuning import refuse_full_folder, tune_plan

    names = [field.name for field in fields(Recovery)]
    given = {name: value for name in names if (value := settings.pop(name)) is not None}
    limits = cast("LimitOptions", settings)
    most = cast("int | None", settings["max_nbytes"])
    refuse_full_folder(out, overwrite=overwrite)
    if job is not None:
        if plan is None or study is not None:
            raise SpecError("--job needs --plan, such as --plan w4a8, and no study")
        if samples is not None:
            raise SpecError(
                "--samples needs a study, whose database keeps what they show: submit the job first"
            )
        _show(tune_plan(job, plan, out, given, max_nbytes=most, keep_worse=keep_worse))
        return
    if study is None or plan is not None:
        raise SpecError("say what to tune: a study, or --job FILE with --plan PLAN")
    try:
        with found_configuration(url, study, trial, limits) as found:
            tuned = found.tune(
                out,
                samples=samples,
                max_nbytes=most,
                keep_worse=keep_worse,
                overwrite=overwrite,
                workers=workers,
                address=address,
                **given,
            )
    except Interrupted as error:
        raise click.ClickException(
            "the tuning was told to end; the same command resumes it"
        ) from error
    _show(tuned)


def _show(tuned: "Tuned") -> None:
    """Prints what came out; a recovery that was not kept ends the command."""
    if tuned.samples:
        click.echo(samples_table(tuned.samples.values()))
    click.echo(errors_line(tuned.selection_error))
    if tuned.test_error:
        click.echo(errors_line(tuned.test_error, "test"))
    if tuned.folder is None:
        raise click.ClickException(refused_recovery(tuned.selection_error))
    click.echo(size_line(tuned.nbytes))


COMMANDS: Final = (tune,)

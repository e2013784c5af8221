"""Commands that bring a configuration out of the database: build, artefacts, targets."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack, cast

import click

from service.commands.deployment import StudyName, database_option
from service.commands.formats import TEXT_OR_JSON
from service.commands.limits import limit_options
from service.commands.messages import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bitfront.spec import JobSpec
    from bitfront.trial import Trial
    from service.api.limits import LimitOptions
    from service.study.build import Built


@click.command()
@click.argument("study", type=StudyName())
@click.option(
    "--trial", type=click.IntRange(0), help="A trial.  [default: the best within the limits]"
)
@limit_options
@click.option(
    "--to",
    "target",
    type=click.Choice(["packed", "onnx", "openvino", "compressed-tensors", "gguf"]),
    default="packed",
    show_default=True,
    help="What to build: packed is a checkpoint with its own loader, for torch; onnx is models "
    "for ONNX Runtime, openvino the same for OpenVINO, "
    "compressed-tensors a checkpoint of transformers, gguf files for llama.cpp. 'bitfront targets' "
    "says more.",
)
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    default="4",
    show_default=True,
    help="Of onnx: 4 lets the runtime round inputs to 8 bits where the trial did not, which is "
    "fast; 0 does not.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder to make; it must not be there.",
)
@click.option(
    "--reference/--no-reference",
    default=True,
    show_default=True,
    help="Time the model at full precision too, in turns with what is built: it is written for the "
    "same target, loaded in each number format of the runtime, and removed, which takes as much "
    "disk, memory and time as that model does.",
)
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def build(
    study: str,
    trial: int | None,
    target: str,
    accuracy_level: str,
    out: Path,
    reference: bool,
    form: str,
    url: str,
    **limits: Unpack["LimitOptions"],
) -> None:
    """Build the best configuration of STUDY under limits into a model that runs without bitfront.

    It is verified before it gets its name: it is loaded in a process of its own, and its outputs,
    its error, its size, its memory and its speed are measured there.
    """
    from service.api.database import open_database
    from service.study.build import read_example

    with open_database(url) as database:
        known = database.study(study)
        found = known.best(**limits) if trial is None else known.trial(trial)
        built = found.build(
            out,
            to=target,
            accuracy_level=int(accuracy_level),
            reference=reference,
            on_start=lambda: tell(f"trial {found.number} of study {study}"),
        )
    if form == "json":
        click.echo(json.dumps({"folder": str(out), "trial": found.number, **built.card}))
        return
    predicted = _predicted(known.spec, found.trial, target)
    click.echo(_report(out, found.trial, built, target, predicted))
    requires = ", ".join(map(str, cast("list[str]", built.card["requires"])))
    click.echo(f"\nIt needs {requires}. Use it as {out / 'example.py'} does:\n")
    click.echo(read_example(out))


def _predicted(spec: "JobSpec", trial: "Trial", target: str) -> list[str]:
    """The times that the search expected in this target, in words."""
    from bitfront.targets import target_of

    if spec.timed_in is not target_of(target).name:
        return []
    size, values = spec.data.batch_size, trial.values
    found = []
    if "latency_s" in values:
        found.append(f"{1000 * size * values['latency_s']:.3g} ms at batch {size}")
    if "token_s" in values:
        found.append(f"{1000 * values['token_s']:.3g} ms a token at batch 1")
    return found


def _report(
    out: Path, trial: "Trial", built: "Built", target: str, predicted: "Sequence[str]"
) -> str:
    from bitfront.units import size_text
    from service.views.speed import speed_pairs
    from service.views.tables import pairs_text

    found = built.verification
    error = (
        f"{100 * found.error:.2f} % of {found.samples} samples "
        f"({100 * found.error_low:.2f} to {100 * found.error_high:.2f} %), "
        f"measured {100 * trial.values['error']:.2f} %"
    )
    outputs = (
        f"differ by {found.largest_difference:.2g} at most, {found.mean_difference:.2g} in the "
        f"mean; {100 * found.same_predictions:.1f} % of the predictions are the same"
    )
    size = (
        f"{size_text(found.tensors_nbytes)} of the trial's tensors, as promised to the byte; "
        f"{size_text(found.files_nbytes)} with all files"
    )
    pairs = [
        ("size", size),
        ("outputs", outputs),
        ("error", error),
        ("memory", f"{size_text(found.resident_nbytes)} when loaded"),
        *speed_pairs(found.to_dict(), target),
    ]
    if predicted:
        pairs.append(("predicted", ", ".join(predicted)))
    changes = cast("list[str]", built.card.get("changes", []))
    pairs += [("changed", sentence) for sentence in changes]
    return f"{out} is built, and verified in a process without bitfront:\n{pairs_text(pairs)}"


@click.command()
@click.argument("study", type=StudyName())
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@database_option
def artefacts(study: str, form: str, url: str) -> None:
    """List what was built from STUDY, and whether it is still whole."""
    from bitfront.units import size_text
    from service.api.database import open_database
    from service.study.build import artefact_state
    from service.views.speed import speed_cell, time_cell
    from service.views.tables import table

    with open_database(url) as database:
        records = database.study(study).artefacts
    states = [artefact_state(record) for record in records]
    if form == "json":
        for record, state in zip(records, states, strict=True):
            content = {
                "trial": record.trial,
                "target": record.target,
                "path": record.path,
                "nbytes": record.nbytes,
                "files": dict(record.files),
                "verification": dict(record.verification),
                "state": state,
            }
            click.echo(json.dumps(content))
        return
    if not records:
        tell(
            f"nothing was built from study {study} yet: 'bitfront build {study} --out FOLDER' does"
        )
        return
    rows = [
        [
            str(record.trial),
            record.target,
            size_text(record.nbytes),
            f"{100 * float(str(record.verification['error'])):.2f} %",
            time_cell(record.verification),
            speed_cell(record.verification),
            state,
            record.path,
        ]
        for record, state in zip(records, states, strict=True)
    ]
    header = ["trial", "target", "size", "error", "latency", "speed", "state", "folder"]
    click.echo(table(header, rows, left=(1, 6, 7)))


@click.command()
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
def targets(form: str) -> None:
    """Say which runtimes a configuration can be built for, and what each has kernels for."""
    from bitfront.targets import TARGETS
    from service.views.targets import target_dict, targets_text

    if form == "json":
        for target in TARGETS:
            click.echo(json.dumps(target_dict(target)))
    else:
        click.echo(targets_text(TARGETS))


COMMANDS: Final = (build, artefacts, targets)

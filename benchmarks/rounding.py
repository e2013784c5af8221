"""Uniform precisions at equal bytes: each rounding method against the nearest codes, and distilled.

python -m benchmarks.rounding --model digit-clip
python -m benchmarks.rounding --model digit-clip --methods "descent;distil" --precisions w2a8,w4a4
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import click
import torch
from scipy.stats import t

from benchmarks.three_models import MODELS, prepare, sections
from bitfront.plan import Configuration, Distillation, Plan
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator

PRECISIONS = ("w2a8", "w2a8g32", "w2a8g64", "w3a8", "w4a4", "w4a8")
METHODS: dict[str, dict[str, str]] = {
    "nearest": {"rounding": "nearest"},
    "nearest, searched ranges": {"rounding": "nearest", "ranges": "searched"},
    "gptq": {"rounding": "gptq"},
    "gptq, own": {"rounding": "gptq", "target": "own"},
    "descent": {"rounding": "descent"},
    "descent, own": {"rounding": "descent", "target": "own"},
    "descent, output": {"rounding": "descent", "target": "output"},
    "descent, residual": {"rounding": "descent", "target": "residual"},
}
DISTILLED = {
    "distil": Distillation(),
    "distil, codes": Distillation(codes=True),
    "distil, half": Distillation(share=0.5),
}
"""Trained on top of the default rounding."""


PICTURES = 110
"""Of each class of the third model, for all splits together."""


def job(
    model: str, method: str, seed: int, test: int, folder: Path, calibration: int = 128
) -> JobSpec:
    """A job with fresh scenes or questions, or another split of the pictures, by the seed."""
    samples = {"calibration": calibration, "test": test}
    return JobSpec.model_validate(
        {
            "study": "rounding",
            **sections(model, folder, samples, seed),
            "quantizer": METHODS.get(method, {}),
        }
    )


def accuracies(
    spec: JobSpec,
    precisions: Sequence[str],
    distil: Distillation | None = None,
    split: SplitName = SplitName.TEST,
) -> dict[str, tuple[float, float]]:
    """The accuracy of each precision, and the processor seconds that its weights took."""
    gc.collect()  # the evaluator before this one
    evaluator = Evaluator.from_spec(spec)
    names = [layer.name for layer in evaluator.model.layers]
    found = {}
    for text in precisions:
        plan = replace(Plan.uniform(names, Precision.parse(text)), distil=distil)
        started_s = time.process_time()
        evaluator.switch.to(plan)
        seconds = time.process_time() - started_s
        error = evaluator.evaluate(Configuration(plan), split=split).values["error"]
        found[text] = (1 - error, seconds)
    return found


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="digit-clip")
@click.option("--seeds", default="10,11,12,13,14")
@click.option("--test", default=4000)
@click.option("--calibration", default=128, help="Calibration samples.")
@click.option(
    "--methods", default=";".join([*METHODS, *DISTILLED]), help="Separated by semicolons."
)
@click.option("--precisions", default=",".join(PRECISIONS))
@click.option("--out", type=click.Path(path_type=Path))
def main(
    model: str,
    seeds: str,
    test: int,
    calibration: int,
    methods: str,
    precisions: str,
    out: Path | None,
) -> None:
    """Prints a table: mean accuracy in per cent with its 95 % interval over seeds, and seconds."""
    torch.set_num_threads(1)
    chosen, wanted = methods.split(";"), precisions.split(",")
    measured: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in chosen}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(model, folder, PICTURES)
        for seed in seeds.split(","):
            for name in chosen:
                spec = job(model, name, int(seed), test, folder, calibration)
                measured[name].append(accuracies(spec, wanted, DISTILLED.get(name)))
                click.echo(f"seed {seed}, {name}: {measured[name][-1]}", err=True)
            if out is not None:
                out.write_text(_table(measured, wanted) + "\n")
    click.echo(_table(measured, wanted))


def _table(measured: dict[str, list[dict[str, tuple[float, float]]]], wanted: list[str]) -> str:
    lines = ["| precision | " + " | ".join(measured) + " |", "|---" * (len(measured) + 1) + "|"]
    for text in wanted:
        cells = [_cell([run[text] for run in runs]) for runs in measured.values()]
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(runs: list[tuple[float, float]]) -> str:
    values = [100 * accuracy for accuracy, _ in runs]
    half = 0.0
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.1f} ± {half:.1f} ({mean(seconds for _, seconds in runs):.2f} s)"


if __name__ == "__main__":
    main()

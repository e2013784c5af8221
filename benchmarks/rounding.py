"""Uniform precisions at equal bytes: each rounding method against the nearest codes.

python -m benchmarks.rounding --model clip
"""

import gc
import time
from pathlib import Path
from statistics import mean, stdev

import click
import torch
from scipy.stats import t

from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.spec import JobSpec, Rounding
from objectives.data.task import SplitName
from objectives.evaluation.evaluator import Evaluator

PRECISIONS = ("w2a8", "w2a8g32", "w2a8g64", "w3a8", "w4a4", "w4a8")
NAMES = {"clip": "digit-clip", "llava": "digit-llava"}


def job(model: str, rounding: Rounding, seed: int, test: int) -> JobSpec:
    """A job with fresh scenes or questions: the seed says which."""
    return JobSpec.model_validate(
        {
            "study": "rounding",
            "model": {"source": "reference", "name": NAMES[model]},
            "data": {"source": "reference", "seed": seed, "samples": {"test": test}},
            "quantizer": {"rounding": rounding},
        }
    )


def accuracies(spec: JobSpec) -> dict[str, tuple[float, float]]:
    """The test accuracy of each precision, and the seconds that its weights took."""
    gc.collect()  # the evaluator before this one
    evaluator = Evaluator.from_spec(spec)
    names = [layer.name for layer in evaluator.model.layers]
    found = {}
    for text in PRECISIONS:
        plan = Plan.uniform(names, Precision.parse(text))
        started_s = time.perf_counter()
        evaluator.switch.to(plan)
        seconds = time.perf_counter() - started_s
        error = evaluator.evaluate(Configuration(plan), split=SplitName.TEST).values["error"]
        found[text] = (1 - error, seconds)
    return found


@click.command()
@click.option("--model", type=click.Choice([*NAMES]), default="clip")
@click.option("--seeds", default="10,11,12,13,14")
@click.option("--test", default=4000)
@click.option("--out", type=click.Path(path_type=Path))
def main(model: str, seeds: str, test: int, out: Path | None) -> None:
    """Prints a table: mean accuracy in per cent with its 95 % interval over seeds, and seconds."""
    torch.set_num_threads(1)
    measured: dict[Rounding, list[dict[str, tuple[float, float]]]] = {r: [] for r in Rounding}
    for seed in seeds.split(","):
        for rounding in Rounding:
            measured[rounding].append(accuracies(job(model, rounding, int(seed), test)))
            click.echo(f"seed {seed}, {rounding.value}: {measured[rounding][-1]}", err=True)
    lines = ["| precision | " + " | ".join(r.value for r in Rounding) + " |", "|---|---|---|---|"]
    for text in PRECISIONS:
        cells = [_cell([run[text] for run in measured[rounding]]) for rounding in Rounding]
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    click.echo(table)
    if out is not None:
        out.write_text(table + "\n")


def _cell(runs: list[tuple[float, float]]) -> str:
    values = [100 * accuracy for accuracy, _ in runs]
    half = 0.0
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.1f} ± {half:.1f} ({mean(seconds for _, seconds in runs):.2f} s)"


if __name__ == "__main__":
    main()

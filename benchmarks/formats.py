"""Number formats of weights at their bytes: what they lose of weights, and of answers.

    OMP_NUM_THREADS=1 python -m benchmarks.formats --model digit-clip

Every layer has one format; inputs stay in 16 bits. `nearest` gives each weight the nearest level,
with searched scales; `calibrated` is the default rounding, on calibration samples of the same seed.
The relative error is `|Q - W|^2 / |W|^2` over all weights that have codes. The test samples, and
the calibration samples, are drawn from the seed.
"""

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Final

import click
import torch

from benchmarks import shapes
from benchmarks.p4q import interval
from benchmarks.three_models import MODELS, prepare, sections
from bitfront.plan import Configuration, Plan
from bitfront.precision import weight_precision
from bitfront.spec import JobSpec
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from search.seeds import uniform_plans

FORMATS: Final = (
    "float16",
    "int8",
    "fp8_e4m3",
    "fp8_e5m2",
    "mxfp8_e4m3",
    "mxfp8_e5m2",
    "int6-g32",
    "mxfp6_e2m3",
    "mxfp6_e3m2",
    "int4",
    "int4-g128",
    "int4-g32",
    "int4-g16",
    "mxfp4",
    "nvfp4",
    "nf4",
    "nf4-g32",
    "nf4-g16",
)
METHODS: Final = {"nearest": "nearest", "calibrated": "auto"}
SCHEMES: Final = ("symmetric", "asymmetric")


@dataclass(frozen=True)
class Figures:
    """What one format brought with one seed.

    Attributes:
        nbytes: Of the packed checkpoint.
        error: The relative squared error of the weights.
        accuracy: In per cent of the test samples.
        divergence: From full precision, in nats a sample.
    """

    nbytes: int
    error: float
    accuracy: float
    divergence: float


def job(model: str, scheme: str, rounding: str, seed: int, test: int, folder: Path) -> JobSpec:
    """The job of a model with fresh samples, and every format in its space."""
    samples = {"calibration": 128, "tuning": 4, "selection": 64, "test": test}
    return JobSpec.model_validate(
        {
            "study": "formats",
            **sections(model, folder, samples, seed),
            "quantizer": {"scheme": scheme, "rounding": rounding},
            "space": {"formats": list(FORMATS), "activation_bits": [16]},
        }
    )


def measure(spec: JobSpec) -> dict[str, Figures]:
    """Every format of a job's space that its integers' scheme matters to, or any other."""
    gc.collect()  # the evaluator before this one
    evaluator = Evaluator.from_spec(spec)
    model = evaluator.model
    weights = {layer.name: model.weight(layer.name).double().flatten(1) for layer in model.layers}
    found = {}
    for name in FORMATS:
        wanted = weight_precision(name)
        is_integer = wanted.quantizes_weight and not wanted.format
        if spec.quantizer.scheme == "asymmetric" and not is_integer:
            continue
        (plan,) = uniform_plans(
            model.layers, spec.space.model_copy(update={"formats": (name,)}), spec.quantizer
        )
        wrong = total = 0.0
        evaluator.switch.to(plan)
        for layer, weight in weights.items():
            module = model.modules(layer)[0]
            now = module.get_parameter("weight").double().flatten(1)
            wrong += float((now - weight).square().sum())
            total += float(weight.square().sum())
        evaluator.switch.to(Plan.of({}))
        configuration = Configuration(plan)
        values = evaluator.evaluate(configuration, split=SplitName.TEST).metrics
        nbytes = sum(evaluator.nbytes(configuration).values())
        accuracy = 100 * (1 - values["error"])
        found[name] = Figures(nbytes, wrong / total, accuracy, values["divergence"])
    return found


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="digit-clip")
@click.option("--seeds", default="30,31,32,33,34")
@click.option("--test", default=4000)
def main(model: str, seeds: str, test: int) -> None:
    """Prints a table: means over the seeds with 95 % intervals."""
    torch.set_num_threads(1)
    runs: dict[tuple[str, str], dict[str, list[Figures]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(model, folder, -(-(test + 200) // len(shapes.CLASSES)), seed=1, steps=1500)
        for seed in map(int, seeds.split(",")):
            for scheme in SCHEMES:
                for method, rounding in METHODS.items():
                    spec = job(model, scheme, rounding, seed, test, folder)
                    for format_name, figures in measure(spec).items():
                        own = runs.setdefault((format_name, scheme), {})
                        own.setdefault(method, []).append(figures)
            click.echo(f"seed {seed} is done", err=True)
    click.echo(f"{model}, seeds {seeds}, {test} test samples\n")
    click.echo(_table(runs))


def _table(runs: dict[tuple[str, str], dict[str, list[Figures]]]) -> str:
    lines = [
        "| format | bytes | relative error | nearest: accuracy | divergence "
        "| calibrated: accuracy | divergence |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, scheme), methods in runs.items():
        near = methods["nearest"]
        title = f"{name}, zero points" if scheme == "asymmetric" else name
        cells = [title, f"{near[0].nbytes:,}", f"{mean(one.error for one in near):.5f}"]
        cells += [cell for own in methods.values() for cell in _cells(own)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(own: Sequence[Figures]) -> list[str]:
    nats = [1000 * one.divergence for one in own]
    return [interval([one.accuracy for one in own]), interval(nats)]


if __name__ == "__main__":
    main()

"""The program's front with nearest codes and with the default rounding, on held-out samples.

OMP_NUM_THREADS=1 python -m benchmarks.front --model digit-clip --seeds 10,11,12,13,14
"""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch

from benchmarks.in_process import profile
from benchmarks.p4q import interval
from benchmarks.rounding import PICTURES
from benchmarks.three_models import MODELS, prepare, sections
from benchmarks.trial_time import WAYS
from bitfront.plan import Configuration, Plan
from bitfront.profile import Profile, Resource
from bitfront.spec import JobSpec
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from search.front import hypervolume
from search.knapsack_items import by_block
from search.options import undominated
from search.program import Program
from workers.process import model_cache

BITS = (2.25, 2.5, 3.0, 4.0)


def job(model: str, rounding: str, seed: int, test: int, folder: Path) -> JobSpec:
    """A job with fresh samples, whose blocks are single layers."""
    return JobSpec.model_validate(
        {
            "study": "front",
            **sections(model, folder, {"test": test}, seed),
            "quantizer": {"rounding": rounding},
            "space": {"weight_bits": [2, 3, 4, 6, 8], "activation_bits": [8]},
            "partition": {"granularity": "layer"},
        }
    )


def plans(measured: Profile) -> dict[float, Plan]:
    """The program's best plan within each mean width of a weight."""
    cells = {name: undominated(found) for name, found in by_block(measured.cells).items()}
    program = Program.of(cells, Resource.WEIGHT_BITS)
    weights = sum(layer.weights for layer in measured.layers)
    blocks = {block.name: block for block in measured.blocks}
    found = {}
    for bits in BITS:
        choice = program.solve(int(bits * weights)).choice
        found[bits] = Plan.from_options(
            (blocks[name], cell.option) for name, cell in choice.items()
        )
    return found


def measure(spec: JobSpec) -> tuple[dict[float, float], float]:
    """The accuracy of each plan in per cent of the test split, and their hypervolume.

    The volume is a share of the box from 0 to (error 1, bytes in full precision).
    """
    measured, _ = profile(spec)
    model_cache.release()
    gc.collect()
    evaluator = Evaluator.from_spec(spec)
    full = float(sum(evaluator.nbytes(Configuration(Plan(()))).values()))
    points, accuracies = [], {}
    for bits, plan in plans(measured).items():
        values = evaluator.evaluate(Configuration(plan), SplitName.TEST).values
        accuracies[bits] = 100 * (1 - values["error"])
        points.append((values["error"], values["nbytes"]))
    return accuracies, hypervolume(np.array(points), (1.0, full))


def table(found: Mapping[str, Sequence[tuple[dict[float, float], float]]]) -> str:
    """A row a mean width, and one for the hypervolume."""
    lines = ["| bits a weight | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for bits in BITS:
        cells = [interval([accuracies[bits] for accuracies, _ in runs]) for runs in found.values()]
        lines.append(f"| {bits:g} | " + " | ".join(cells) + " |")
    volumes = [interval([100 * volume for _, volume in runs]) for runs in found.values()]
    lines.append("| hypervolume in % | " + " | ".join(volumes) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="digit-clip")
@click.option("--seeds", default="10,11,12,13,14")
@click.option("--test", default=4000)
@click.option("--out", type=click.Path(path_type=Path))
def main(model: str, seeds: str, test: int, out: Path | None) -> None:
    """Prints accuracies in per cent, mean and 95 % interval over seeds."""
    torch.set_num_threads(1)
    found: dict[str, list[tuple[dict[float, float], float]]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(model, folder, PICTURES)
        for seed in seeds.split(","):
            for way, runs in found.items():
                runs.append(measure(job(model, way, int(seed), test, folder)))
                click.echo(f"seed {seed}, {way}: {runs[-1]}", err=True)
            if out is not None:
                out.write_text(table(found) + "\n")
    click.echo(table(found))


if __name__ == "__main__":
    main()

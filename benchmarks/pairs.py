"""Plans of the program with and without terms of neighbouring blocks, and those of the greedy walk.

For each model and seed all cells and all pairs of neighbouring blocks' undominated options are
measured once; each allocator solves for the same mean widths, and each plan is evaluated on
samples that no profile saw. Random plans say how well sums of cells, with and without pairs, rank
plans. Weights only, symmetric, one scale a channel, a block a layer, as in `benchmarks.choice`.

    OMP_NUM_THREADS=1 python -m benchmarks.pairs --out pairs.json

Runs that `--out` already holds are read from it, so an interrupted run resumes.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.choice import job
from benchmarks.in_process import profile
from benchmarks.p4q import interval
from benchmarks.refine import replace_search
from benchmarks.scores import BITS, held_out
from bitfront.plan import Configuration, Plan
from bitfront.profile import Cell, Profile, Resource
from search.greedy import Greedy
from search.knapsack_items import by_block
from search.options import undominated
from search.pairwise import PairwiseProgram
from search.program import Program
from workers.process import model_cache
from workers.scheduling.worker_config import WorkerConfig

ALLOCATORS: Final = ("program", "pairwise", "greedy")
_RANDOM_PLANS: Final = 40

Run = dict[str, object]
Choice = Mapping[str, Cell]


def run(model: str, seed: int, samples: int, folder: Path) -> Run:
    """What each allocator brings, and what pairs cost."""
    spec = held_out(job(model, seed, folder), samples)
    started_s = time.process_time()
    measured, _ = profile(replace_search(spec, allocator="pairwise"))
    seconds = time.process_time() - started_s
    evaluator = model_cache.evaluator(WorkerConfig(spec))
    known: dict[Plan, dict[str, float]] = {}

    def value(choice: Choice) -> dict[str, float]:
        plan = Plan.from_options((block, choice[block.name].option) for block in measured.blocks)
        if plan not in known:
            known[plan] = dict(evaluator.evaluate(Configuration(plan)).metrics)
        return known[plan]

    cells = {name: undominated(own) for name, own in by_block(measured.cells).items()}
    program = Program.of(cells, Resource.WEIGHT_BITS)
    allocators = {
        "program": program,
        "pairwise": PairwiseProgram.of(program, measured.pairs),
        "greedy": Greedy(program),
    }
    weights = sum(layer.weights for layer in measured.layers)
    found: Run = {"cells": len(measured.cells), "pairs": len(measured.pairs), "seconds": seconds}
    for name, allocator in allocators.items():
        started_s = time.process_time()
        solutions = [allocator.solve(int(bits * weights)) for bits in BITS]
        values = [value(solution.choice) for solution in solutions]
        found[name] = {
            "solved_s": time.process_time() - started_s,
            "proven": sum(solution.proven for solution in solutions),
            **{of: [one[of] for one in values] for of in ("divergence", "error")},
        }
    found["ranks"] = _ranks(measured, cells, seed, value)
    model_cache.release()
    return found


def _ranks(
    measured: Profile,
    cells: Mapping[str, Sequence[Cell]],
    seed: int,
    value: Callable[[Choice], dict[str, float]],
) -> list[float]:
    """Spearman's correlation of cells, and of cells and pairs, with the divergence.

    Over random plans whose blocks draw their options with a bias of each plan's own.
    """
    random = np.random.default_rng(seed)
    interactions = {
        (pair.first.block, pair.first.option, pair.second.option): pair.interaction
        for pair in measured.pairs
    }
    rows = []
    for bias in np.linspace(0, 1, _RANDOM_PLANS):
        choice = {
            name: own[random.binomial(len(own) - 1, 0.1 + 0.6 * bias)]
            for name, own in cells.items()
        }
        alone = sum(cell.error for cell in choice.values())
        pairs = sum(
            interactions.get((one.block, one.option, other.option), 0.0)
            for one, other in pairwise(choice.values())
        )
        rows.append((value(choice)["divergence"], alone, alone + pairs))
    divergence, alone, paired = np.array(rows).T
    return [float(spearmanr(divergence, own).statistic) for own in (alone, paired)]


def report(model: str, runs: Sequence[Run]) -> None:
    """Prints the table of a model: a row an allocator, means and 95 % intervals over the seeds."""
    passes = [f"{np.mean([float(str(one[of])) for one in runs]):.0f}" for of in ("cells", "pairs")]
    click.echo(f"\n{model}, {len(runs)} seeds; {passes[0]} cells, {passes[1]} pairs\n")
    click.echo("| allocator | " + " | ".join(f"{bits:g} bits" for bits in BITS) + " |")
    click.echo("|---" * (len(BITS) + 1) + "|")
    tables = {name: np.array([_column(one, name) for one in runs]) for name in ALLOCATORS}
    base = tables["program"]
    click.echo(
        "| program | " + " | ".join(interval((1000 * own).tolist()) for own in base.T) + " |"
    )
    for name in ALLOCATORS[1:]:
        changes = 100 * (tables[name] / base - 1)
        click.echo(
            f"| {name} | " + " | ".join(interval(own.tolist()) + " %" for own in changes.T) + " |"
        )
    ranks = np.array([one["ranks"] for one in runs])
    alone, paired = ranks.T
    told = [interval(own.tolist()) for own in (alone, paired, paired - alone)]
    click.echo(
        f"\nrank correlation of random plans: cells {told[0]}, with pairs {told[1]}, "
        f"difference {told[2]}"
    )


def _column(one: Run, name: str) -> list[float]:
    row = one[name]
    assert isinstance(row, dict)
    return [float(value) for value in row["divergence"]]


@click.command()
@click.option("--seeds", default="500,501,502,503,504", show_default=True)
@click.option("--models", default="digit-llava,digit-clip", show_default=True)
@click.option("--samples", default=1024, help="Held-out samples of each seed.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("pairs.json"))
def main(seeds: str, models: str, samples: int, out: Path) -> None:
    """Runs what is not known yet, and prints the tables."""
    torch.set_num_threads(1)
    known: dict[str, Run] = json.loads(out.read_text()) if out.exists() else {}
    for seed in seeds.split(","):
        for model in models.split(","):
            name = f"{model}-{seed}"
            if name not in known:
                known[name] = run(model, int(seed), samples, out.parent / "shapes")
                out.write_text(json.dumps(known))
                click.echo(f"{name} is done", err=True)
    for model in models.split(","):
        runs = [own for name, own in known.items() if name.rpartition("-")[0] == model]
        if runs:
            report(model, runs)


if __name__ == "__main__":
    main()

"""Scores in place of measured cells: what each costs, and what the program's plans are worth.

For each model and seed every way of profiling is run in this process, the program is solved for
mean widths from 2.25 to 4 bits a weight, and each plan is evaluated on samples that no profile
saw. Weights only, symmetric, one scale a channel, a block a layer, as in `benchmarks.choice`.

    OMP_NUM_THREADS=1 python -m benchmarks.scores --seeds 200,201,202,203,204 --out scores.json

Runs that `--out` already holds are read from it, so an interrupted run resumes.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.choice import job
from benchmarks.in_process import profile
from benchmarks.p4q import interval
from benchmarks.three_models import MODELS, prepare
from bitfront.plan import Configuration, Option, Plan
from bitfront.profile import Profile, Resource
from bitfront.spec import JobSpec
from objectives.data.split_name import SplitName
from search.front import hypervolume
from search.knapsack_items import by_block
from search.options import undominated
from search.program import Program
from workers.process import model_cache
from workers.scheduling.worker_config import WorkerConfig

BITS: Final = (2.25, 2.5, 3.0, 3.5, 4.0)
# The share of all cells that an adaptive profile may measure.
SHARES: Final = (0.05, 0.15)
SCORES: Final = (
    "gauss_newton",
    "fisher",
    "gradient",
    "entropy",
    "loss_delta",
    "lim",
    "zd",
    "masked",
    "relevance",
)

Run = dict[str, object]


def ways(cells: int) -> dict[str, dict[str, object]]:
    """The sections `profile` to compare, for a model of so many cells."""
    found: dict[str, dict[str, object]] = {"all cells": {"measure": "output_kl"}}
    found |= {score: {"measure": score} for score in SCORES}
    for share in SHARES:
        passes = math.ceil(share * cells)
        found[f"adaptive, {share:.0%}"] = {"cells": "adaptive", "max_passes": passes}
    found["adaptive"] = {"cells": "adaptive"}
    return found


def plans(measured: Profile) -> list[Plan]:
    """The program's plan within each mean width of a weight."""
    cells = {name: undominated(found) for name, found in by_block(measured.cells).items()}
    program = Program.of(cells, Resource.WEIGHT_BITS)
    weights = sum(layer.weights for layer in measured.layers)
    blocks = {block.name: block for block in measured.blocks}
    choices = [program.solve(int(bits * weights)).choice for bits in BITS]
    return [
        Plan.from_options((blocks[name], cell.option) for name, cell in choice.items())
        for choice in choices
    ]


def held_out(spec: JobSpec, samples: int) -> JobSpec:
    """The same job with so many samples to judge plans by."""
    splits = spec.data.samples.model_copy(update={"selection": samples})
    return spec.model_copy(update={"data": spec.data.model_copy(update={"samples": splits})})


def run(spec: JobSpec, asked_for: Sequence[str] = ()) -> dict[str, Run]:
    """What each way costs and brings in one job, or those that are asked for."""
    found: dict[str, Run] = {}
    known: dict[Plan, dict[str, float]] = {}
    true: dict[tuple[str, Option], float] = {}
    cells = 1
    for name in ("all cells", *(asked_for or ways(1))):
        if name in found:
            continue
        section = ways(cells)[name]
        asked = JobSpec.model_validate({**spec.model_dump(mode="json"), "profile": section})
        started_s = time.process_time()
        measured, _ = profile(asked)
        seconds = time.process_time() - started_s
        errors = {(cell.block, cell.option): cell.error for cell in measured.cells}
        if name == "all cells":
            true, cells = dict(errors), len(errors)
        evaluator = model_cache.evaluator(WorkerConfig(asked))
        full = float(sum(evaluator.nbytes(Configuration(Plan(()))).values()))
        values = []
        for plan in plans(measured):
            if plan not in known:
                evaluation = evaluator.evaluate(Configuration(plan), SplitName.SELECTION)
                known[plan] = dict(evaluation.metrics)
            values.append(known[plan])
        points = np.array([(one["error"], one["nbytes"]) for one in values])
        found[name] = {
            "cells": 0
            if name in SCORES and name != "loss_delta"
            else sum(not cell.is_estimate for cell in measured.cells),
            "seconds": seconds,
            "spearman": float(
                spearmanr(list(true.values()), [errors[place] for place in true]).statistic
            ),
            "divergence": [one["divergence"] for one in values],
            "error": [one["error"] for one in values],
            "hypervolume": hypervolume(points, (1.0, full)),
        }
        model_cache.release()
    return found


def report(model: str, runs: Sequence[Mapping[str, Run]]) -> None:
    """Prints the table of a model: a row a way, means and 95 % intervals over the seeds."""
    click.echo(f"\n{model}, {len(runs)} seeds; held-out divergence in nats times 1,000\n")
    header = ["profile", "cells", "seconds", "Spearman", *(f"{bits:g} bits" for bits in BITS)]
    click.echo("| " + " | ".join([*header, "hypervolume, less all cells"]) + " |")
    click.echo("|---" * (len(header) + 1) + "|")
    for name in runs[0]:
        own = [one[name] for one in runs]
        base = [one["all cells"] for one in runs]

        def column(figure: str, rows: Sequence[Run] = own) -> list[float]:
            return [float(str(row[figure])) for row in rows]

        cells = [
            name,
            f"{np.mean(column('cells')):.0f}",
            f"{np.mean(column('seconds')):.1f}",
            f"{np.mean(column('spearman')):.3f}",
        ]
        cells += [interval([1000 * _at(row, n) for row in own]) for n in range(len(BITS))]
        change = [
            100 * (mine / theirs - 1)
            for mine, theirs in zip(column("hypervolume"), column("hypervolume", base), strict=True)
        ]
        click.echo("| " + " | ".join([*cells, interval(change) + " %"]) + " |")


def _at(row: Run, place: int) -> float:
    divergences = row["divergence"]
    assert isinstance(divergences, list)
    return float(divergences[place])


@click.command()
@click.option("--seeds", default="200,201,202,203,204", show_default=True)
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option("--ways", default="", help="Which profiles, beside all cells; all by default.")
@click.option("--samples", default=1024, help="Held-out samples of each seed.")
@click.option("--steps", default=1400, help="Training steps of the third model.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("scores.json"))
def main(seeds: str, models: str, ways: str, samples: int, steps: int, out: Path) -> None:
    """Runs what is not known yet, and prints the tables."""
    torch.set_num_threads(1)
    known: dict[str, dict[str, Run]] = json.loads(out.read_text()) if out.exists() else {}
    folder = out.parent / "shapes"
    named = models.split(",")
    named_ways = [name for name in ways.split(",") if name]
    for seed in seeds.split(","):
        for model in named:
            name = f"{model}-{seed}"
            if name not in known:
                prepare(model, folder, 80, steps=steps)
                known[name] = run(held_out(job(model, int(seed), folder), samples), named_ways)
                out.write_text(json.dumps(known))
                click.echo(f"{name} is done", err=True)
    for model in named:
        runs = [run for name, run in known.items() if name.rpartition("-")[0] == model]
        if runs:
            report(model, runs)


if __name__ == "__main__":
    main()

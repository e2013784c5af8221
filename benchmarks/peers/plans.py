"""Plans at equal sizes: ModelOpt's `auto_quantize`, an exact program on its scores, and bitfront's.

    OMP_NUM_THREADS=1 python -m benchmarks.peers.plans --environment peers/modelopt --out plans.json

Every `nn.Linear` has 2, 3, 4, 6 or 8 bits, symmetric with one scale a row, nearest codes; nothing
else has codes. All get the same calibration samples, which the seed draws, with ModelOpt the right
answers too; the same held-out samples judge the plans. Passes are forward passes of all calibration
samples. What `--out` already holds is not run again.
"""

import gc
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from benchmarks.in_process import profile
from benchmarks.p4q import interval
from benchmarks.peers.calling import call_peer
from benchmarks.peers.exchange import MODELS, linear_layers, write_exchange
from benchmarks.rounding import PICTURES
from benchmarks.three_models import prepare, sections
from bitfront.layers import Block
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.profile import Cell, Profile, Resource
from bitfront.spec import JobSpec
from bitfront.vlm import load_model
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.registry import load_family
from search.knapsack_items import by_block
from search.options import undominated
from search.program import Program
from workers.process import model_cache

BITS: Final = (2, 3, 4, 6, 8)
BUDGETS: Final = (2.25, 2.5, 3.0, 3.5, 4.0)
CALIBRATION: Final = 128
THEIRS: Final = ("gradient", "kl_div")

Run = dict[str, Any]


def job(model: str, seed: int, test: int, shapes: Path, section: Mapping[str, object]) -> JobSpec:
    """A job with samples of a seed, and nothing but linear layers to search."""
    samples = {"calibration": CALIBRATION, "tuning": 4, "selection": 64, "test": test}
    spec = JobSpec.model_validate(
        {
            "study": "peers",
            **sections(model, shapes, samples, seed),
            "quantizer": {"rounding": "nearest", "scheme": "symmetric"},
            "partition": {"granularity": "layer"},
            "space": {"weight_bits": [*BITS], "activation_bits": [16]},
            "profile": dict(section),
        }
    )
    loaded = load_model(spec.model)
    linear = set(linear_layers(loaded).values())
    keep = {layer.name: 16 for layer in loaded.layers if layer.name not in linear}
    space = {**spec.space.model_dump(mode="json"), "keep": keep}
    return JobSpec.model_validate({**spec.model_dump(mode="json"), "space": space})


def solved(cells: Sequence[Cell], blocks: Mapping[str, Block], budget: float, size: int) -> Plan:
    """The exact program's plan within so many bits a searched weight."""
    items = {name: undominated(found) for name, found in by_block(cells).items()}
    choice = Program.of(items, Resource.WEIGHT_BITS).solve(int(budget * size)).choice
    return Plan.from_options((blocks[name], cell.option) for name, cell in choice.items())


def ours(measured: Profile, evaluator: Evaluator) -> dict[float, Plan]:
    """The program's plan at each budget."""
    linear = set(linear_layers(evaluator.model).values())
    blocks = {b.name: b for b in measured.blocks if set(b.layers) <= linear}
    cells = [cell for cell in measured.cells if cell.block in blocks]
    size = sum(layer.weights for layer in measured.layers if layer.name in linear)
    return {budget: solved(cells, blocks, budget, size) for budget in BUDGETS}


def exact(found: Run, names: Mapping[str, str], evaluator: Evaluator) -> dict[float, Plan]:
    """The exact program's plan at each budget, on a peer's scores and in its groups."""
    weights = {layer.name: layer.weights for layer in evaluator.model.layers}
    searched = [group for group in found["groups"] if group["layers"][0] in names]
    sizes = [sum(weights[names[layer]] for layer in group["layers"]) for group in searched]
    return {
        budget: Plan.of(least(searched, sizes, budget * sum(sizes), names)) for budget in BUDGETS
    }


def least(
    groups: Sequence[Run], sizes: Sequence[int], limit: float, names: Mapping[str, str]
) -> dict[str, Precision]:
    """The widths with the least sum of scores, by HiGHS."""
    scores = np.concatenate([group["scores"] for group in groups])
    costs = np.concatenate(
        [size * np.array(group["bits"]) for group, size in zip(groups, sizes, strict=True)]
    )
    one = np.zeros((len(groups), len(scores)))
    start = 0
    for row, group in enumerate(groups):
        one[row, start : start + len(group["bits"])] = 1
        start += len(group["bits"])
    limits = [LinearConstraint(one, 1, 1), LinearConstraint(costs[None], -np.inf, limit)]
    solution = milp(
        scores, constraints=limits, integrality=np.ones_like(scores), bounds=Bounds(0, 1)
    )
    taken = iter(solution.x > 0.5)
    found: dict[str, Precision] = {}
    for group in groups:
        for bits in group["bits"]:
            if next(taken):
                found |= {names[layer]: Precision(bits) for layer in group["layers"]}
    return found


def judged(evaluator: Evaluator, plans: Mapping[float, Plan]) -> Run:
    """The held-out error and divergence of each plan, with the bits that it takes."""
    linear = set(linear_layers(evaluator.model).values())
    weights = {x.name: x.weights for x in evaluator.model.layers if x.name in linear}
    found: Run = {"error": [], "divergence": [], "bits": []}
    for plan in plans.values():
        own = Plan.of({layer: p for layer, p in plan if layer in linear})
        widths = {layer: precision.weight_bits for layer, precision in own}
        taken = sum(widths.get(name, 16) * count for name, count in weights.items())
        metrics = evaluator.evaluate(Configuration(own), SplitName.TEST).metrics
        found["error"].append(metrics["error"])
        found["divergence"].append(metrics["divergence"])
        found["bits"].append(taken / sum(weights.values()))
    return found


def run(model: str, seed: int, test: int, shapes: Path, environment: Path, folder: Path) -> Run:
    """Every way on one model with the samples of one seed."""
    prepare(model, shapes, PICTURES)
    plain = job(model, seed, test, shapes, {})
    loaded = load_model(plain.model)
    names = linear_layers(loaded)
    write_exchange(load_family(plain.data, loaded).task, model, shapes, folder)
    found: Run = {}
    widths, budgets = (",".join(map(str, values)) for values in (BITS, BUDGETS))
    evaluator = Evaluator.from_spec(plain)
    passes = 0
    for method in THEIRS:
        call_peer(environment, "auto_quantize", folder, [method, widths, budgets])
        said = json.loads((folder / f"{method}.json").read_text())
        passes = round(said["samples"] / CALIBRATION)
        costs = {"passes": passes, "seconds": said["seconds"]}
        plans = {
            budget: Plan.of({names[n]: Precision(b) for n, b in said["plans"][str(budget)].items()})
            for budget in BUDGETS
        }
        found[f"ModelOpt, {method}"] = judged(evaluator, plans) | costs
        found[f"exact program, {method}"] = judged(evaluator, exact(said, names, evaluator)) | costs
    found["full precision"] = judged(evaluator, {16: Plan(())})
    ways: dict[str, dict[str, object]] = {
        "all cells": {},
        "adaptive": {"cells": "adaptive", "max_passes": passes},
        "adaptive, a tenth": {"cells": "adaptive", "max_passes": max(1, passes // 10)},
        "gauss_newton": {"measure": "gauss_newton"},
    }
    for name, section in ways.items():
        started_s = time.process_time()
        measured, _ = profile(job(model, seed, test, shapes, section))
        seconds = time.process_time() - started_s
        count = sum(not cell.is_estimate for cell in measured.cells)
        costs = {"passes": 0 if name == "gauss_newton" else count, "seconds": seconds}
        found[f"bitfront, {name}"] = judged(evaluator, ours(measured, evaluator)) | costs
        model_cache.release()
        gc.collect()
    return found


def table(runs: Sequence[Run], figure: str, scale: float) -> str:
    """A row a way: means over the seeds with 95 % intervals."""
    head = ["way", "passes", "seconds", *(f"{budget:g} bits" for budget in BUDGETS)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in runs[0]:
        own = [one[name] for one in runs]
        if "passes" not in own[0]:
            continue
        cells = [name, f"{own[0]['passes']:,}", f"{sum(x['seconds'] for x in own) / len(own):.0f}"]
        cells += [interval([scale * x[figure][n] for x in own]) for n in range(len(BUDGETS))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--environment", type=click.Path(path_type=Path), required=True)
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option("--seeds", default="600,601,602,603,604", show_default=True)
@click.option("--test", default=2000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("plans.json"))
def main(environment: Path, models: str, seeds: str, test: int, out: Path) -> None:
    """Runs what is not known yet, and prints the tables."""
    torch.set_num_threads(1)
    known: dict[str, Run] = json.loads(out.read_text()) if out.exists() else {}
    for seed in seeds.split(","):
        for model in models.split(","):
            if f"{model}/{seed}" not in known:
                shapes, folder = out.parent / "shapes", out.parent / "plans"
                known[f"{model}/{seed}"] = run(model, int(seed), test, shapes, environment, folder)
                out.write_text(json.dumps(known, indent=1))
                click.echo(f"{model}, seed {seed} is done", err=True)
    for model in models.split(","):
        runs = [one for key, one in known.items() if key.split("/")[0] == model]
        if runs:
            click.echo(f"\n{model}, {len(runs)} seeds: divergence in nats times 1,000\n")
            click.echo(table(runs, "divergence", 1000))
            click.echo(f"\n{model}: error in %\n")
            click.echo(table(runs, "error", 100))


if __name__ == "__main__":
    main()

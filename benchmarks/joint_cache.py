"""Weights and KV cache of the bundled LLaVA searched together, at limits on their memory.

For each seed of the samples the cells of every layer and of every place of the cache are measured,
and the program is solved at each limit: over both, over weights with the cache in 16 bits, over
the cache with weights in 16 bits, and over weights with one width for the whole cache, the best by
the program. Each plan is evaluated on the test questions.

    OMP_NUM_THREADS=1 python -m benchmarks.joint_cache --seeds 0,1,2,3,4
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import click
import numpy as np
import torch

from bitfront.errors import InfeasibleBudget
from bitfront.kv_cache import KV_FULL
from bitfront.layers import Block
from bitfront.plan import Configuration, Option, Plan
from bitfront.precision import FULL
from bitfront.profile import Cell, Resource
from bitfront.spec import REFERENCE_LLAVA, JobSpec
from objectives.cost.costs import cache_nbytes
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.profiling.cells import CellMeter
from search.allocator import Solution
from search.options import block_options, cache_options, undominated
from search.program import Program
from search.resources import Limit

CONTEXT_TOKENS: Final = 2000
LIMITS_KB: Final = (450, 500, 600, 800, 1200, 1800, 2000, 2200)
WAYS: Final = ("weights and cache", "weights, one width for the cache", "weights", "cache")
Cells = Mapping[Block, Sequence[Cell]]


def job(seed: int, test: int) -> JobSpec:
    """Options of the search, and the samples of a seed."""
    return JobSpec.model_validate(
        {
            "study": "joint-cache",
            "model": {"source": "reference", "name": REFERENCE_LLAVA},
            "data": {
                "source": "reference",
                "samples": {"calibration": 64, "tuning": 1, "selection": 1, "test": test},
                "seed": seed,
            },
            "space": {
                "weight_bits": [2, 3, 4, 8, 16],
                "activation_bits": [16],
                "kv_cache": {"levels": ["uniform", "kmeans"]},
            },
            "objectives": ["error", "memory_nbytes"],
            "context_tokens": CONTEXT_TOKENS,
        }
    )


def measured(evaluator: Evaluator) -> tuple[Cells, Cells]:
    """The cells of all layers, each a block, and of all places of the cache."""
    spec, model = evaluator.spec, evaluator.model
    meter = CellMeter(evaluator.task, evaluator.cell_switch, spec)
    blocks = [Block(layer.name, layer.tower, (layer.name,)) for layer in model.layers]
    layers = {
        block: [
            replace(meter.measure(block, option), kv_nbytes=0)
            for option in block_options(block, model.layers, spec.space, spec.quantizer)
        ]
        for block in blocks
    }
    known = {place.name: place for place in evaluator.cache_places}
    places = {}
    for block, options in cache_options(evaluator.cache_places, spec.space).items():
        places[block] = [
            replace(
                meter.measure(block, one),
                kv_nbytes=known[block.name].nbytes(one.form, CONTEXT_TOKENS),
            )
            for one in options
            if one.form is not None
        ]
    return layers, places


def only(cells: Cells, wanted: Option) -> Cells:
    """Each block with one option."""
    return {block: [one for one in own if one.option == wanted] for block, own in cells.items()}


def solved(cells: Cells, most: int, fixed: int) -> tuple[Plan, Solution] | None:
    """The program's plan within a limit on the memory; None where there is none."""
    resource = Resource.MEMORY_NBYTES
    by_name = {block.name: undominated(own, (resource,)) for block, own in cells.items()}
    limit = Limit("max_memory_nbytes", resource, most, float(fixed))
    try:
        found = Program.of(by_name, resource, [limit]).solve(limit.most)
    except InfeasibleBudget:
        return None
    return Plan.from_options((b, found.choice[b.name].option) for b in cells), found


def plan_of(way: str, layers: Cells, places: Cells, most: int, fixed: int) -> Plan | None:
    """The plan of one way of searching within a limit; None where it has none."""
    full = Option((FULL,))
    if way == WAYS[1]:
        forms = dict.fromkeys(one.option for own in places.values() for one in own)
        found = [solved({**layers, **only(places, form)}, most, fixed) for form in forms]
        kept = [one for one in found if one is not None]
        return min(kept, key=lambda one: one[1].error)[0] if kept else None
    searched = {
        WAYS[0]: {**layers, **places},
        WAYS[2]: {**layers, **only(places, Option((), KV_FULL))},
        WAYS[3]: {**only(layers, full), **places},
    }
    one = solved(searched[way], most, fixed)
    return None if one is None else one[0]


@click.command()
@click.option("--seeds", default="0,1,2,3,4", show_default=True, help="Of the samples.")
@click.option("--test", default=100, show_default=True, help="Questions that are answered.")
def main(seeds: str, test: int) -> None:
    """Prints a row for each limit: means over the seeds, and the deviation of one."""
    torch.set_num_threads(1)
    rows: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    full: list[float] = []
    held = 0.0
    for seed in map(int, seeds.split(",")):
        evaluator = Evaluator.from_spec(job(seed, test))
        layers, places = measured(evaluator)
        whole = evaluator.evaluate(Configuration(Plan(())), SplitName.TEST)
        full.append(whole.values["error"])
        held = whole.metrics["memory_nbytes"]
        for most in LIMITS_KB:
            for way in WAYS:
                fixed = evaluator.model.fixed_nbytes
                plan = plan_of(way, layers, places, 1000 * most, fixed)
                if plan is None:
                    continue
                found = evaluator.evaluate(Configuration(plan), SplitName.TEST).metrics
                assert found["memory_nbytes"] <= 1000 * most
                cache = cache_nbytes(evaluator.cache_places, plan, CONTEXT_TOKENS)
                row = (found["error"], found["divergence"], cache / found["memory_nbytes"])
                rows.setdefault((most, way), []).append(row)
        print(f"seed {seed} done", flush=True)
    print(f"full precision | {percent(full)} | {held:,.0f} bytes")
    print("limit in kB | searched | error in % | divergence in nats | cache in % of the memory")
    for (most, way), found_rows in rows.items():
        errors, nats, shares = zip(*found_rows, strict=True)
        spread = f"{np.mean(nats):.4f} ± {np.std(nats, ddof=1) if len(nats) > 1 else 0:.4f}"
        print(f"{most} | {way} | {percent(errors)} | {spread} | {100 * np.mean(shares):.0f}")


def percent(shares: Sequence[float]) -> str:
    """Mean and deviation in percent."""
    deviation = np.std(shares, ddof=1) if len(shares) > 1 else 0.0
    return f"{100 * np.mean(shares):.1f} ± {100 * deviation:.1f}"


if __name__ == "__main__":
    main()

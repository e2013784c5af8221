"""Neighbouring blocks measured together, and the plans that come of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, product

import pytest

from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Option, Plan
from bitfront.precision import Precision
from bitfront.profile import Cell, LayerEntropy, Profile
from bitfront.spec import JobSpec
from bitfront.trial import Evaluation
from search.options import block_options
from search.partition import neighbouring
from service.study.dry_run import _count_cells
from service.study.profiling import measure_profile
from service.study.proxy_search import ProxySearch
from storage.store import Store
from tests.service.study.test_profiling import Pool, Stages
from tests.support.store_samples import identities, job, running
from workers.scheduling.metrics import NullMetrics
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.placement import Footprint

TOWERS = (Tower.VISION, Tower.VISION, Tower.VISION, Tower.TEXT, Tower.TEXT)
LAYERS = tuple(
    Layer(f"l{n}", tower, LayerKind.LINEAR, 64, 64, 4, f"l{n}", str(tower))
    for n, tower in enumerate(TOWERS)
)
BITS = (2, 3, 4, 8)


def error_of(precisions: dict[str, Precision]) -> float:
    """Two narrow neighbours of the vision tower add to each other, those of the text cancel."""
    alone = {name: (1 + int(name[1:])) * 4.0**-one.weight_bits for name, one in precisions.items()}
    signs = {("l0", "l1"): 1.5, ("l1", "l2"): 1.0, ("l3", "l4"): -0.9, ("l2", "l3"): 9.0}
    pairs = [
        sign * 2 * math.sqrt(alone[one] * alone[other])
        for (one, other), sign in signs.items()
        if one in alone and other in alone
    ]
    return sum(alone.values()) + sum(pairs)


class PairPool(Pool):
    """Measures options of one layer and of two."""

    def cells(
        self, work: Sequence[tuple[Block, Sequence[Option]]], on_cell: Callable[[Block, Cell], None]
    ) -> None:
        for block, options in work:
            for option in options:
                self.measured.append((block.name, option))
                precisions = dict(zip(block.layers, option.precisions, strict=True))
                bits = 64 * 64 * sum(one.weight_bits for one in option.precisions)
                error = error_of(precisions)
                on_cell(block, Cell(block.name, option, bits // 8, float(bits), error, bits))


def profiled(
    store: Store, pool: Pool, stages: Stages, study: str = "digits"
) -> tuple[JobSpec, Profile]:
    spec = job(
        study,
        space={"weight_bits": list(BITS), "activation_bits": [16]},
        partition={"granularity": "layer"},
        search={"budgets": 30, "prune": False, "allocator": "pairwise"},
    )
    entropies = tuple(LayerEntropy(layer.name, 0.5, 0.5) for layer in LAYERS)
    ids = identities("digits")
    info = ModelInfo(LAYERS, 0, entropies, Evaluation({}, {}), Footprint(0, 0), ids, {})
    lease = running(store, study)
    return spec, measure_profile(spec, store, lease, pool, info, stages, NullMetrics())


def test_neighbours_are_blocks_of_one_tower() -> None:
    blocks = [Block(layer.name, layer.tower, (layer.name,)) for layer in LAYERS]

    assert [(one.name, other.name) for one, other in neighbouring(blocks)] == [
        ("l0", "l1"),
        ("l1", "l2"),
        ("l3", "l4"),
    ]


def test_every_two_options_of_neighbours_are_measured_once_and_kept(store: Store) -> None:
    pool, stages = PairPool(wobble=0.0), Stages()

    _, profile = profiled(store, pool, stages)
    again = PairPool(wobble=0.0)
    _, same = profiled(store, again, Stages(), "another")

    assert stages.names == ["single-layer cells: 20", "pairs of options: 48"]
    assert len(profile.pairs) == 48
    assert len(profile.cells) == 20
    for pair in profile.pairs:
        cells = (pair.first, pair.second)
        together = error_of({cell.block: cell.option.precisions[0] for cell in cells})
        assert pair.interaction == pytest.approx(together - sum(cell.error for cell in cells))
    assert (again.measured, same.pairs) == ([], profile.pairs)


def test_the_plans_are_those_of_least_error_with_all_pairs(store: Store) -> None:
    """By brute force over all plans: the towers' own pairs count, what is between them does not."""
    spec, profile = profiled(store, PairPool(wobble=0.0), Stages())
    alone = ProxySearch(
        spec.model_copy(update={"search": spec.search.model_copy(update={"allocator": "program"})}),
        replace(profile, pairs=()),
    )

    search = ProxySearch(spec, profile)

    def true(plan: Plan) -> float:
        precisions = {layer.name: plan.precision(layer.name) for layer in LAYERS}
        towers = [{n: precisions[n] for n in own} for own in (("l0", "l1", "l2"), ("l3", "l4"))]
        return sum(error_of(tower) for tower in towers)

    everything = [
        Plan.of(dict(zip([layer.name for layer in LAYERS], map(Precision, widths), strict=True)))
        for widths in product(BITS, repeat=5)
    ]
    sizes = {plan: sum(p.weight_bits for _, p in plan) for plan in everything}
    for solution in search.solutions:
        plan = search._plan(solution)
        best = min(true(other) for other in everything if sizes[other] <= sizes[plan])
        assert true(plan) == pytest.approx(best)
        assert search.proxy_error(plan) == pytest.approx(true(plan))
        assert solution.error == pytest.approx(true(plan))
    assert {search._plan(s) for s in search.solutions} != {alone._plan(s) for s in alone.solutions}
    errors = [solution.error for solution in search.solutions]
    assert all(before > after for before, after in pairwise(errors))


def test_a_dry_run_counts_the_pairs() -> None:
    space = {"weight_bits": list(BITS), "activation_bits": [16]}
    spec = job(space=space, search={"allocator": "pairwise"})
    blocks = [Block(layer.name, layer.tower, (layer.name,)) for layer in LAYERS]
    options = {
        block.name: block_options(block, LAYERS, spec.space, spec.quantizer) for block in blocks
    }

    assert _count_cells(spec, blocks, LAYERS, options) == 20 + 48

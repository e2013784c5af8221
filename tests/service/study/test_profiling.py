"""A profile whose cells are measured only where the program looks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Option, Plan
from bitfront.profile import Cell, ClipChoice, LayerEntropy, Profile
from bitfront.spec import JobSpec
from bitfront.trial import Evaluation
from service.study.profiling import measure_profile
from service.study.proxy_search import ProxySearch
from storage.store import Store
from tests.support.reporters import NullReporter
from tests.support.store_samples import identities, job, running
from workers.scheduling.metrics import NullMetrics
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.placement import Footprint

LAYERS = tuple(
    Layer(f"l{n}", Tower.VISION, LayerKind.LINEAR, 64, 64, 4, f"l{n}", "vision") for n in range(8)
)
SPACE = {"weight_bits": [2, 3, 4, 5, 6, 8], "activation_bits": [4, 8]}


def true_error(block: Block, option: Option) -> float:
    (precision,) = option.precisions
    sensitivity = 1.0 + LAYERS.index(next(one for one in LAYERS if one.name == block.name))
    return sensitivity * (4.0**-precision.weight_bits + 0.3 * 4.0**-precision.activation_bits)


@dataclass
class Pool:
    """Scores are true errors times a factor of each block, and one of each option."""

    wobble: float
    measured: list[tuple[str, Option]] = field(default_factory=list)

    def cells(
        self, work: Sequence[tuple[Block, Sequence[Option]]], on_cell: Callable[[Block, Cell], None]
    ) -> None:
        for block, options in work:
            for option in options:
                self.measured.append((block.name, option))
                on_cell(block, self._cell(block, option, true_error(block, option)))

    def scores(
        self, work: Sequence[tuple[Block, Sequence[Option]]], on_cell: Callable[[Block, Cell], None]
    ) -> None:
        for block, options in work:
            for number, option in enumerate(options):
                factor = (2.0 + math.sin(7 * ord(block.name[-1]))) * math.exp(
                    self.wobble * math.sin(13.0 * number)
                )
                cell = self._cell(block, option, factor * true_error(block, option))
                on_cell(block, replace(cell, is_estimate=True))

    def _cell(self, block: Block, option: Option, error: float) -> Cell:
        (precision,) = option.precisions
        bits = 64 * 64 * precision.weight_bits
        operations = float(bits * precision.activation_bits)
        return Cell(block.name, option, bits // 8, operations, error, bits)

    def walk_clips(
        self, chains: Sequence[Sequence[tuple[Block, Option]]]
    ) -> list[list[ClipChoice]]:
        raise NotImplementedError

    def clips(
        self,
        work: Sequence[tuple[Block, Sequence[Option]]],
        prefix: Plan,
        on_choice: Callable[[Block, tuple[Option, ClipChoice]], None],
    ) -> None:
        raise NotImplementedError


class Stages(NullReporter):
    """Keeps the names of the stages."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str, total: int | None) -> None:
        self.names.append(f"{name}: {total}")


def profiled(
    store: Store,
    pool: Pool,
    study: str,
    reporter: NullReporter | None = None,
    **profile: object,
) -> tuple[JobSpec, Profile]:
    spec = job(
        study,
        space=SPACE,
        partition={"granularity": "layer"},
        profile=profile,
        search={"budgets": 20, "prune": False},
    )
    entropies = tuple(LayerEntropy(layer.name, 0.5, 0.5) for layer in LAYERS)
    ids = identities(study)
    info = ModelInfo(LAYERS, 0, entropies, Evaluation({}, {}), Footprint(0, 0), ids, {})
    lease = running(store, study)
    return spec, measure_profile(
        spec, store, lease, pool, info, reporter or NullReporter(), NullMetrics()
    )


def plans(spec: JobSpec, profile: Profile) -> list[dict[str, Option]]:
    return [
        {name: cell.option for name, cell in solution.choice.items()}
        for solution in ProxySearch(spec, profile).solutions
    ]


def test_every_cell_that_a_plan_uses_is_measured_and_few_others(store: Store) -> None:
    pool = Pool(wobble=0.2)

    spec, profile = profiled(store, pool, "digits", cells="adaptive")

    used = {
        (name, cell.option): cell
        for solution in ProxySearch(spec, profile).solutions
        for name, cell in solution.choice.items()
    }
    blocks = {block.name: block for block in profile.blocks}
    assert len(profile.cells) == 8 * 12
    assert not any(cell.is_estimate for cell in used.values())
    assert all(cell.error == true_error(blocks[name], o) for (name, o), cell in used.items())
    assert {(c.block, c.option) for c in profile.cells if not c.is_estimate} == set(pool.measured)
    assert len(pool.measured) == len(set(pool.measured)) < 8 * 12 * 2 / 3


def test_scores_in_true_proportion_lead_to_the_plans_of_all_cells(store: Store) -> None:
    """Each block's scores are off by a factor of its own, which one measured cell tells."""
    spec, adaptive = profiled(store, Pool(wobble=0.0), "digits", cells="adaptive")
    same, whole = profiled(store, Pool(wobble=0.0), "all", slack=0)

    assert plans(spec, adaptive) == plans(same, whole)


def test_where_no_block_has_two_layers_no_joint_cells_are_told_of(store: Store) -> None:
    pool, stages = Pool(wobble=0.0), Stages()

    profiled(store, pool, "digits", stages)

    assert stages.names == [f"single-layer cells: {8 * 12}"]
    assert len(pool.measured) == len(set(pool.measured)) == 8 * 12


@pytest.mark.parametrize("passes", [1, 10])
def test_no_more_cells_are_measured_than_allowed(store: Store, passes: int) -> None:
    pool = Pool(wobble=0.2)

    spec, profile = profiled(store, pool, "digits", cells="adaptive", max_passes=passes)

    assert len(pool.measured) == passes
    assert sum(not cell.is_estimate for cell in profile.cells) == passes
    records = ProxySearch(spec, profile).option_records()
    told = ["estimated_by" in record.certificate for record in records]
    assert told == [cell.is_estimate for cell in profile.cells]
    assert len(plans(spec, profile)) > 1


def test_a_resumed_profile_measures_nothing_again(store: Store) -> None:
    first, second = Pool(wobble=0.2), Pool(wobble=0.2)
    spec, before = profiled(store, first, "digits", cells="adaptive")
    store.create_study(job("other"), {})
    other = store.acquire("other", "another driver", 60)
    entropies = tuple(LayerEntropy(layer.name, 0.5, 0.5) for layer in LAYERS)
    ids = identities("digits")
    info = ModelInfo(LAYERS, 0, entropies, Evaluation({}, {}), Footprint(0, 0), ids, {})

    again = measure_profile(spec, store, other, second, info, NullReporter(), NullMetrics())

    assert second.measured == []
    assert again.cells == before.cells

"""The profile stage: blocks and cells of a model, each cell stored as it is measured."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from bitfront.identity.identities import CellKey, Identities
from bitfront.identity.keys import cell_key
from bitfront.kv_cache import KV_FULL, KvPlace
from bitfront.layers import Block, Layer
from bitfront.plan import Option
from bitfront.profile import Cell, PairTerm, Profile
from bitfront.spec import AllocatorKind, CellSelection, JobSpec
from search.cell_estimates import Place, corrected, most_used, place_of
from search.options import block_options, cache_options, screen, undominated
from search.partition import neighbouring, partition
from search.resources import counted_resources, measured_cells
from search.ties import ties_of
from service.study.clip_search import Clipping, has_clips
from service.study.proxy_search import ProxySearch
from service.views.progress import Reporter
from storage.records import Lease
from storage.store import Store
from workers.scheduling.metrics import Metrics
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.profiling_pool import ProfilingPool

# Cells handed to a worker at once: few enough that the workers end together.
_CHUNK = 8
# Rounds that a limited number of cells is measured in: each learns from the ones before.
_ROUNDS = 3
_SINGLE_CELLS = "single-layer cells"

_Work = Sequence[tuple[Block, Sequence[Option]]]


@dataclass(slots=True)
class _Measuring:
    """Measures cells that the database does not hold yet."""

    spec: JobSpec
    store: Store
    lease: Lease
    pool: ProfilingPool
    identities: Identities
    layers: Mapping[str, Layer]
    places: Mapping[str, KvPlace]
    reporter: Reporter
    metrics: Metrics

    def _key(self, block: Block, option: Option) -> CellKey:
        return cell_key(self.spec, self.identities, block, option)

    def cells(self, name: str, wanted: _Work) -> dict[str, dict[Option, Cell]]:
        """Every wanted cell, by block and option."""
        pairs = [(block, option) for block, options in wanted for option in options]
        keys = [self._key(block, option) for block, option in pairs]
        known = self.store.cells(keys)
        found: dict[str, dict[Option, Cell]] = {block.name: {} for block, _ in wanted}
        missing: dict[Block, list[Option]] = {}
        for (block, option), key in zip(pairs, keys, strict=True):
            cell = known.get(key.digest)
            if cell is None:
                missing.setdefault(block, []).append(option)
            else:
                found[block.name][option] = self._completed(cell, block)
        self.reporter.stage(name, total=len(pairs))
        reused = len(pairs) - sum(map(len, missing.values()))
        self.reporter.advance(reused)
        self.metrics.cells_reused(reused)
        self._measure(missing, found)
        return found

    def scores(self, work: _Work) -> list[Cell]:
        """A cell for every option, with its score as the error, block by block."""
        found: dict[Place, Cell] = {}

        def keep(block: Block, cell: Cell) -> None:
            found[place_of(cell)] = self._completed(cell, block)
            self.reporter.advance()

        places = [(block.name, option) for block, options in work for option in options]
        self.reporter.stage("scores", total=len(places))
        self.pool.scores(work, keep)
        return [found[place] for place in places]

    def _completed(self, cell: Cell, block: Block) -> Cell:
        """A cell under this partition's name of the same layers, with what follows from the job."""
        if block.is_cache:
            form, tokens = cell.option.form, self.spec.context_tokens
            assert form is not None
            counted = None if tokens is None else self.places[block.name].nbytes(form, tokens)
            return replace(cell, weight_bits=0, kv_nbytes=counted)
        layers = [self.layers[name] for name in block.layers]
        members = zip(layers, cell.option.bits, strict=True)
        weight_bits = sum(layer.weights * bits for layer, bits in members)
        return replace(cell, block=block.name, weight_bits=weight_bits, kv_nbytes=0)

    def _measure(
        self, missing: Mapping[Block, list[Option]], found: dict[str, dict[Option, Cell]]
    ) -> None:
        last_s = time.perf_counter()

        def keep(block: Block, cell: Cell) -> None:
            nonlocal last_s
            now_s = time.perf_counter()
            key = self._key(block, cell.option)
            self.store.put_cells(self.lease, [(key, cell, now_s - last_s)])
            last_s = now_s
            found[block.name][cell.option] = self._completed(cell, block)
            self.reporter.advance()

        work = [
            (block, options[start : start + _CHUNK])
            for block, options in missing.items()
            for start in range(0, len(options), _CHUNK)
        ]
        self.pool.cells(work, keep)


def measure_profile(
    spec: JobSpec,
    store: Store,
    lease: Lease,
    pool: ProfilingPool,
    model_info: ModelInfo,
    reporter: Reporter,
    metrics: Metrics,
) -> Profile:
    """Partitions the model and measures its cells; what is stored is not measured again.

    Where all cells are measured, single layers come first; they predict which joint options of a
    block are worth measuring (`ProfileSpec.slack`). Pairs of blocks come last, where the
    program asks for them.
    """
    ties = ties_of(spec.target, model_info.layers)
    blocks = partition(model_info.layers, model_info.entropies, spec.partition, ties)
    cache = cache_options(model_info.cache, spec.space)
    store.save_profile(
        lease,
        model_info.layers,
        (*blocks, *cache),
        model_info.entropies,
        fixed_nbytes=model_info.fixed_nbytes,
    )
    layers = {layer.name: layer for layer in model_info.layers}
    ids = model_info.identities
    places = {place.name: place for place in model_info.cache}
    measuring = _Measuring(spec, store, lease, pool, ids, layers, places, reporter, metrics)
    options = {
        block.name: block_options(block, model_info.layers, spec.space, spec.quantizer, ties)
        for block in blocks
    }
    is_adaptive = spec.profile.cells is CellSelection.ADAPTIVE
    is_joint = any(len(block.layers) > 1 for block in blocks)
    if is_joint and spec.profile.slack and not is_adaptive:
        singles = _measure_singles(measuring, blocks, layers, options)
        options = {
            block.name: screen(block, options[block.name], singles, spec.profile.slack)
            for block in blocks
        }
    kept = measuring.cells("cells of the KV cache", list(cache.items())) if cache else {}
    work = [(block, options[block.name]) for block in blocks]
    if is_adaptive:
        found = _measure_used(measuring, model_info, work, kept)
    else:
        found = measuring.cells("joint cells" if is_joint else _SINGLE_CELLS, work)
    if has_clips(spec):
        clipping = Clipping(spec, store, lease, pool, model_info, reporter)
        worthy = {name: [c.option for c in _worthy(spec, known)] for name, known in found.items()}
        chosen = clipping.choose(blocks, worthy)
        work = [(block, list(dict.fromkeys(chosen[block.name]))) for block in blocks]
        for name, clipped in measuring.cells("cells with clips", work).items():
            found[name] |= clipped
    cells = [found[block.name][option] for block in blocks for option in found[block.name]]
    profile = _profile(spec, model_info, blocks, cells, kept)
    if spec.search.allocator is not AllocatorKind.PAIRWISE:
        return profile
    worthy_cells = {name: _worthy(spec, known) for name, known in found.items()}
    return replace(profile, pairs=_measure_pairs(measuring, blocks, worthy_cells))


def _profile(
    spec: JobSpec,
    model_info: ModelInfo,
    blocks: Sequence[Block],
    cells: Sequence[Cell],
    kept: Mapping[str, Mapping[Option, Cell]],
) -> Profile:
    """The profile of blocks of layers with their cells, and of the KV cache with its own."""
    tokens = spec.context_tokens or 0
    fixed = [place for place in model_info.cache if place.name not in kept]
    return Profile(
        model_info.layers,
        (*blocks, *map(Block.of_place, kept)),
        (*cells, *(cell for own in kept.values() for cell in own.values())),
        model_info.fixed_nbytes,
        model_info.fixed_times,
        fixed_kv_nbytes=sum(place.nbytes(KV_FULL, tokens) for place in fixed),
    )


def _measure_used(
    measuring: _Measuring,
    model_info: ModelInfo,
    work: _Work,
    kept: Mapping[str, Mapping[Option, Cell]],
) -> dict[str, dict[Option, Cell]]:
    """Scores every option, and measures those that the program uses at some budget.

    Each round solves the program over what is known, and measures the cells that its plans use
    and nobody measured yet, those of most plans first.
    """
    spec = measuring.spec
    blocks = {block.name: block for block, _ in work}
    # Nothing is proven of cells that are estimates: a round asks for the plans alone.
    unpruned = spec.search.model_copy(update={"prune": False})
    asked = spec.model_copy(update={"search": unpruned})
    scored = measuring.scores(work)
    measured: dict[Place, Cell] = {}
    while True:
        cells = corrected(scored, measured)
        profile = _profile(spec, model_info, tuple(blocks.values()), cells, kept)
        search = ProxySearch(asked, profile)
        wanted = most_used(solution.choice for solution in search.solutions)
        if spec.profile.max_passes is not None:
            left = spec.profile.max_passes - len(measured)
            wanted = wanted[: min(left, max(1, spec.profile.max_passes // _ROUNDS))]
        if not wanted:
            break
        options: dict[str, list[Option]] = {}
        for cell in wanted:
            options.setdefault(cell.block, []).append(cell.option)
        found = measuring.cells(
            "cells that the program uses", [(blocks[name], own) for name, own in options.items()]
        )
        measured |= {place_of(cell): cell for own in found.values() for cell in own.values()}
    by_option: dict[str, dict[Option, Cell]] = {name: {} for name in blocks}
    for cell in cells:
        by_option[cell.block][cell.option] = cell
    return by_option


def _worthy(spec: JobSpec, cells: Mapping[Option, Cell]) -> list[Cell]:
    """The measured cells that no other one of their block dominates, in every cost that counts."""
    resources = counted_resources(spec)
    known = [cell for cell in cells.values() if not cell.is_estimate]
    return undominated(measured_cells(known, resources), resources)


def _measure_pairs(
    measuring: _Measuring, blocks: Sequence[Block], worthy: Mapping[str, Sequence[Cell]]
) -> tuple[PairTerm, ...]:
    """Every two undominated options of neighbouring blocks of a tower, measured together.

    The two are measured as one block of their layers, and kept as such.
    """
    neighbours = neighbouring(blocks)
    both = {
        (one, other): Block(f"{one.name} + {other.name}", one.tower, one.layers + other.layers)
        for one, other in neighbours
    }
    options = {
        pair: {
            (first, second): Option(first.option.precisions + second.option.precisions)
            for first, second in product(worthy[pair[0].name], worthy[pair[1].name])
        }
        for pair in neighbours
    }
    found = measuring.cells(
        "pairs of options", [(both[pair], [*options[pair].values()]) for pair in neighbours]
    )
    return tuple(
        PairTerm(first, second, found[both[pair].name][option].error - first.error - second.error)
        for pair in neighbours
        for (first, second), option in options[pair].items()
    )


def _measure_singles(
    measuring: _Measuring,
    blocks: Sequence[Block],
    layers: Mapping[str, Layer],
    options: Mapping[str, Sequence[Option]],
) -> dict[str, dict[Option, Cell]]:
    """Each layer of each block alone, at every precision that some option gives it."""
    wanted: list[tuple[Block, Sequence[Option]]] = []
    for block in blocks:
        for position, name in enumerate(block.layers):
            alone = Block(name, layers[name].tower, (name,))
            precisions = {option.precisions[position] for option in options[block.name]}
            wanted.append((alone, [Option((precision,)) for precision in sorted(precisions)]))
    return measuring.cells(_SINGLE_CELLS, wanted)

"""The profile stage: blocks and cells of a model, each cell stored as it is measured."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bitfront.identity.identities import CellKey, Identities
from bitfront.identity.keys import cell_key
from bitfront.layers import Block, Layer
from bitfront.plan import Option
from bitfront.profile import Cell, Profile
from bitfront.spec import JobSpec
from search.options import block_options, screen, undominated
from search.partition import partition
from search.resources import counted_resources, measured_cells
from service.study.clip_search import Clipping, has_clips
from service.views.progress import Reporter
from storage.records import Lease
from storage.store import Store
from workers.scheduling.metrics import Metrics
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.profiling_pool import ProfilingPool

# Cells handed to a worker at once: few enough that the workers end together.
_CHUNK = 8

_Work = list[tuple[Block, Sequence[Option]]]


@dataclass(slots=True)
class _Measuring:
    """Measures cells that the database does not hold yet."""

    spec: JobSpec
    store: Store
    lease: Lease
    pool: ProfilingPool
    identities: Identities
    layers: Mapping[str, Layer]
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

    def _completed(self, cell: Cell, block: Block) -> Cell:
        """A stored cell under this partition's name of the same layers."""
        layers = [self.layers[name] for name in block.layers]
        members = zip(layers, cell.option.precisions, strict=True)
        weight_bits = sum(layer.weights * precision.weight_bits for layer, precision in members)
        return replace(cell, block=block.name, weight_bits=weight_bits)

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
            found[block.name][cell.option] = cell
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

    Single layers come first; they predict which joint options of a block are worth
    measuring (`ProfileSpec.slack`).
    """
    blocks = partition(model_info.layers, model_info.entropies, spec.partition)
    store.save_profile(
        lease, model_info.layers, blocks, model_info.entropies, fixed_nbytes=model_info.fixed_nbytes
    )
    layers = {layer.name: layer for layer in model_info.layers}
    ids = model_info.identities
    measuring = _Measuring(spec, store, lease, pool, ids, layers, reporter, metrics)
    options = {block.name: block_options(block, model_info.layers, spec.space) for block in blocks}
    if spec.profile.slack:
        singles = _measure_singles(measuring, blocks, layers, options)
        options = {
            block.name: screen(block, options[block.name], singles, spec.profile.slack)
            for block in blocks
        }
    found = measuring.cells("joint cells", [(block, options[block.name]) for block in blocks])
    if has_clips(spec):
        clipping = Clipping(spec, store, lease, pool, model_info, reporter)
        worthy = {name: [c.option for c in _worthy(spec, known)] for name, known in found.items()}
        chosen = clipping.choose(blocks, worthy)
        work: _Work = [(block, list(dict.fromkeys(chosen[block.name]))) for block in blocks]
        for name, clipped in measuring.cells("cells with clips", work).items():
            found[name] |= clipped
    cells = tuple(found[block.name][option] for block in blocks for option in found[block.name])
    return Profile(
        model_info.layers,
        blocks,
        cells,
        model_info.fixed_nbytes,
        model_info.fixed_latency_s,
    )


def _worthy(spec: JobSpec, cells: Mapping[Option, Cell]) -> list[Cell]:
    """The cells that no other one of their block dominates, in every cost that counts."""
    resources = counted_resources(spec)
    return undominated(measured_cells(list(cells.values()), resources), resources)


def _measure_singles(
    measuring: _Measuring,
    blocks: Sequence[Block],
    layers: Mapping[str, Layer],
    options: Mapping[str, Sequence[Option]],
) -> dict[str, dict[Option, Cell]]:
    """Each layer of each block alone, at every precision that some option gives it."""
    wanted: _Work = []
    for block in blocks:
        for position, name in enumerate(block.layers):
            alone = Block(name, layers[name].tower, (name,))
            precisions = {option.precisions[position] for option in options[block.name]}
            wanted.append((alone, [Option((precision,)) for precision in sorted(precisions)]))
    return measuring.cells("single-layer cells", wanted)

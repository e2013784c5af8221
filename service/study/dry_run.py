"""A dry run: a job's model loaded and looked at, a few cells and trials timed, nothing stored."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

from bitfront.choices import layer_precisions
from bitfront.layers import Block, Layer
from bitfront.plan import Configuration, Distillation, Option, Plan, Recovery
from bitfront.spec import AllocatorKind, CellSelection, JobSpec, RecoverySpace
from search.keep import check_keep
from search.options import block_options, cache_options
from search.partition import neighbouring, partition
from search.ties import ties_of
from service.study.room import trials_nbytes
from service.views.dry_run import DryRun
from workers.scheduling.placement import plan_nbytes

_TIMED_OPTIONS = 3


def dry_run(spec: JobSpec, on_stage: Callable[[str], None]) -> DryRun:
    """Loads and calibrates a job's model in this process, and times a few cells and trials.

    Raises:
        BitfrontError: The model or the data cannot be used.
    """
    from workers.process.model_cache import inspected
    from workers.process.timing import time_parts
    from workers.scheduling.worker_config import WorkerConfig

    config = WorkerConfig(spec)
    started_s = time.perf_counter()
    info = inspected(config, on_stage)
    start_s = time.perf_counter() - started_s
    ties = ties_of(spec.target, info.layers)
    check_keep(info.layers, spec.space, ties)
    on_stage("time two blocks and a trial")
    blocks = partition(info.layers, info.entropies, spec.partition, ties)
    options = {
        block.name: block_options(block, info.layers, spec.space, spec.quantizer, ties)
        for block in blocks
    }
    cache = cache_options(info.cache, spec.space)
    timed = [
        (block, _spread(options[block.name])) for block in dict.fromkeys((blocks[0], blocks[-1]))
    ]
    first, last = (
        Plan.from_options(
            [(block, options[block.name][place]) for block in blocks]
            + [(block, own[place]) for block, own in cache.items()]
        )
        for place in (0, -1)
    )
    distil, space = spec.space.distil, spec.space.p4q
    recovered = None
    if spec.space.recovery is not None:
        shortest = None if distil is None else Distillation(steps=min(distil.steps))
        recovered = Configuration(
            replace(last, distil=shortest), None if space is None else _shortest(space)
        )
    times = time_parts(config, timed, Configuration(first), recovered)
    recovery_s = times.recovery_s
    if recovery_s is not None:
        kinds = [one.steps for one in (distil, space) if one is not None]
        recovery_s *= max(max(steps) / min(steps) for steps in kinds)
    return DryRun(
        layers=len(info.layers),
        weights=sum(layer.weights for layer in info.layers),
        blocks=len(blocks) + len(cache),
        options=max(map(len, options.values())),
        log10_plans=sum(map(math.log10, map(len, (*options.values(), *cache.values())))),
        cells=_count_cells(spec, blocks, info.layers, options) + sum(map(len, cache.values())),
        start_s=start_s,
        cell_s=times.cell_s,
        trials=spec.stop.trials,
        trial_s=times.trial_s,
        recovery_s=recovery_s,
        workers=spec.search.workers,
        worker_nbytes=plan_nbytes(info.footprint, info.layers, spec),
        disk_nbytes=trials_nbytes(spec),
    )


def _spread(options: Sequence[Option]) -> list[Option]:
    """A few options, spread evenly over all of them."""
    count = min(_TIMED_OPTIONS, len(options))
    return [options[place * (len(options) - 1) // max(1, count - 1)] for place in range(count)]


def _shortest(space: RecoverySpace) -> Recovery:
    """The space's recovery with the fewest steps, and the largest of every other setting."""
    largest = {name: max(getattr(space, name)) for name in ("context_length", "views")}
    largest["shots"] = 0 if 0 in space.shots else max(space.shots)  # 0 takes every sample
    reductions = [reduction for reduction in space.reduction if reduction]
    settings = {field.name: getattr(space, field.name)[0] for field in fields(Recovery)}
    settings |= largest
    settings |= {"steps": min(space.steps), "reduction": min(reductions, default=0)}
    return Recovery(**settings).canonical


def _count_cells(
    spec: JobSpec,
    blocks: Sequence[Block],
    layers: Sequence[Layer],
    options: Mapping[str, Sequence[Option]],
) -> int:
    """The most cells that are measured: of every option of every block, and of layers alone.

    Where pairs count, every two options of neighbouring blocks are cells too. Where only those
    are measured that the program uses, `max_passes` limits them.
    """
    joint = sum(map(len, options.values()))
    if spec.search.allocator is AllocatorKind.PAIRWISE:
        joint += sum(
            len(options[one.name]) * len(options[other.name]) for one, other in neighbouring(blocks)
        )
    if spec.profile.cells is CellSelection.ADAPTIVE:
        return min(joint, spec.profile.max_passes or joint)
    known = {layer.name: layer for layer in layers}
    alone = sum(
        len(layer_precisions(known[name], spec.space, spec.quantizer))
        for block in blocks
        if len(block.layers) > 1
        for name in block.layers
    )
    return joint + (alone if spec.profile.slack else 0)

"""What the parts of a study take on this machine: a few of them done once, and timed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from bitfront.layers import Block
from bitfront.plan import Configuration, Option, Plan, Recovery
from workers.process.model_cache import cell_meter, evaluator
from workers.scheduling.worker_config import WorkerConfig


@dataclass(frozen=True, slots=True)
class PartTimes:
    """Seconds of one process with one thread, or with a GPU.

    Attributes:
        cell_s: A cell, the mean of the blocks that were timed.
        trial_s: A trial without a recovery.
        recovery_s: What a recovery adds to it; None where none was asked for.
    """

    cell_s: float
    trial_s: float
    recovery_s: float | None


def time_parts(
    config: WorkerConfig,
    samples: Sequence[tuple[Block, Sequence[Option]]],
    plan: Plan,
    recovery: Recovery | None,
) -> PartTimes:
    """Measures cells and trials of a job that `inspect` has loaded here.

    Args:
        config: The job.
        samples: Blocks with at least two options each; the first option of each is not counted,
            because what it fills caches with serves all others.
        plan: A trial's, with every layer's precision.
        recovery: A trial's, or None.
    """
    loaded, meter = evaluator(config), cell_meter(config)
    threads = torch.get_num_threads()
    if loaded.model.device.type == "cpu":
        torch.set_num_threads(1)  # as Ray's workers have it
    try:
        cells = [
            fmean([_seconds(meter.measure, block, option) for option in options][1:])
            for block, options in samples
        ]
        trial_s = _seconds(loaded.evaluate, Configuration(plan))
        recovered_s = (
            None
            if recovery is None
            else _seconds(loaded.evaluate, Configuration(plan, recovery.canonical))
        )
    finally:
        torch.set_num_threads(threads)
    return PartTimes(fmean(cells), trial_s, recovered_s)


def _seconds(function: Callable[..., object], *arguments: object) -> float:
    started_s = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started_s

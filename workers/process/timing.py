"""What the parts of a study take on this machine: a few of them done once, and timed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from bitfront.layers import Block
from bitfront.plan import Configuration, Option
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
    trial: Configuration,
    recovered: Configuration | None,
) -> PartTimes:
    """Measures cells and trials of a job that `inspect` has loaded here.

    Args:
        config: The job.
        samples: Blocks with options; the first option of each is measured once before it is
            timed, because what it fills caches with serves all others.
        trial: A configuration without a recovery.
        recovered: One of another plan, so that it knows as little, with a recovery; or None.
    """
    loaded, meter = evaluator(config), cell_meter(config)
    threads = torch.get_num_threads()
    if loaded.model.device.type == "cpu":
        torch.set_num_threads(1)  # as Ray's workers have it
    try:
        cells = []
        for block, options in samples:
            meter.measure(block, options[0])
            cells.append(fmean(_seconds(meter.measure, block, option) for option in options))
        trial_s = _seconds(loaded.evaluate, trial)
        recovery_s = None
        if recovered is not None:
            recovery_s = max(0.0, _seconds(loaded.evaluate, recovered) - trial_s)
    finally:
        torch.set_num_threads(threads)
    return PartTimes(fmean(cells), trial_s, recovery_s)


def _seconds(function: Callable[..., object], *arguments: object) -> float:
    started_s = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started_s

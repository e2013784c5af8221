"""Profiles and evaluates in this process, as a study does on a cluster."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bitfront.layers import Block
from bitfront.plan import Option, Plan
from bitfront.profile import Cell, ClipChoice, Profile
from bitfront.spec import JobSpec
from objectives.profiling.clips import walk
from service.study.profiling import measure_profile
from storage.store import open_store
from tests.support.reporters import NullReporter
from workers.process import model_cache
from workers.scheduling.metrics import NullMetrics
from workers.scheduling.worker_config import WorkerConfig


class InProcess:
    """A `ProfilingPool` of this process alone, without Ray."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config

    def cells(
        self,
        work: Sequence[tuple[Block, Sequence[Option]]],
        on_cell: Callable[[Block, Cell], None],
    ) -> None:
        """Measures every option of every block."""
        meter = model_cache.cell_meter(self.config)
        for block, options in work:
            for option in options:
                on_cell(block, meter.measure(block, option))

    def scores(
        self,
        work: Sequence[tuple[Block, Sequence[Option]]],
        on_cell: Callable[[Block, Cell], None],
    ) -> None:
        """Estimates every option of every block."""
        meter = model_cache.score_meter(self.config)
        for block, options in work:
            for option in options:
                on_cell(block, replace(meter.measure(block, option), is_estimate=True))

    def walk_clips(
        self, chains: Sequence[Sequence[tuple[Block, Option]]]
    ) -> list[list[ClipChoice]]:
        """The clips of the blocks of each chain."""
        search = model_cache.clip_search(self.config)
        found = []
        for chain in chains:
            options = {block.name: option for block, option in chain}
            found.append(list(walk(search, [block for block, _ in chain], options).values()))
        return found

    def clips(
        self,
        work: Sequence[tuple[Block, Sequence[Option]]],
        prefix: Plan,
        on_choice: Callable[[Block, tuple[Option, ClipChoice]], None],
    ) -> None:
        """Searches the clips of options."""
        search = model_cache.clip_search(self.config)
        for block, options in work:
            for option in options:
                on_choice(block, (option, search.joint(block, option, prefix)))


def profile(spec: JobSpec) -> tuple[Profile, float]:
    """The profile of a job's model, and the seconds that measuring it took."""
    config = WorkerConfig(spec)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{folder}/bitfront.db")
        store.create_study(spec, {})
        lease = store.acquire(spec.study, "benchmark", 3600)
        started_s = time.perf_counter()
        info = model_cache.inspected(config)
        measured = measure_profile(
            spec, store, lease, InProcess(config), info, NullReporter(), NullMetrics()
        )
        return measured, time.perf_counter() - started_s

"""Profiles and evaluates in this process, as a study does on a cluster."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from bitfront.attempt import IntermediateValue
from bitfront.files import SharedPath
from bitfront.layers import Block
from bitfront.plan import Configuration, Option, Plan
from bitfront.profile import Cell, ClipChoice, Profile
from bitfront.spec import JobSpec
from bitfront.trial import Evaluation
from objectives.data.split_name import SplitName
from objectives.profiling.clips import walk
from service.study.heartbeat import StopSignals
from service.study.pipeline import Run
from service.study.profiling import measure_profile
from service.study.spools import study_spool
from storage.store import open_store
from tests.support.reporters import NullReporter
from workers.process import model_cache
from workers.process.trial_worker import TrialTask, TrialWorker
from workers.scheduling.metrics import NullMetrics
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.spool import Spool
from workers.scheduling.trial_scheduler import TrialScheduler
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


class InProcessPool(InProcess):
    """A `StudyPool` of this process alone: one worker, whose calls are plain ones."""

    notes: Sequence[str] = ()

    def place(self, model_info: ModelInfo) -> None:
        """Everything is here already."""

    def use_bounds(self, bounds: Mapping[str, object]) -> None:
        """Uses the learned bounds from now on."""
        self.config = replace(self.config, bounds=bounds)

    def inspect(self, on_stage: Callable[[str], None]) -> ModelInfo:
        """Loads the model."""
        return model_cache.inspected(self.config, on_stage)

    def optimise_vision(self, checkpoint: SharedPath) -> dict[str, object]:
        """Learns the bounds of the vision tower's inputs."""
        return model_cache.optimise(self.config, checkpoint)

    def test(self, configurations: Iterable[Configuration]) -> Iterator[tuple[int, Evaluation]]:
        """Evaluates configurations on the test split, in order."""
        for position, configuration in enumerate(configurations):
            evaluator = model_cache.evaluator(self.config)
            yield position, evaluator.evaluate(configuration, SplitName.TEST)

    def run_trials(
        self, scheduler: TrialScheduler, spool: Spool, cancelled: threading.Event
    ) -> None:
        """Runs one trial after the other."""
        worker = TrialWorker()
        while not scheduler.is_finished and not cancelled.is_set():
            attempt = scheduler.next()
            if attempt is None:
                return
            task = TrialTask(
                scheduler.study,
                scheduler.epoch,
                self.config,
                str(spool.folder),
                attempt,
                scheduler.pruner(),
                scheduler.race(attempt),
            )
            reply = worker.begin(task)
            while isinstance(reply.content, IntermediateValue):
                scheduler.report(attempt, reply.content)
                reply = worker.resume()
            scheduler.finish(attempt, reply.content)


def search(spec: JobSpec, url: str) -> None:
    """Runs a study from its profile to its front in this process, in the database at `url`."""
    store = open_store(url)
    store.create_study(spec, {})
    lease = store.acquire(spec.study, "benchmark", 3600)
    with closing(study_spool(url, store.study(spec.study))) as spool:
        pool, metrics = InProcessPool(WorkerConfig(spec)), NullMetrics()
        run = Run(spec, store, lease, StopSignals(), NullReporter(), spool, pool, metrics)
        run.drive(accept_changes=False)
        store.release(lease, run.state, run.message)


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

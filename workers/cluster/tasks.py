"""Work as Ray tasks: what the model is, its bounds, clips and cells, its front on test data."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import ray

from bitfront.errors import Interrupted
from bitfront.files import SharedPath
from bitfront.layers import Block
from bitfront.plan import Configuration, Option, Plan
from bitfront.profile import Cell, ClipChoice
from bitfront.spec import ClipSearchKind, JobSpec
from bitfront.trial import Evaluation
from workers.cluster.connection import node_resources
from workers.cluster.results import result_of
from workers.observability.metrics import timed
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.placement import first_placement, placement
from workers.scheduling.retries import MAX_LOST
from workers.scheduling.worker_config import WorkerConfig

Subject = TypeVar("Subject")

# How long a request to end may wait for the next result.
_PATIENCE_S = 0.5


def _inspect(config: WorkerConfig) -> Iterator[str | ModelInfo]:
    from workers.process import model_cache

    yield from model_cache.inspect(config)


def _measure(config: WorkerConfig, block: Block, options: Sequence[Option]) -> Iterator[Cell]:
    from workers.process import model_cache

    study = config.spec.study
    meter = model_cache.cell_meter(config)
    for option in options:
        with timed(study, "cells"):
            cell = meter.measure(block, option)
        yield cell


def _score(
    config: WorkerConfig, work: Sequence[tuple[Block, Sequence[Option]]]
) -> Iterator[tuple[Block, Cell]]:
    from workers.process import model_cache

    meter = model_cache.score_meter(config)
    for block, options in work:
        for option in options:
            yield block, replace(meter.measure(block, option), is_estimate=True)


def _evaluate_on_test(config: WorkerConfig, configuration: Configuration) -> Evaluation:
    from objectives.data.split_name import SplitName
    from workers.process import model_cache

    evaluator = model_cache.evaluator(config)
    return evaluator.evaluate(configuration, SplitName.TEST)


def _optimise(config: WorkerConfig, checkpoint: SharedPath) -> dict[str, object]:
    from workers.process import model_cache

    bounds: dict[str, object] = model_cache.optimise(config, checkpoint)
    return bounds


def _walk(
    config: WorkerConfig, blocks: Sequence[Block], options: Sequence[Option]
) -> list[ClipChoice]:
    from objectives.profiling.clips import walk
    from workers.process import model_cache

    search = model_cache.clip_search(config)
    wanted = {block.name: option for block, option in zip(blocks, options, strict=True)}
    chosen = walk(search, blocks, wanted, joint=_is_joint(config))
    return [chosen[block.name] for block in blocks]


def _choose(
    config: WorkerConfig, block: Block, options: Sequence[Option], prefix: Plan
) -> Iterator[tuple[Option, ClipChoice]]:
    from workers.process import model_cache

    search = model_cache.clip_search(config)
    find = search.joint if _is_joint(config) else search.sequential
    for option in options:
        yield option, find(block, option, prefix)


def _is_joint(config: WorkerConfig) -> bool:
    return config.spec.profile.clip_search is ClipSearchKind.JOINT


class RayTasks:
    """Runs a job's tasks on the connected Ray cluster, each placed like a trial.

    Attributes:
        config: What every worker is told of the job.
        placement: What a worker takes of a node.
    """

    def __init__(self, spec: JobSpec, is_over: Callable[[], bool]) -> None:
        """Takes the job, and a question that is asked between results: shall it end?"""
        self._is_over = is_over
        self._spec = spec
        self.config = WorkerConfig(spec)
        self.placement = first_placement(spec, node_resources())

    @property
    def _options(self) -> dict[str, float]:
        # A lost node's tasks run again elsewhere.
        return {**self.placement.options, "max_retries": MAX_LOST}

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know of where the work is placed."""
        return self.placement.notes

    def place(self, model_info: ModelInfo) -> None:
        """Lets all later work ask for what the model was seen to need."""
        self.placement = placement(
            self._spec, node_resources(), model_info.footprint, model_info.layers
        )

    def use_bounds(self, bounds: Mapping[str, object]) -> None:
        """Tells all later work the learned bounds."""
        self.config = WorkerConfig(self._spec, bounds)

    def inspect(self, on_stage: Callable[[str], None]) -> ModelInfo:
        """Loads the model on a worker and returns what it is; tells each stage as it begins."""
        task = ray.remote(_inspect).options(num_returns="streaming", **self._options)
        found: list[ModelInfo] = []

        def hear(_: None, told: str | ModelInfo) -> None:
            if isinstance(told, str):
                on_stage(told)
            else:
                found.append(told)

        self._stream({task.remote(self.config): None}, hear)
        (info,) = found
        return info

    def optimise_vision(self, checkpoint: SharedPath) -> dict[str, object]:
        """Learns the bounds of the vision tower's inputs on a worker, as JSON content."""
        bounds: dict[str, object] = self._run(ray.remote(_optimise), self.config, checkpoint)
        return bounds

    def walk_clips(
        self, chains: Sequence[Sequence[tuple[Block, Option]]]
    ) -> list[list[ClipChoice]]:
        """The clips of the blocks of each chain, each block after those before it."""
        task = ray.remote(_walk).options(**self._options)
        pending = [
            task.remote(self.config, [block for block, _ in chain], [option for _, option in chain])
            for chain in chains
        ]
        waiting = pending
        while waiting:
            self._raise_if_over(waiting)
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_PATIENCE_S)
        chosen: list[list[ClipChoice]] = result_of(pending)
        return chosen

    def cells(
        self, work: Sequence[tuple[Block, Sequence[Option]]], on_cell: Callable[[Block, Cell], None]
    ) -> None:
        """Measures options block by block; each cell is handed over as soon as it is known."""
        task = ray.remote(_measure).options(num_returns="streaming", **self._options)
        self._stream(
            {task.remote(self.config, block, list(options)): block for block, options in work},
            on_cell,
        )

    def scores(
        self, work: Sequence[tuple[Block, Sequence[Option]]], on_cell: Callable[[Block, Cell], None]
    ) -> None:
        """Estimates options by the job's score, each tower in one task: it takes a pass."""
        task = ray.remote(_score).options(num_returns="streaming", **self._options)
        towers = defaultdict(list)
        for block, options in work:
            towers[block.tower].append((block, list(options)))
        self._stream(
            {task.remote(self.config, own): tower for tower, own in towers.items()},
            lambda _, found: on_cell(*found),
        )

    def clips(
        self,
        work: Sequence[tuple[Block, Sequence[Option]]],
        prefix: Plan,
        on_choice: Callable[[Block, tuple[Option, ClipChoice]], None],
    ) -> None:
        """Searches the clips of options block by block, after a prefix."""
        task = ray.remote(_choose).options(num_returns="streaming", **self._options)
        streams = {
            task.remote(self.config, block, list(options), prefix): block for block, options in work
        }
        self._stream(streams, on_choice)

    def _run(self, function: Any, *arguments: object) -> Any:  # noqa: ANN401 - Ray's are untyped
        task = function.options(**self._options).remote(*arguments)
        while not ray.wait([task], timeout=_PATIENCE_S)[0]:
            self._raise_if_over([task])
        return result_of(task)

    def _stream(
        self, streams: dict[Any, Subject], on_result: Callable[[Subject, Any], None]
    ) -> None:
        """Hands every result of every stream over as soon as it is there."""
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=_PATIENCE_S)
            self._raise_if_over(list(streams))
            for stream in ready:
                try:
                    reference = next(cast("ray.ObjectRefGenerator", stream))
                except StopIteration:
                    del streams[stream]
                else:
                    on_result(streams[stream], result_of(reference))

    def test(self, configurations: Iterable[Configuration]) -> Iterator[tuple[int, Evaluation]]:
        """Evaluates configurations on the test split; yields (position, evaluation)."""
        task = ray.remote(_evaluate_on_test).options(**self._options)
        pending = {
            task.remote(self.config, configuration): position
            for position, configuration in enumerate(configurations)
        }
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=_PATIENCE_S)
            self._raise_if_over(list(pending))
            for reference in ready:
                yield pending.pop(reference), result_of(reference)

    def _on_wait(self) -> None:
        """Called while results are waited for."""

    def _raise_if_over(self, tasks: Iterable[ray.ObjectRef[Any]]) -> None:
        self._on_wait()
        if self._is_over():
            for task in tasks:
                ray.cancel(task, force=False)
            raise Interrupted

"""Profile work as Ray tasks: what the model is, its cells, and the front on the test split."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import ray

from bitfront.errors import Interrupted
from bitfront.layers import Block
from bitfront.plan import Configuration, Option
from bitfront.profile import Cell
from bitfront.spec import JobSpec
from bitfront.trial import Evaluation
from workers.report import ModelReport

# How long a request to end may wait for the next result.
_PATIENCE_S = 0.5


def _inspect(spec_json: str) -> ModelReport:
    from workers import resident

    report: ModelReport = resident.inspect(spec_json)
    return report


def _measure(spec_json: str, block: Block, options: Sequence[Option]) -> Iterator[Cell]:
    from workers import resident

    meter = resident.cell_meter(spec_json)
    for option in options:
        yield meter.measure(block, option)


def _evaluate_on_test(spec_json: str, configuration: Configuration) -> Evaluation:
    from objectives.task import SplitName
    from workers import resident

    evaluator = resident.evaluator(spec_json)
    return evaluator.evaluate(configuration, SplitName.TEST)


class TaskPool:
    """Runs a job's tasks on the connected Ray cluster, one CPU (and GPU share) each."""

    def __init__(self, spec: JobSpec, is_over: Callable[[], bool]) -> None:
        """Takes the job, and a question that is asked between results: shall it end?"""
        self._is_over = is_over
        self._spec_json = spec.model_dump_json()
        self._options = {
            "num_cpus": 1,
            "num_gpus": spec.search.gpus_per_worker,
            # A lost node's tasks run again elsewhere.
            "max_retries": 3,
        }

    def inspect(self) -> ModelReport:
        """Loads the model on a worker and reports what it is."""
        task = ray.remote(_inspect).options(**self._options).remote(self._spec_json)
        while not ray.wait([task], timeout=_PATIENCE_S)[0]:
            self._raise_if_over([task])
        return ray.get(task)

    def cells(
        self, work: Sequence[tuple[Block, Sequence[Option]]], on_cell: Callable[[Block, Cell], None]
    ) -> None:
        """Measures options block by block; each cell is handed over as soon as it is known."""
        task = ray.remote(_measure).options(num_returns="streaming", **self._options)
        streams = {
            task.remote(self._spec_json, block, list(options)): block for block, options in work
        }
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=_PATIENCE_S)
            self._raise_if_over(list(streams))
            for stream in ready:
                try:
                    reference = next(cast("ray.ObjectRefGenerator", stream))
                except StopIteration:
                    del streams[stream]
                else:
                    on_cell(streams[stream], ray.get(reference))

    def test(self, configurations: Iterable[Configuration]) -> Iterator[tuple[int, Evaluation]]:
        """Evaluates configurations on the test split; yields (position, evaluation)."""
        task = ray.remote(_evaluate_on_test).options(**self._options)
        pending = {
            task.remote(self._spec_json, configuration): position
            for position, configuration in enumerate(configurations)
        }
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=_PATIENCE_S)
            self._raise_if_over(list(pending))
            for reference in ready:
                yield pending.pop(reference), ray.get(reference)

    def _raise_if_over(self, tasks: Iterable[ray.ObjectRef[Any]]) -> None:
        if self._is_over():
            for task in tasks:
                ray.cancel(task, force=False)
            raise Interrupted

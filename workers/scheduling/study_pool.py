"""What a study asks of its workers; `workers/cluster/ray_pool.py` does it on a Ray cluster."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from bitfront.files import SharedPath
from bitfront.plan import Configuration
from bitfront.trial import Evaluation
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.profiling_pool import ProfilingPool
from workers.scheduling.spool import Spool
from workers.scheduling.trial_scheduler import TrialScheduler


class StudyPool(ProfilingPool, Protocol):
    """All the work of a study. A method raises `Interrupted` when the study is to end."""

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know of where the work is placed."""

    def place(self, model_info: ModelInfo) -> None:
        """Lets all later work ask for what the model was seen to need."""

    def use_bounds(self, bounds: Mapping[str, object]) -> None:
        """Tells all later work the learned bounds."""

    def inspect(self, on_stage: Callable[[str], None]) -> ModelInfo:
        """Loads the model on a worker and returns what it is; tells each stage as it begins."""

    def optimise_vision(self, checkpoint: SharedPath) -> dict[str, object]:
        """Learns the bounds of the vision tower's inputs on a worker, as JSON content."""

    def test(self, configurations: Iterable[Configuration]) -> Iterator[tuple[int, Evaluation]]:
        """Evaluates configurations on the test split; yields (position, evaluation)."""

    def run_trials(
        self, scheduler: TrialScheduler, spool: Spool, cancelled: threading.Event
    ) -> None:
        """Runs trials until the scheduler has no more, or until `cancelled` is set.

        Raises:
            NoWorkers: Workers end as soon as they start, again and again.
            BitfrontError: What the scheduler raised: a lost lease, too many failures.
        """

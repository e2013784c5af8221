"""A study's workers on the connected Ray cluster, of which it may take a fair share."""

import threading
from collections.abc import Callable

from bitfront.spec import JobSpec
from workers.cluster.connection import node_resources
from workers.cluster.fair_share import FairShare
from workers.cluster.tasks import RayTasks
from workers.cluster.worker_pool import run_trials
from workers.scheduling.spool import Spool
from workers.scheduling.trial_scheduler import TrialScheduler


class RayPool(RayTasks):
    """Runs a study's tasks and trials; see `workers.scheduling.study_pool.StudyPool`.

    While tasks run, the other studies on the cluster hear that this one is alive.
    """

    def __init__(
        self, spec: JobSpec, is_over: Callable[[], bool], *, sharing_as: str | None = None
    ) -> None:
        """Takes the job.

        Args:
            spec: The job.
            is_over: Asked between results: shall the study end?
            sharing_as: The driver's name, unique on the cluster, if it takes only its fair
                share; None where the cluster is its own.
        """
        super().__init__(spec, is_over)
        self._search = spec.search
        self._share: FairShare | None = None
        if sharing_as is not None:
            self._share = FairShare(sharing_as, spec.search.workers, self._slots)

    def run_trials(
        self, scheduler: TrialScheduler, spool: Spool, cancelled: threading.Event
    ) -> None:
        """Runs trials until the scheduler has no more, or until `cancelled` is set."""
        run_trials(
            scheduler,
            self._search,
            self.config,
            spool,
            cancelled,
            place=self.placement,
            share=self._share,
        )

    def leave(self) -> None:
        """Lets other studies on the cluster have what this one used."""
        if self._share is not None:
            self._share.leave()

    def _on_wait(self) -> None:
        if self._share is not None:
            self._share.renew()

    def _slots(self) -> int:
        return self.placement.slots(node_resources())

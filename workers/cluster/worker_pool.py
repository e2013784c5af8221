"""Dispatching trials: a pool of workers that grows and shrinks with the cluster."""

import logging
import threading
import time
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError

from bitfront.attempt import Attempt, IntermediateValue
from bitfront.errors import NoWorkers, UnusableSpool
from bitfront.spec import SearchSpec
from workers.cluster.fair_share import FairShare
from workers.process.trial_worker import Reply, TrialTask, TrialWorker
from workers.scheduling.failures import failed_by
from workers.scheduling.placement import ONE_CPU, Placement
from workers.scheduling.spool import Spool
from workers.scheduling.trial_scheduler import TrialScheduler
from workers.scheduling.worker_config import WorkerConfig

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""How long the workers of a cancelled study may take to save what they train."""

_POLL_S = 0.2  # how long a request to end, or a new node, may go unnoticed
_MOST_FAILED_STARTS = 20

_Worker = Any  # Ray's handles and references are untyped
_Reference = Any


def run_trials(
    scheduler: TrialScheduler,
    spec: SearchSpec,
    config: WorkerConfig,
    spool: Spool,
    cancelled: threading.Event,
    *,
    place: Placement = ONE_CPU,
    share: FairShare | None = None,
    worker: type[TrialWorker] = TrialWorker,
) -> None:
    """Runs trials until the scheduler has no more, or until `cancelled` is set.

    Needs a connection to Ray (`workers.cluster.connection.connected`).

    Args:
        scheduler: Decides what runs, and records what comes back.
        spec: How many workers are used.
        config: What every worker is told of the job.
        spool: Where workers leave results.
        cancelled: Ends what runs.
        place: What a worker takes of a node.
        share: What other studies on the cluster leave to this one; None if it is alone.
        worker: What evaluates.

    Raises:
        NoWorkers: Workers end as soon as they start, again and again.
        BitfrontError: What the scheduler raised: a lost lease, too many failures.
    """
    pool = _WorkerPool(scheduler, config, spool, place, worker)
    try:
        while not scheduler.is_finished and not cancelled.is_set():
            pool.resize(spec.workers if share is None else share.renew())
            pool.hand_out()
            pool.collect()
        if cancelled.is_set():
            pool.end()
    finally:
        pool.dismiss()


class _WorkerPool:
    """The workers of one study, each starting, idle, or busy with an attempt.

    An attempt is handed only to a worker that has started, so none waits for a node that may
    never come; and a worker that ends takes nothing with it but its own attempt.
    """

    def __init__(
        self,
        scheduler: TrialScheduler,
        config: WorkerConfig,
        spool: Spool,
        place: Placement,
        worker: type[TrialWorker],
    ) -> None:
        self._scheduler = scheduler
        self._config = config
        self._spool = spool
        self._actor = ray.remote(worker).options(**place.options)
        self._starting: dict[_Reference, _Worker] = {}
        self._idle: list[_Worker] = []
        self._busy: dict[_Reference, tuple[_Worker, Attempt]] = {}
        self._failed_starts = 0

    @property
    def _size(self) -> int:
        return len(self._starting) + len(self._idle) + len(self._busy)

    def resize(self, limit: int) -> None:
        """Starts workers up to the limit, or lets go of those that do nothing.

        There are never more than there are trials left. A worker that no node has room for
        waits with Ray, which an autoscaler takes for a wish.
        """
        wanted = min(limit, self._scheduler.left)
        while self._size < wanted:
            started: _Worker = self._actor.remote()
            self._starting[started.name.remote()] = started
        while self._size > wanted and (self._starting or self._idle):
            surplus = self._starting.popitem()[1] if self._starting else self._idle.pop()
            ray.kill(surplus)

    def hand_out(self) -> None:
        """Gives every idle worker an attempt, as long as there are some."""
        while self._idle:
            attempt = self._scheduler.next()
            if attempt is None:
                return
            worker = self._idle.pop()
            scheduler = self._scheduler
            task = TrialTask(
                scheduler.study,
                scheduler.epoch,
                self._config,
                str(self._spool.folder),
                attempt,
                scheduler.pruner(),
                scheduler.race(attempt),
            )
            self._busy[worker.begin.remote(task)] = (worker, attempt)

    def collect(self) -> None:
        """Takes in all that has come back; waits a moment for the first of it."""
        pending = [*self._busy, *self._starting]
        if not pending:
            time.sleep(_POLL_S)
            return
        if ray.wait(pending, num_returns=1, timeout=_POLL_S)[0]:
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
            for reference in ready:
                if reference in self._busy:
                    self._take_in(reference)
                else:
                    self._welcome(reference)

    def _welcome(self, reference: _Reference) -> None:
        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self._failed_starts += 1
            logger.warning("a worker did not start: %s", str(error).partition("\n")[0])
            if self._failed_starts >= _MOST_FAILED_STARTS:
                raise NoWorkers(self._scheduler.study, str(error)) from error
            return
        self._failed_starts = 0
        self._idle.append(worker)

    def _take_in(self, reference: _Reference) -> None:
        worker, attempt = self._busy.pop(reference)
        try:
            reply = cast("Reply", ray.get(reference))
        except RayTaskError as error:
            self._idle.append(worker)
            self._scheduler.finish(attempt, failed_by(_cause(error)))
            return
        except RayError as error:
            # It may only be out of reach: an attempt must not run on beside its next one.
            ray.kill(worker)
            self._scheduler.lose(attempt, str(error))
            return
        if isinstance(reply.content, IntermediateValue):
            self._scheduler.report(attempt, reply.content)
            self._busy[worker.resume.remote()] = (worker, attempt)
            return
        if reply.is_leaving:
            ray.kill(worker)
        else:
            self._idle.append(worker)
        self._scheduler.finish(attempt, reply.content)

    def end(self) -> None:
        """Tells the workers that the study ends, and waits for what they save."""
        try:
            self._spool.end(self._scheduler.epoch)
        except UnusableSpool as error:
            logger.warning("the workers cannot be told to end: %s", error)
        deadline_s = time.monotonic() + GRACE_S
        while self._busy and time.monotonic() < deadline_s:
            self.collect()

    def dismiss(self) -> None:
        """Lets every worker go, whatever it does."""
        busy = [worker for worker, _ in self._busy.values()]
        for worker in (*self._starting.values(), *self._idle, *busy):
            ray.kill(worker)


def _cause(error: RayTaskError) -> BaseException:
    """What a worker raised, as far as it could be sent."""
    cause: BaseException = error.as_instanceof_cause()  # type: ignore[no-untyped-call] # Ray's
    return cause

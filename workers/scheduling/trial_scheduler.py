"""Decides which trial runs next and records what came back: the one writer of trials."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from bitfront.attempt import (
    Attempt,
    AttemptResult,
    Evaluated,
    Failed,
    IntermediateValue,
    Pruned,
)
from bitfront.errors import TooManyFailures, UnusableSpool
from bitfront.failpoints import failpoint
from bitfront.objective import Budget
from bitfront.plan import Configuration
from bitfront.spec import JobSpec
from bitfront.trial import Cause, Origin, Proposal, Trial, TrialState
from search.constraints import excesses
from search.pruner import Pruner
from search.race import Race
from search.space import SearchSpace
from storage.records import Lease
from storage.store import Store
from workers.scheduling.failures import lost_worker
from workers.scheduling.front_tracker import FrontTracker
from workers.scheduling.metrics import Metrics, NullMetrics
from workers.scheduling.proposals import Proposals
from workers.scheduling.retries import Retries
from workers.scheduling.spool import Spool
from workers.scheduling.trial_counts import TrialCounts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the trials of a study stand.

    Attributes:
        counts: Trials by state; a state without any may be missing.
        total: Trials that the study may have.
        best_error: Lowest error among trials within the budget; None if none.
        hypervolume: Of the front; see `search.front.hypervolume`.
        front: Trials on the front.
    """

    counts: Mapping[TrialState, int]
    total: int
    best_error: float | None
    hypervolume: float
    front: int

    @property
    def done(self) -> int:
        """Finished trials."""
        return sum(count for state, count in self.counts.items() if state.is_finished)


class TrialScheduler:
    """Keeps the study's trials in the database, the front and the sampler in step.

    A trial's row is written before its first attempt is handed out. What a worker returns is
    recorded in one guarded statement; the sampler hears of it only afterwards.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        spec: JobSpec,
        space: SearchSpace,
        seeds: Sequence[Proposal],
        spool: Spool,
        evaluation_key: Callable[[Configuration, int], str],
        *,
        reference: Sequence[float],
        budget: Budget,
        is_winding_down: Callable[[], bool],
        review: Callable[[Sequence[Trial]], SearchSpace | None],
        further: Mapping[Origin, Iterable[Proposal]] = MappingProxyType({}),
        on_progress: Callable[[Progress], None],
        metrics: Metrics | None = None,
    ) -> None:
        """Takes the study up where its stored trials stand.

        Args:
            store: The database.
            lease: The right to write to the study.
            spec: The job.
            space: What the sampler may choose.
            seeds: What is evaluated first, in this order.
            spool: Where the workers leave their results.
            evaluation_key: Names a configuration's evaluation in the shared cache, when the
                job's batch was halved so many times.
            reference: The hypervolume's reference point, in the order of the objectives.
            budget: Where the best error is read off.
            is_winding_down: Asked before each new trial: shall none be started any more?
            review: Called once, with all trials, when every seed has been handed out and
                none is running; returns a wider space, or None to continue.
            further: What others than the sampler propose after the seeds, in this order.
            on_progress: Called after each change.
            metrics: Hears of cache hits and failures.
        """
        self._store = store
        self._lease = lease
        self._spec = spec
        self._is_winding_down = is_winding_down
        self._spool = spool
        self._evaluation_key = evaluation_key
        self._on_progress = on_progress
        self._metrics = metrics or NullMetrics()
        objectives = [objective.value for objective in spec.objectives]
        self._tracker = FrontTracker(objectives, reference, budget)
        self._proposals = Proposals(spec, space, seeds, review, further)
        self._waiting: deque[Attempt] = deque()
        self._running: dict[int, Attempt] = {}
        self._trials = TrialCounts()
        self._retries = Retries(spec.search.max_attempts, store.attempts(lease.name))
        self._last_failure = ""
        self._started_s = time.monotonic()
        self._restore()

    def _restore(self) -> None:
        """Rebuilds the front, the sampler and the queue from the stored trials."""
        for number, shown in self._store.intermediates(self.study).items():
            for step, value in shown.items():
                self._tracker.report(number, IntermediateValue(step, value))
        trials = self._store.trials(self.study)
        for trial in trials:
            if trial.state is TrialState.COMPLETE:
                self._tracker.restore(trial)
        known = self._store.measured(self.study) if self._spec.search.race else None
        if known is not None:
            self._tracker.restore_race(known.trials)
        if self._recover_spool(trials):
            trials = self._store.trials(self.study)
        running = {trial.number: trial for trial in self._store.fence(self._lease)}
        trials = [running.get(trial.number, trial) for trial in trials]
        for trial in trials:
            self._trials.restore(trial.number, trial.state)
            if trial.number in running:
                self._wait(trial)
        self._spool.sweep({trial.number for trial in trials if trial.number not in running})
        self._proposals.restore(trials)
        self._show_progress()

    def _wait(self, trial: Trial) -> None:
        """Puts the next attempt at a known trial into the queue."""
        self._waiting.append(self._attempt(trial))

    def _attempt(self, trial: Trial) -> Attempt:
        halvings = self._retries.halvings(trial.number)
        return Attempt(trial, self._evaluation_key(trial.configuration, halvings), halvings)

    def _recover_spool(self, trials: Sequence[Trial]) -> int:
        """Records what workers finished after the last driver had died; how much it was."""
        recovered = 0
        for trial in trials:
            if trial.state is not TrialState.RUNNING:
                continue
            result = self._spool.read(trial.number, trial.attempts)
            if result is None or not result.is_of(trial.configuration):
                continue
            attempt = self._attempt(trial)
            match result:
                case Evaluated():
                    self._record(attempt, result)
                case Pruned():
                    self._record_pruned(attempt, result)
                case Failed():
                    continue
            logger.info("trial %d was finished before the restart", trial.number)
            self._spool.discard(trial.number, trial.attempts)
            recovered += 1
        return recovered

    @property
    def is_finished(self) -> bool:
        """Whether nothing runs and nothing more will, unless the study is resumed later."""
        if self._running:
            return False
        return self._is_winding_down() or (not self._waiting and self._is_over)

    @property
    def study(self) -> str:
        """The study's name."""
        return self._lease.name

    @property
    def epoch(self) -> int:
        """Which driver of the study this one is, counted from 1."""
        return self._lease.epoch

    @property
    def running(self) -> int:
        """The number of attempts that are out."""
        return len(self._running)

    @property
    def left(self) -> int:
        """How many attempts may still be out at once: those that are, that wait, or may come."""
        if self._is_winding_down():
            return self.running
        known = self.running + len(self._waiting)
        return known if self._is_over else known + self._spec.stop.trials - self._trials.planned

    @property
    def stop_reason(self) -> str:
        """Why the job itself starts no new trial; empty while it would."""
        stop = self._spec.stop
        if self._proposals.is_exhausted:
            return "the search finds no configuration that is new"
        if self._trials.planned >= stop.trials:
            return f"{stop.trials} trials are done"
        if (
            stop.patience
            and not self._proposals.has_seeds
            and self._tracker.since_growth >= stop.patience
        ):
            return f"the hypervolume did not grow over {stop.patience} trials"
        if stop.time_s is not None and time.monotonic() - self._started_s >= stop.time_s:
            return f"{stop.time_s:.0f} s have passed"
        return ""

    @property
    def _is_over(self) -> bool:
        """Whether no new trial is to be started."""
        return self._is_winding_down() or self.stop_reason != ""

    def next(self) -> Attempt | None:
        """The next attempt to hand out; None if there is nothing to hand out now."""
        if self._waiting and not self._is_winding_down():
            attempt = self._waiting.popleft()
            self._running[attempt.trial.number] = attempt
            return attempt
        while not self._is_over:
            proposal = self._proposals.next(
                is_running=bool(self._running), trials=lambda: self._store.trials(self.study)
            )
            if proposal is None:
                return None
            attempt = self._start(proposal)
            if not self._answer_from_cache(attempt):
                self._running[attempt.trial.number] = attempt
                return attempt
        return None

    def _start(self, proposal: Proposal) -> Attempt:
        trial = Trial.of(self.study, len(self._trials), proposal)
        self._store.start_trial(self._lease, trial)
        self._trials.put(trial.number, TrialState.RUNNING)
        self._proposals.start(trial)
        return self._attempt(trial)

    def _answer_from_cache(self, attempt: Attempt) -> bool:
        known = self._store.evaluation(attempt.evaluation_key)
        if known is None or known.samples is None:  # earlier versions kept no samples
            return False
        self._complete(attempt, Evaluated(known, worker="cache", is_cached=True))
        self._metrics.cache_hit()
        return True

    def pruner(self) -> Pruner:
        """What a recovery that is trained now must be able to pass."""
        if not self._spec.search.early_stop:
            return Pruner()
        return self._tracker.pruner()

    def race(self, attempt: Attempt) -> Race:
        """What an attempt that is evaluated now must keep up with."""
        if not self._spec.search.race or not attempt.trial.origin.is_raced:
            return Race()
        return self._tracker.race()

    def report(self, attempt: Attempt, shown: IntermediateValue) -> None:
        """Records what a recovery showed in training."""
        if self._store.report(self._lease, attempt, shown):
            self._tracker.report(attempt.trial.number, shown)

    def finish(self, attempt: Attempt, result: AttemptResult) -> None:
        """Records what a worker returned; what was given up before comes too late."""
        number = attempt.trial.number
        if self._running.get(number) != attempt:
            logger.warning("the result of trial %d came too late", number)
            return
        del self._running[number]
        match result:
            case Evaluated():
                self._complete(attempt, result)
                self._spool.discard(number, attempt.number)
            case Failed():
                self._end_attempt(attempt, result)
            case Pruned():
                self._prune(attempt, result)
                self._spool.discard(number, attempt.number)
        self._check_failures()

    def _end_attempt(self, attempt: Attempt, result: Failed) -> None:
        """Records a failure; what was only cancelled stays as it is, for its study to end."""
        if result.cause is not Cause.CANCELLED:
            retry = self._retries.allow(attempt.trial.number, result.cause)
            self._fail(attempt, result, retry=retry and not result.is_final)

    def lose(self, attempt: Attempt, reason: str = "") -> None:
        """Records that the worker of an attempt is gone; the trial runs again elsewhere.

        Args:
            attempt: What it was working on.
            reason: What Ray said of it.
        """
        spooled = self._spooled(attempt)
        if spooled is None or not spooled.is_of(attempt.configuration):
            spooled = lost_worker(reason)
        self.finish(attempt, spooled)

    def _spooled(self, attempt: Attempt) -> AttemptResult | None:
        try:
            return self._spool.read(attempt.trial.number, attempt.number)
        except UnusableSpool as error:
            logger.warning("trial %d runs again: %s", attempt.trial.number, error)
            return None

    def _complete(self, attempt: Attempt, result: Evaluated) -> None:
        trial = self._record(attempt, result)
        if trial is None:
            logger.warning("the result of trial %d came too late", attempt.trial.number)
            return
        self._trials.put(trial.number, TrialState.COMPLETE)
        self._proposals.tell(trial)
        failpoint("tell.after")
        self._show_progress()

    def _prune(self, attempt: Attempt, result: Pruned) -> None:
        trial = attempt.trial
        if not self._record_pruned(attempt, result):
            logger.warning("the end of trial %d came too late", trial.number)
            return
        self._trials.put(trial.number, TrialState.PRUNED)
        self._proposals.tell(replace(trial, state=TrialState.PRUNED))
        self._show_progress()

    def _record_pruned(self, attempt: Attempt, result: Pruned) -> bool:
        """Writes that an attempt stopped early; False if it was fenced off."""
        done = self._store.finish_attempt(self._lease, attempt, result)
        if done:
            self._tracker.prune()
        return done

    def _record(self, attempt: Attempt, result: Evaluated) -> Trial | None:
        """Writes a completed attempt; the trial as it is then, or None if it was fenced off."""
        constraints = excesses(self._spec.constraints, result.evaluation)
        trial = attempt.trial.completed(result.evaluation, constraints)
        front, change = self._tracker.with_trial(trial)
        done = self._store.finish_attempt(
            self._lease, attempt, result, constraints=constraints, front=change
        )
        if not done:
            return None
        self._tracker.complete(trial, front, change)
        if self._spec.search.race:
            self._tracker.enter(trial, result.evaluation.samples)
        return trial

    def _fail(self, attempt: Attempt, result: Failed, *, retry: bool) -> None:
        trial = attempt.trial
        self._last_failure = result.message
        self._metrics.failure(result.cause)
        logger.warning("trial %d failed: %s", trial.number, result.message)
        self._store.finish_attempt(self._lease, attempt, result, retry=retry)
        if retry:
            self._wait(replace(trial, attempts=trial.attempts + 1))
            return
        self._spool.discard(trial.number, attempt.number)
        self._trials.put(trial.number, TrialState.FAILED)
        self._proposals.tell(replace(trial, state=TrialState.FAILED))
        self._show_progress()

    def _check_failures(self) -> None:
        """Ends the study where most trials failed that ended since this driver took it."""
        failures = self._trials.failures()
        if failures is not None:
            raise TooManyFailures(self._lease.name, *failures, self._last_failure)

    def _show_progress(self) -> None:
        self._on_progress(
            Progress(
                self._trials.counts,
                self._spec.stop.trials,
                self._tracker.best_error,
                self._tracker.front.hypervolume,
                len(self._tracker.front.numbers),
            )
        )

"""Decides which trial runs next and records what came back: the one writer of trials."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bitfront.errors import TooManyFailures, UnusableSpool
from bitfront.failpoints import failpoint
from bitfront.passwords import masked
from bitfront.plan import Configuration
from bitfront.spec import JobSpec
from bitfront.trial import Cause, Origin, Trial, TrialState
from search.constraints import excesses
from search.pruner import Pruner
from search.sampler import Outcome as Sample
from search.sampler import Proposer
from search.space import SearchSpace
from storage.records import Lease
from storage.store import Store
from workers.scheduling.attempt import Assignment, Seed
from workers.scheduling.front_tracker import FrontTracker, Measured
from workers.scheduling.metrics import Metrics, NullMetrics
from workers.scheduling.outcome import Failure, Outcome
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
        best_error: Lowest error among trials of at most the budget's bytes; None if none.
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


def _loss(reason: str) -> Failure:
    """What ended an attempt whose worker is gone, from what Ray said of it."""
    reason = masked(reason)
    headline = reason.partition("\n")[0]
    if "low on memory" in reason:
        return Failure(Cause.OUT_OF_MEMORY, f"Ray ended the worker: {headline}", reason)
    lost = "the worker or its node went away"
    return Failure(Cause.NODE_LOST, f"{lost}: {headline}" if reason else lost, reason)


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
        seeds: Sequence[Seed],
        spool: Spool,
        evaluation_key: Callable[[Configuration], str],
        *,
        reference: Sequence[float],
        budget_nbytes: float,
        is_draining: Callable[[], bool],
        review: Callable[[Sequence[Trial]], SearchSpace | None],
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
            evaluation_key: Names a configuration's evaluation in the shared cache.
            reference: The hypervolume's reference point, in the order of the objectives.
            budget_nbytes: The size at which the best error is reported.
            is_draining: Asked before each new trial: shall none be started any more?
            review: Called once, with all trials, when every seed has been handed out and
                none is running; returns a wider space, or None to go on.
            on_progress: Called after each change.
            metrics: Hears of cache hits and failures.
        """
        self._store = store
        self._lease = lease
        self._spec = spec
        self._is_draining = is_draining
        self._review = review
        self._reviewed = False
        self._spool = spool
        self._evaluation_key = evaluation_key
        self._on_progress = on_progress
        self._metrics = metrics or NullMetrics()
        objectives = [objective.value for objective in spec.objectives]
        self._tracker = FrontTracker(objectives, reference, budget_nbytes)
        self._seeds = deque(seeds)
        self._waiting: deque[Assignment] = deque()
        self._running: dict[int, Assignment] = {}
        self._trials = TrialCounts()
        self._numbers: dict[str, int] = {}
        self._retries = Retries(spec.search.max_attempts, store.attempts(lease.name))
        self._last_failure = ""
        self._started_s = time.monotonic()
        self._is_exhausted = False
        self.stop_reason = ""
        self._proposer = self._make_proposer(space)
        self._restore()

    def _make_proposer(self, space: SearchSpace) -> Proposer:
        search = self._spec.search
        return Proposer(
            space, len(self._spec.objectives), search.sampler, search.seed, history=search.history
        )

    def _restore(self) -> None:
        """Rebuilds the front, the sampler and the queue from the stored trials."""
        for number, stages in self._store.intermediates(self.study).items():
            for step, error in stages.items():
                self._tracker.report(number, step, error)
        trials = self._store.trials(self.study)
        for trial in trials:
            if trial.state is TrialState.COMPLETE:
                self._tracker.recall(
                    Measured(trial.number, trial.configuration, trial.values, trial.constraints)
                )
        if self._recover_spool(trials):
            trials = self._store.trials(self.study)
        running = {trial.number: trial for trial in self._store.fence(self._lease)}
        trials = [running.get(trial.number, trial) for trial in trials]
        for trial in trials:
            self._numbers[trial.configuration.digest] = trial.number
            self._trials.recall(trial.number, trial.state)
            if trial.number in running:
                self._wait(trial.number, trial.attempt, trial.configuration)
        self._spool.sweep({trial.number for trial in trials if trial.number not in running})
        self._teach(trials)
        self._report()

    def _wait(self, number: int, attempt: int, configuration: Configuration) -> None:
        """Puts an attempt at a known trial into the queue."""
        halvings = self._retries.halvings(number)
        self._waiting.append(Assignment(number, attempt, configuration, halvings))

    def _teach(self, trials: Sequence[Trial]) -> None:
        """Tells a new proposer everything that is known, in the order of the trials."""
        finished = [trial for trial in trials if trial.state.is_measured]
        self._proposer.restore([(t.configuration, self._sample(t)) for t in finished])
        for trial in trials:
            if trial.state is TrialState.RUNNING:
                self._proposer.start(trial.configuration)
            elif not trial.state.is_measured:
                self._proposer.fail(trial.configuration)

    def _sample(self, trial: Trial) -> Sample | None:
        """What the sampler learns of a finished trial; None where it was pruned."""
        if trial.state is TrialState.PRUNED:
            return None
        return Sample(self._tracker.values(trial.values), trial.constraints)

    def _recover_spool(self, trials: Sequence[Trial]) -> int:
        """Records what workers finished after the last driver had died; how much it was."""
        recovered = 0
        for trial in trials:
            if trial.state is not TrialState.RUNNING:
                continue
            outcome = self._spool.read(trial.number, trial.attempt)
            if outcome is None or outcome.failure or not outcome.is_of(trial.configuration):
                continue
            logger.info("trial %d was finished before the restart", trial.number)
            assignment = Assignment(trial.number, trial.attempt, trial.configuration)
            if outcome.is_pruned:
                self._record_pruned(assignment, outcome)
            else:
                self._record(assignment, outcome)
            self._spool.discard(trial.number, trial.attempt)
            recovered += 1
        return recovered

    @property
    def is_finished(self) -> bool:
        """Whether nothing runs and nothing more will, unless the study goes on later."""
        if self._running:
            return False
        return self._is_draining() or (not self._waiting and self._is_over())

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
        if self._is_draining():
            return self.running
        known = self.running + len(self._waiting)
        return known if self._is_over() else known + self._spec.stop.trials - len(self._trials)

    def _is_over(self) -> bool:
        """Whether no new trial is to be started."""
        stop = self._spec.stop
        if self._is_exhausted or self._is_draining():
            return True
        if len(self._trials) >= stop.trials:
            self.stop_reason = f"{stop.trials} trials are done"
        elif stop.time_s is not None and time.monotonic() - self._started_s >= stop.time_s:
            self.stop_reason = f"{stop.time_s:.0f} s have passed"
        elif stop.patience and not self._seeds and self._tracker.since_growth >= stop.patience:
            self.stop_reason = f"the hypervolume did not grow over {stop.patience} trials"
        else:
            return False
        return True

    def next(self) -> Assignment | None:
        """The next attempt to hand out; None if there is nothing to hand out now."""
        if self._waiting and not self._is_draining():
            assignment = self._waiting.popleft()
            self._running[assignment.number] = assignment
            return assignment
        while not self._is_over():
            proposed = self._propose()
            if proposed is None:
                return None
            assignment = self._start(*proposed)
            if not self._answer_from_cache(assignment):
                self._running[assignment.number] = assignment
                return assignment
        return None

    def _propose(self) -> tuple[Configuration, Origin, Mapping[str, int]] | None:
        while self._seeds:
            seed = self._seeds.popleft()
            if seed.configuration.digest not in self._numbers:
                self._proposer.start(seed.configuration)
                params = self._proposer.space.params(seed.configuration) or {}
                return seed.configuration, seed.origin, params
        if not self._reviewed:
            if self._running:
                return None
            self._look_back()
        proposal = self._proposer.propose()
        if proposal is None:
            if not self._running:
                self._is_exhausted = True
                self.stop_reason = "the sampler finds no configuration that is new"
            return None
        return proposal.configuration, Origin.SAMPLER, proposal.params

    def _look_back(self) -> None:
        """Lets the space be widened once the seeds have been measured."""
        self._reviewed = True
        trials = self._store.trials(self._lease.name)
        wider = self._review(trials)
        if wider is not None:
            self._proposer = self._make_proposer(wider)
            self._teach(trials)

    def _start(
        self, configuration: Configuration, origin: Origin, params: Mapping[str, int]
    ) -> Assignment:
        number = len(self._trials)
        self._store.start_trial(self._lease, Trial(number, configuration, origin, params))
        self._trials.put(number, TrialState.RUNNING)
        self._numbers[configuration.digest] = number
        return Assignment(number, 1, configuration)

    def _answer_from_cache(self, assignment: Assignment) -> bool:
        known = self._store.evaluation(self._evaluation_key(assignment.configuration))
        if known is None:
            return False
        self._complete(assignment, Outcome(known, None, 0.0, "cache"), cached=True)
        self._metrics.cache_hit()
        return True

    def pruner(self) -> Pruner:
        """What a recovery that is trained now must be able to pass."""
        if not self._spec.search.early_stop:
            return Pruner()
        return self._tracker.pruner()

    def report(self, assignment: Assignment, step: int, error: float) -> None:
        """Records what a stage of a recovery in training showed."""
        number, attempt = assignment.number, assignment.attempt
        if self._store.report(self._lease, number, attempt, step, error):
            self._tracker.report(number, step, error)

    def finish(self, assignment: Assignment, outcome: Outcome) -> None:
        """Records what a worker returned; what was given up before comes too late."""
        if self._running.get(assignment.number) != assignment:
            logger.warning("the result of trial %d came too late", assignment.number)
            return
        del self._running[assignment.number]
        if outcome.failure is not None:
            self._end_attempt(assignment, outcome, outcome.failure)
        elif outcome.is_pruned:
            self._prune(assignment, outcome)
            self._spool.discard(assignment.number, assignment.attempt)
        else:
            self._complete(assignment, outcome, cached=False)
            self._spool.discard(assignment.number, assignment.attempt)
        self._check_failures()

    def _end_attempt(self, assignment: Assignment, outcome: Outcome, failure: Failure) -> None:
        """Records a failure; what was only cancelled stays as it is, for its study to end."""
        if failure.cause is not Cause.CANCELLED:
            retry = self._retries.allow(assignment.number, failure.cause)
            self._fail(assignment, outcome, failure, retry=retry)

    def lose(self, assignment: Assignment, reason: str = "") -> None:
        """Records that the worker of an attempt is gone; the trial runs again elsewhere.

        Args:
            assignment: The attempt.
            reason: What Ray said of it.
        """
        spooled = self._spooled(assignment)
        if spooled is None or not spooled.is_of(assignment.configuration):
            spooled = Outcome(None, _loss(reason), 0.0, "")
        self.finish(assignment, spooled)

    def _spooled(self, assignment: Assignment) -> Outcome | None:
        try:
            return self._spool.read(assignment.number, assignment.attempt)
        except UnusableSpool as error:
            logger.warning("trial %d runs again: %s", assignment.number, error)
            return None

    def _complete(self, assignment: Assignment, outcome: Outcome, *, cached: bool) -> None:
        sample = self._record(assignment, outcome, cached=cached)
        if sample is None:
            logger.warning("the result of trial %d came too late", assignment.number)
            return
        self._trials.put(assignment.number, TrialState.COMPLETE)
        self._proposer.complete(assignment.configuration, sample)
        failpoint("tell.after")
        self._report()

    def _prune(self, assignment: Assignment, outcome: Outcome) -> None:
        if not self._record_pruned(assignment, outcome):
            logger.warning("the end of trial %d came too late", assignment.number)
            return
        self._trials.put(assignment.number, TrialState.PRUNED)
        self._proposer.prune(assignment.configuration)
        self._report()

    def _record_pruned(self, assignment: Assignment, outcome: Outcome) -> bool:
        """Writes that an attempt stopped early; False if it was fenced off."""
        done = self._store.prune_trial(
            self._lease,
            assignment.number,
            assignment.attempt,
            seconds=outcome.seconds,
            worker=outcome.worker,
        )
        if done:
            self._tracker.prune()
        return done

    def _record(
        self, assignment: Assignment, outcome: Outcome, *, cached: bool = False
    ) -> Sample | None:
        """Writes a completed attempt; what the sampler learns, or None if it was fenced off."""
        evaluation = outcome.evaluation
        if evaluation is None:
            raise ValueError("only an evaluation completes a trial")
        number, configuration = assignment.number, assignment.configuration
        constraints = excesses(self._spec.constraints, evaluation)
        measured = Measured(number, configuration, evaluation.values, constraints)
        front, change = self._tracker.with_trial(measured)
        done = self._store.complete_trial(
            self._lease,
            number,
            assignment.attempt,
            evaluation,
            constraints=constraints,
            front=change,
            seconds=outcome.seconds,
            worker=outcome.worker,
            cached=cached,
            evaluation_key=self._evaluation_key(configuration),
        )
        if not done:
            return None
        self._tracker.complete(measured, front, change)
        return Sample(self._tracker.values(evaluation.values), constraints)

    def _fail(
        self, assignment: Assignment, outcome: Outcome, failure: Failure, *, retry: bool
    ) -> None:
        self._last_failure = failure.message
        self._metrics.failure(failure.cause)
        logger.warning("trial %d failed: %s", assignment.number, failure.message)
        self._store.fail_trial(
            self._lease,
            assignment.number,
            assignment.attempt,
            failure.cause,
            failure.message,
            failure.traceback,
            retry=retry,
            seconds=outcome.seconds or None,
            worker=outcome.worker or None,
        )
        if retry:
            self._wait(assignment.number, assignment.attempt + 1, assignment.configuration)
            return
        self._spool.discard(assignment.number, assignment.attempt)
        self._trials.put(assignment.number, TrialState.FAILED)
        self._proposer.fail(assignment.configuration)
        self._report()

    def _check_failures(self) -> None:
        """Ends the study where most trials failed that ended since this driver took it."""
        failures = self._trials.failures()
        if failures is not None:
            raise TooManyFailures(self._lease.name, *failures, self._last_failure)

    def _report(self) -> None:
        self._on_progress(
            Progress(
                self._trials.counts,
                self._spec.stop.trials,
                self._tracker.best_error,
                self._tracker.front.hypervolume,
                len(self._tracker.front.numbers),
            )
        )

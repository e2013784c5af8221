"""Decides which sample of a tuning runs next, and records what it showed: their one writer."""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bitfront.failpoints import failpoint
from bitfront.objective import Objective
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.spec import RecoverySpace, Sampler
from bitfront.trial import Origin, Trial, TrialState
from bitfront.tuning import TuningSample, rungs
from search.sampler import Proposer
from search.space import SearchSpace
from storage.records import Lease
from storage.store import Store

logger = logging.getLogger(__name__)

_ERROR = Objective.ERROR.value

# So many proposals in a row that are too large, or no recovery at all, end the experiment.
_MAX_REFUSED = 1000


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is tuned, and how samples are compared on their way.

    Attributes:
        plan: What every recovery is trained for.
        space: The settings that are searched.
        first: The recovery that is trained first, whatever the sampler would propose.
        max_nbytes: What plan and recovery may take together; None for no limit.
        seed: The sampler's.
        reduction_factor: At a rung one in so many samples goes on.
        grace_steps: Optimiser steps before the first rung.
    """

    plan: Plan
    space: RecoverySpace
    first: Recovery
    max_nbytes: int | None
    seed: int
    reduction_factor: int = 3
    grace_steps: int = 10

    @property
    def longest(self) -> int:
        """The most steps that a sample takes."""
        return max(*self.space.steps, self.first.steps)

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps at which samples are compared."""
        return rungs(self.longest, self.reduction_factor, self.grace_steps)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content: all of it, for its hash."""
        return {
            "plan": self.plan.to_dict(),
            **({} if self.plan.distil is None else {"distil": self.plan.distil.to_dict()}),
            "space": self.space.model_dump(mode="json"),
            "first": self.first.to_dict(),
            "max_nbytes": self.max_nbytes,
            "seed": self.seed,
            "rungs": [self.longest, self.reduction_factor, self.grace_steps],
        }


class SampleScheduler:
    """Keeps an experiment's samples in the database and the sampler in step.

    A sample's row is written before it is handed out; an error is written before the sampler
    hears of it. What an earlier driver finished is not run again, and the sampler is told of
    it; what it left running comes first, with the same settings.

    Attributes:
        tuning_id: The experiment, as the database names it.
        samples: By number, as the database has them.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        tuning_id: int,
        experiment: Experiment,
        limit: int,
        nbytes: Callable[[Recovery], int | None],
        *,
        sampler: Sampler = Sampler.TPE,
        is_winding_down: Callable[[], bool] = lambda: False,
        on_change: Callable[[Mapping[int, TuningSample]], None] = lambda _: None,
    ) -> None:
        """Takes up the experiment where the database has it.

        Args:
            store: The database.
            lease: The study's.
            tuning_id: The experiment, as the database names it.
            experiment: What is tuned.
            limit: How many samples there may be.
            nbytes: What the plan takes with a recovery; None if the model cannot have it.
            sampler: Which of Optuna's samplers proposes.
            is_winding_down: Whether nothing new is to be started.
            on_change: Called with the samples after each change.
        """
        self._store = store
        self._lease = lease
        self.tuning_id = tuning_id
        self.experiment = experiment
        self._limit = limit
        self._nbytes = nbytes
        self._is_winding_down = is_winding_down
        self._on_change = on_change
        self._is_exhausted = False
        space = SearchSpace.of_recoveries(experiment.plan, experiment.space)
        self._proposer = Proposer(space, (_ERROR,), sampler, experiment.seed)
        store.fence_samples(lease, tuning_id)
        self.samples = store.samples(tuning_id)
        self._again = deque(s for s in self.samples.values() if s.state is TrialState.RUNNING)
        self._restore()

    def _restore(self) -> None:
        """Tells the sampler what earlier drivers found."""
        finished = [s for s in self.samples.values() if s.state.is_measured]
        self._proposer.restore([self._trial(sample) for sample in finished])
        for sample in self.samples.values():
            if not sample.state.is_measured:
                self._proposer.start(sample.on(self.experiment.plan))
            if sample.state is TrialState.FAILED:
                self._proposer.tell(self._trial(sample))
        if finished:
            logger.info("%d samples are known already", len(finished))

    def _trial(self, sample: TuningSample) -> Trial:
        """The sample as the sampler takes it in."""
        values = {}
        if sample.state is TrialState.COMPLETE and sample.error is not None:
            values[_ERROR] = sample.error
        return Trial(
            study=self._lease.name,
            number=sample.number,
            configuration=sample.on(self.experiment.plan),
            origin=Origin.SAMPLER,
            state=sample.state,
            values=values,
        )

    @property
    def running(self) -> int:
        """Samples that were handed out and are not over."""
        states = [s.state for s in self.samples.values()]
        return states.count(TrialState.RUNNING) - len(self._again)

    @property
    def has_more(self) -> bool:
        """Whether there is a sample left to hand out."""
        if self._is_winding_down():
            return False
        return bool(self._again) or (len(self.samples) < self._limit and not self._is_exhausted)

    def next(self) -> TuningSample | None:
        """The next sample, which is recorded as running; None if there is none."""
        if not self.has_more:
            return None
        if self._again:
            return self._again.popleft()
        found = self._propose()
        if found is None:
            self._is_exhausted = True
            return None
        recovery, nbytes = found
        sample = TuningSample(len(self.samples), recovery, nbytes)
        self._store.start_sample(self._lease, self.tuning_id, sample)
        self._keep(sample)
        return sample

    def _propose(self) -> tuple[Recovery, int] | None:
        """Settings that are new and not too large, with their bytes."""
        first = self.experiment.first
        if not self.samples and (nbytes := self._fitting(first)) is not None:
            self._proposer.start(Configuration(self.experiment.plan, first))
            return first, nbytes
        for _ in range(_MAX_REFUSED):
            proposal = self._proposer.propose()
            if proposal is None:
                return None
            recovery = proposal.configuration.recovery
            if recovery is not None and (nbytes := self._fitting(recovery)) is not None:
                return recovery, nbytes
            # To the sampler it is worse than all that fit.
            refused = Trial.of(self._lease.name, -1, proposal)
            self._proposer.tell(replace(refused, state=TrialState.PRUNED))
        return None

    def _fitting(self, recovery: Recovery) -> int | None:
        """The bytes with a recovery; None where they are too many."""
        nbytes = self._nbytes(recovery)
        limit = self.experiment.max_nbytes
        return None if nbytes is None or (limit is not None and nbytes > limit) else nbytes

    def report(self, number: int, step: int, error: float) -> None:
        """Records the error that a running sample showed; one that is known changes nothing."""
        sample = self.samples[number]
        failpoint("sample.before")
        if step in sample.errors or not self._store.report_sample(
            self._lease, self.tuning_id, number, sample.attempt, step, error
        ):
            return
        failpoint("sample.after")
        errors = dict(sorted({**sample.errors, step: error}.items()))
        self._keep(replace(sample, errors=errors))

    def finish(self, number: int) -> None:
        """Ends a running sample: complete if it took all its steps, pruned otherwise."""
        sample = self.samples[number]
        is_complete = sample.step == sample.recovery.steps
        self._end(replace(sample, state=TrialState.COMPLETE if is_complete else TrialState.PRUNED))

    def fail(self, number: int, message: str) -> None:
        """Ends a running sample without a result."""
        sample = self.samples[number]
        logger.warning("sample %d failed: %s", number, message)
        self._end(replace(sample, state=TrialState.FAILED, message=message))

    def _end(self, sample: TuningSample) -> None:
        self._store.finish_sample(
            self._lease,
            self.tuning_id,
            sample.number,
            sample.attempt,
            sample.state,
            sample.message,
        )
        self._proposer.tell(self._trial(sample))
        self._keep(sample)

    def _keep(self, sample: TuningSample) -> None:
        self.samples[sample.number] = sample
        self._on_change(self.samples)

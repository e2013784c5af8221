"""Ray Tune runs the samples of a tuning: our sampler proposes, ASHA stops, the database keeps.

Tune's own snapshots are off: they are periodic and not atomic (docs/decisions/0006-driver.md).
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from bitfront.errors import BitfrontError, Interrupted, UnusableSpool
from bitfront.plan import Configuration, Plan
from bitfront.spec import ConstraintSpec, JobSpec, RecoverySpace
from bitfront.trial import TrialState
from bitfront.tuning import TuningSample
from workers.cluster.connection import node_resources
from workers.cluster.ray_pool import RayPool
from workers.process.sample_trainable import (
    ERROR,
    FAILURE,
    SAMPLE,
    STEP,
    SampleTask,
    SampleTrainable,
    TuningTask,
)
from workers.scheduling.placement import placement
from workers.scheduling.retries import MAX_LOST
from workers.scheduling.sample_scheduler import SampleScheduler
from workers.scheduling.spool import Spool
from workers.scheduling.tuning_pool import RecoveryShape, TunedRecovery, TuningInfo
from workers.scheduling.worker_config import WorkerConfig

logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver has its own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output is not silent at verbosity 0
}

Result = dict[str, Any]


class RayTuning(RayPool):
    """Does a tuning's work on the connected cluster; see `workers.scheduling.tuning_pool`."""

    def look_at(self, plan: Plan, shapes: Sequence[RecoveryShape]) -> TuningInfo:
        """Loads the model on a worker; all later work asks for the memory that it took."""
        info: TuningInfo = self._run(ray.remote(_look_at), self.config, plan, tuple(shapes))
        self.placement = placement(
            _untimed(self._spec), node_resources(), info.footprint, info.layers
        )
        return info

    def run_samples(
        self, scheduler: SampleScheduler, spool: Spool, epoch: int, is_over: Callable[[], bool]
    ) -> None:
        """Trains samples until the scheduler has no more."""
        experiment = scheduler.experiment
        searcher = _SchedulerSearcher(scheduler, self._limit)

        def tell_workers() -> None:
            try:
                spool.end(epoch)
            except UnusableSpool as error:
                logger.warning("the workers cannot be told to end: %s", error)

        ending = _Ending(searcher, is_over, tell_workers)
        task = TuningTask(self._spec.study, epoch, self.config, str(spool.folder), experiment.rungs)
        trainable = tune.with_resources(
            tune.with_parameters(SampleTrainable, task=task), self._tune_resources
        )
        asha = ASHAScheduler(
            time_attr=STEP,
            metric=ERROR,
            mode="min",
            max_t=experiment.longest,
            grace_period=experiment.grace_steps,
            reduction_factor=experiment.reduction_factor,
        )
        _replay(asha, scheduler.samples)
        os.environ.update(_ENVIRONMENT)
        # It misses the result files that nobody writes, as the database has the results.
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory(prefix="bitfront-tune-") as folder:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=asha,
                    num_samples=-1,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="tuning",
                    storage_path=folder,
                    verbose=0,
                    stop=ending,
                    failure_config=tune.FailureConfig(max_failures=MAX_LOST),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            tuner.fit()
        if searcher.error is not None:
            raise searcher.error
        if is_over():
            raise Interrupted

    def finish(self, configuration: Configuration, number: int, spool: Spool) -> TunedRecovery:
        """The recovery of a complete sample, with its errors on both splits."""
        checkpoint = spool.checkpoint(number)
        found: TunedRecovery = self._run(
            ray.remote(_finish), self.config, configuration, checkpoint
        )
        return found

    def _limit(self) -> int:
        return self._search.workers if self._share is None else self._share.renew()

    @property
    def _tune_resources(self) -> dict[str, float]:
        asked = self.placement
        named = {"cpu": asked.cpus, "gpu": asked.gpus, "memory": float(asked.memory_nbytes)}
        return {name: amount for name, amount in named.items() if amount}


def _untimed(spec: JobSpec) -> JobSpec:
    """The job as far as memory goes: a tuning measures no latency, and always has a recovery."""
    return spec.model_copy(
        update={
            "objectives": spec.objectives[:1],
            "constraints": ConstraintSpec(),
            "space": spec.space.model_copy(update={"recovery": RecoverySpace()}),
        }
    )


class _SchedulerSearcher(Searcher):
    """Our scheduler, as Tune asks it. An error of ours ends the experiment, not a sample.

    Attributes:
        error: What ended it.
    """

    def __init__(self, scheduler: SampleScheduler, limit: Callable[[], int]) -> None:
        super().__init__(metric=ERROR, mode="min")
        self._scheduler = scheduler
        self._limit = limit
        self._numbers: dict[str, int] = {}
        self.is_ending = False
        self.error: Exception | None = None

    def suggest(self, trial_id: str) -> Result | None:
        """The next sample as Tune's configuration; None while there is no room for it."""
        if self.is_ending or not self._scheduler.has_more:
            return cast("Result", Searcher.FINISHED)
        if len(self._numbers) >= self._limit():
            return None
        sample = None
        with self._ending_on_error():
            sample = self._scheduler.next()
        if sample is None:
            return cast("Result", Searcher.FINISHED)
        self._numbers[trial_id] = sample.number
        configuration = sample.on(self._scheduler.experiment.plan)
        return {SAMPLE: SampleTask(sample.number, sample.attempt, configuration)}

    def on_trial_result(self, trial_id: str, result: Result) -> None:
        """Records what a rung showed."""
        if not self.is_ending:
            with self._ending_on_error():
                self._report(self._numbers[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: Result | None = None, error: bool = False
    ) -> None:
        """Records the end of a sample; one that is interrupted with its driver stays running."""
        number = self._numbers.get(trial_id)
        if self.is_ending or number is None:
            return
        with self._ending_on_error():
            if error:
                self._scheduler.fail(number, f"its worker was lost {MAX_LOST} times")
            elif result is not None and FAILURE in result:
                self._scheduler.fail(number, str(result[FAILURE]))
            else:
                self._report(number, result or {})
                self._scheduler.finish(number)
        del self._numbers[trial_id]

    def _report(self, number: int, result: Mapping[str, Any]) -> None:
        if STEP in result and ERROR in result:
            self._scheduler.report(number, int(result[STEP]), float(result[ERROR]))

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        """Keeps an error of ours: Tune would take it for a failed sample, and go on."""
        try:
            yield
        except BitfrontError as error:
            self.error = error
            self.is_ending = True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the database has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the database has it all."""

    def __getstate__(self) -> dict[str, object]:
        # Tune pickles its searcher into a file that we never read.
        return {}


class _Ending(tune.Stopper):
    """Ends the experiment when its driver is told to, or cannot write any more."""

    def __init__(
        self,
        searcher: _SchedulerSearcher,
        is_over: Callable[[], bool],
        tell_workers: Callable[[], None],
    ) -> None:
        self._searcher = searcher
        self._is_over = is_over
        self._tell_workers = tell_workers
        self._has_told = False

    def __call__(self, trial_id: str, result: Result) -> bool:  # noqa: ARG002 - Tune's signature
        """No sample ends by itself: the trainable says when it is done."""
        return False

    def stop_all(self) -> bool:
        """Whether everything ends now."""
        if self._is_over():
            self._searcher.is_ending = True
        if self._searcher.is_ending and not self._has_told:
            self._has_told = True
            self._tell_workers()
        return self._searcher.is_ending

    def __getstate__(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True, slots=True)
class _Known:
    """What ASHA needs of a trial: its name."""

    trial_id: str


def _replay(asha: ASHAScheduler, samples: Mapping[int, TuningSample]) -> None:
    """Tells ASHA what finished samples showed; those that run again report it themselves."""
    for sample in samples.values():
        if sample.state in (TrialState.COMPLETE, TrialState.PRUNED):
            known = cast("Trial", _Known(f"sample {sample.number}"))
            asha.on_trial_add(cast("Any", None), known)
            for step, error in sample.errors.items():
                asha.on_trial_result(cast("Any", None), known, {STEP: step, ERROR: error})


def _look_at(config: WorkerConfig, plan: Plan, shapes: Sequence[RecoveryShape]) -> TuningInfo:
    from workers.process import tuning

    info: TuningInfo = tuning.look_at(config, plan, shapes)
    return info


def _finish(config: WorkerConfig, configuration: Configuration, checkpoint: Any) -> TunedRecovery:  # noqa: ANN401
    from workers.process import tuning

    found: TunedRecovery = tuning.finish(config, configuration, checkpoint)
    return found

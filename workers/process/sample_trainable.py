"""The trainable of a tuning: a Ray Tune actor that trains samples and keeps the model loaded."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from ray import tune

from bitfront.errors import Interrupted
from bitfront.failpoints import witness
from bitfront.files import shared_path
from bitfront.identity.keys import recovery_checkpoint_key
from bitfront.plan import Configuration
from bitfront.trial import Cause
from workers.observability.logs import bound, set_up
from workers.process.preemption import PreemptionHandler
from workers.scheduling.failures import failed_by
from workers.scheduling.rung_file import RungFile
from workers.scheduling.spool import Spool
from workers.scheduling.worker_config import WorkerConfig

logger = logging.getLogger(__name__)

STEP, ERROR, FAILURE, SAMPLE = "step", "error", "failure", "sample"
"""The names of what a result holds, and of the sample in Tune's own configuration."""


@dataclass(frozen=True, slots=True)
class TuningTask:
    """All that a trainable is told of an experiment.

    Attributes:
        study: The study's name.
        epoch: Which driver of the study asks.
        config: The job, and what earlier stages found.
        spool: Where results and checkpoints go.
        rungs: Optimiser steps at which errors are reported.
    """

    study: str
    epoch: int
    config: WorkerConfig
    spool: str
    rungs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampleTask:
    """One sample's part in it."""

    number: int
    attempt: int
    configuration: Configuration


class SampleTrainable(tune.Trainable):
    """Trains one sample after the other; a step of Tune's is the way to the next rung.

    A sample that was interrupted resumes from its checkpoint in the spool, and first reports
    again what it showed before, for the driver may not have heard of it.
    """

    def setup(self, config: dict[str, SampleTask], task: TuningTask | None = None) -> None:
        """Takes up the first sample."""
        assert task is not None
        set_up()
        self._task = task
        self._preemption = PreemptionHandler()
        self._spool = Spool(shared_path(task.spool))
        self._take(config[SAMPLE])

    def reset_config(self, new_config: dict[str, SampleTask]) -> bool:
        """Takes up the next sample; the model stays loaded."""
        self._take(new_config[SAMPLE])
        return True

    def _take(self, sample: SampleTask) -> None:
        self._sample = sample
        self._preemption.begin(self._spool, self._task.epoch)
        self._course = self._run()

    def step(self) -> dict[str, object]:
        """What the next rung showed."""
        with (
            bound(study=self._task.study, trial=self._sample.number),
            self._preemption.working(),
        ):
            try:
                step, error = next(self._course)
            except Interrupted:
                if self._preemption.cause() is not Cause.CANCELLED:
                    raise  # the node goes away: Tune lets the sample resume on another one
                return {FAILURE: "interrupted", "done": True}
            except Exception as error:  # noqa: BLE001 - recorded by the driver
                failed = failed_by(error)
                logger.warning("sample %d failed: %s", self._sample.number, failed.traceback)
                return {FAILURE: failed.message, "done": True}
        recovery = self._sample.configuration.recovery
        assert recovery is not None
        return {STEP: step, ERROR: error, "done": step == recovery.steps}

    def _run(self) -> Iterator[tuple[int, float]]:
        from objectives.evaluation.rungs import climb
        from workers.process import model_cache

        configuration = self._sample.configuration
        evaluator = model_cache.evaluator(self._task.config)
        identity = recovery_checkpoint_key(evaluator.identity, configuration)
        number = self._sample.number
        rung_file = RungFile(self._spool.folder / f"{number:06d}.rungs", identity)
        errors = rung_file.read()
        yield from errors.items()
        values = climb(
            evaluator,
            configuration,
            self._task.rungs,
            self._spool.checkpoint(number),
            lambda: self._preemption.cause() is not None,
        )
        for shown in values:
            if shown.step in errors:
                continue
            errors[shown.step] = shown.value
            rung_file.write(errors)
            witness("sample showed", number=number, step=shown.step, error=shown.value)
            yield shown.step, shown.value

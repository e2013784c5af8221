"""The trial worker: a Ray actor that evaluates configurations and keeps the model loaded."""

import json
import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitfront.errors import Interrupted, UnusableSpool
from bitfront.failpoints import witness
from bitfront.files import shared_path
from bitfront.plan import Configuration
from bitfront.trial import Cause
from search.pruner import Pruner
from workers.observability.logs import bound, set_up
from workers.observability.metrics import observe_stage, timed
from workers.process.preemption import PreemptionHandler
from workers.scheduling.attempt import Assignment
from workers.scheduling.outcome import Failure, Outcome, worker_name
from workers.scheduling.spool import Spool
from workers.scheduling.worker_config import WorkerConfig

if TYPE_CHECKING:
    from objectives.evaluation.evaluator import Evaluator, Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrialTask:
    """All that a worker is told of an attempt.

    Attributes:
        study: The study's name.
        epoch: Which driver of the study asks.
        config: The job, and what earlier stages found.
        spool: Where results and checkpoints go.
        assignment: The attempt.
        pruner: What a recovery in training must be able to pass.
    """

    study: str
    epoch: int
    config: WorkerConfig
    spool: str
    assignment: Assignment
    pruner: Pruner


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker returns: what a stage showed, or in the end the outcome.

    Attributes:
        step: Optimiser steps of the stage.
        error: What it showed.
        outcome: The attempt's end; None before.
        leaves: Whether the worker's process or node is about to end.
    """

    step: int = 0
    error: float = 0.0
    outcome: Outcome | None = None
    leaves: bool = False


class TrialWorker:
    """Evaluates one configuration after the other.

    A call returns at each stage of a recovery, and at the attempt's end.
    """

    def __init__(self) -> None:
        set_up()
        self._preemption = PreemptionHandler()

    def name(self) -> str:
        """Who this is; answered as soon as the worker is there."""
        return worker_name()

    def begin(self, task: TrialTask) -> Report:
        """Takes up an attempt, as far as its first stage."""
        self._task = task
        self._spool = Spool(shared_path(task.spool))
        self._preemption.begin(self._spool, task.epoch)
        self._course = self._attempt()
        return self.resume()

    def resume(self) -> Report:
        """Returns what the next stage showed, or spools the attempt's outcome and returns it."""
        assignment = self._task.assignment
        with (
            bound(study=self._task.study, trial=assignment.number, attempt=assignment.attempt),
            self._preemption.working(),
        ):
            shown = next(self._course)
            if not isinstance(shown, Outcome):
                return Report(shown.step, shown.error)
            self._keep(shown)
            return Report(outcome=shown, leaves=self._preemption.leaves())

    def _keep(self, outcome: Outcome) -> None:
        """Spools an outcome; the driver gets it even where the spool cannot be written."""
        study, assignment = self._task.study, self._task.assignment
        if outcome.evaluation is not None:
            for name, seconds in outcome.evaluation.metrics.items():
                kind, _, stage = name.partition(".")
                if kind == "seconds":
                    observe_stage(study, stage, seconds)
        try:
            with timed(study, "spool"):
                self._spool.write(assignment.number, assignment.attempt, outcome)
        except UnusableSpool as error:
            logger.warning("the result cannot be spooled: %s", error)
        self._witness("attempt ended", outcome=json.loads(outcome.to_json()))

    def _witness(self, event: str, **facts: object) -> None:
        assignment = self._task.assignment
        witness(
            event,
            number=assignment.number,
            attempt=assignment.attempt,
            configuration=assignment.configuration.to_dict(),
            **facts,
        )

    def _attempt(self) -> "Iterator[Stage | Outcome]":
        """The stages of the recovery, as long as there is hope, and in the end the outcome."""
        self._witness("attempt started", code=__file__)
        started_s = time.perf_counter()
        assignment = self._task.assignment
        evaluation = failure = None
        try:
            # Imported here: the driver defines this class, but loads no model.
            from workers.process import model_cache

            config = self._task.config.with_halved_batch(assignment.halvings)
            evaluator = model_cache.evaluator(config)
            hopeful = yield from self._train_recovery(evaluator, assignment.configuration)
            if hopeful:
                evaluation = evaluator.evaluate(assignment.configuration)
        except Interrupted as error:
            cause = self._preemption.cause() or Cause.NODE_LOST
            failure = Failure(cause, f"the recovery was saved and ended early: {error}")
        except Exception as error:  # noqa: BLE001 - recorded with its traceback by the scheduler
            failure = Failure.of(error)
            if failure.cause is Cause.OUT_OF_MEMORY:
                _free_memory()
        seconds = time.perf_counter() - started_s
        digest = assignment.configuration.digest
        yield Outcome(evaluation, failure, seconds, worker_name(), digest)

    def _train_recovery(
        self, evaluator: "Evaluator", configuration: Configuration
    ) -> "Generator[Stage, None, bool]":
        """Trains the recovery stage by stage; whether the front is still in reach."""
        recovery = configuration.recovery
        if recovery is None:
            return True
        known = evaluator.costs(configuration)
        costs = [known.get(objective.value, 0.0) for objective in evaluator.spec.objectives[1:]]
        checkpoint = self._spool.checkpoint(self._task.assignment.number)
        stages = evaluator.train_recovery(
            configuration, checkpoint, lambda: self._preemption.cause() is not None
        )
        for stage in stages:
            yield stage
            if not self._task.pruner.allows(recovery, stage.step, stage.error, costs):
                return False
        return True


def _free_memory() -> None:
    from workers.process import model_cache

    model_cache.release()

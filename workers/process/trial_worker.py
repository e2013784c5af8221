"""The trial worker: a Ray actor that evaluates configurations and keeps the model loaded."""

import json
import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bitfront.attempt import (
    Attempt,
    AttemptResult,
    Evaluated,
    Failed,
    IntermediateValue,
    Pruned,
)
from bitfront.errors import Interrupted, UnusableSpool
from bitfront.failpoints import witness
from bitfront.files import shared_path
from bitfront.plan import Configuration
from bitfront.trial import Cause
from search.pruner import Pruner
from search.race import Race
from workers.observability.logs import bound, set_up
from workers.observability.metrics import observe_stage, timed
from workers.process.preemption import PreemptionHandler
from workers.scheduling.failures import failed_by, worker_name
from workers.scheduling.result_json import to_json
from workers.scheduling.spool import Spool
from workers.scheduling.worker_config import WorkerConfig

if TYPE_CHECKING:
    from objectives.evaluation.evaluator import Evaluator

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrialTask:
    """All that a worker is told of an attempt.

    Attributes:
        study: The study's name.
        epoch: Which driver of the study asks.
        config: The job, and what earlier stages found.
        spool: Where results and checkpoints go.
        attempt: What is to be done.
        pruner: What a recovery in training must be able to pass.
        race: What a plan must keep up with; one without rivals lets every trial finish.
    """

    study: str
    epoch: int
    config: WorkerConfig
    spool: str
    attempt: Attempt
    pruner: Pruner
    race: Race


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker returns.

    Attributes:
        content: What the recovery showed in training, or in the end the attempt's result.
        is_leaving: Whether the worker's process or node is about to end.
    """

    content: IntermediateValue | AttemptResult
    is_leaving: bool = False


class TrialWorker:
    """Evaluates one configuration after the other.

    A call returns with each intermediate value of a recovery, and at the attempt's end.
    """

    def __init__(self) -> None:
        set_up()
        self._preemption = PreemptionHandler()

    def name(self) -> str:
        """Who this is; answered as soon as the worker is there."""
        return worker_name()

    def begin(self, task: TrialTask) -> Reply:
        """Takes up an attempt, as far as its first intermediate value."""
        self._task = task
        self._spool = Spool(shared_path(task.spool))
        self._preemption.begin(self._spool, task.epoch)
        self._course = self._run()
        return self.resume()

    def resume(self) -> Reply:
        """Returns the next intermediate value, or spools the attempt's result and returns it."""
        attempt = self._task.attempt
        with (
            bound(study=self._task.study, trial=attempt.trial.number, attempt=attempt.number),
            self._preemption.working(),
        ):
            shown = next(self._course)
            if isinstance(shown, IntermediateValue):
                return Reply(shown)
            self._keep(shown)
            return Reply(shown, self._preemption.leaves())

    def _keep(self, result: AttemptResult) -> None:
        """Spools a result; the driver gets it even where the spool cannot be written."""
        study, attempt = self._task.study, self._task.attempt
        if isinstance(result, Evaluated):
            for name, seconds in result.evaluation.metrics.items():
                kind, _, stage = name.partition(".")
                if kind == "seconds":
                    observe_stage(study, stage, seconds)
        try:
            with timed(study, "spool"):
                self._spool.write(attempt.trial.number, attempt.number, result)
        except UnusableSpool as error:
            logger.warning("the result cannot be spooled: %s", error)
        self._witness("attempt ended", outcome=json.loads(to_json(result)))

    def _witness(self, event: str, **facts: object) -> None:
        attempt = self._task.attempt
        witness(
            event,
            number=attempt.trial.number,
            attempt=attempt.number,
            configuration=attempt.configuration.to_dict(),
            **facts,
        )

    def _run(self) -> Iterator[IntermediateValue | AttemptResult]:
        """What the recovery shows, as long as there is hope, and in the end the result."""
        self._witness("attempt started", code=__file__)
        started_s = time.perf_counter()
        result: AttemptResult
        try:
            # Imported here: the driver defines this class, but loads no model.
            from workers.process import model_cache

            attempt = self._task.attempt
            evaluator = model_cache.evaluator(self._task.config.with_halved_batch(attempt.halvings))
            trained = yield from self._train(evaluator, attempt.configuration)
            if trained and self._keeps_up(evaluator, attempt.configuration):
                result = Evaluated(evaluator.evaluate(attempt.configuration))
            else:
                result = Pruned()
        except Interrupted as error:
            cause = self._preemption.cause() or Cause.NODE_LOST
            result = Failed(cause, f"the recovery was saved and ended early: {error}")
        except Exception as error:  # noqa: BLE001 - recorded with its traceback by the scheduler
            result = failed_by(error)
            if result.cause is Cause.OUT_OF_MEMORY:
                _free_memory()
        yield replace(
            result,
            seconds=time.perf_counter() - started_s,
            worker=worker_name(),
            digest=self._task.attempt.configuration.digest,
        )

    def _train(
        self, evaluator: "Evaluator", configuration: Configuration
    ) -> Generator[IntermediateValue, None, bool]:
        """Trains what is to be trained step by step; whether the front is still in reach."""
        if not configuration.trained_by:
            return True
        costs = _costs(evaluator, configuration)
        checkpoint = self._spool.checkpoint(self._task.attempt.trial.number)
        values = evaluator.train(
            configuration, checkpoint, lambda: self._preemption.cause() is not None
        )
        for shown in values:
            yield shown
            if not self._task.pruner.allows(configuration, shown.step, shown.value, costs):
                return False
        return True

    def _keeps_up(self, evaluator: "Evaluator", configuration: Configuration) -> bool:
        """Whether no rival is surely better, as far as part of the samples can tell."""
        race = self._task.race
        if not race.rivals or configuration.trained_by:
            return True
        costs = _costs(evaluator, configuration)
        if race.rival(costs) is None:
            return True
        for reached in evaluator.race(configuration):
            places, nats = reached.places.numpy(), reached.divergence.double().numpy()
            rival = race.loses_to(costs, places, nats)
            if rival is not None:
                logger.info("trial %d is better on %d samples", rival.number, len(places))
                return False
        return True


def _costs(evaluator: "Evaluator", configuration: Configuration) -> list[float]:
    """The objectives after the error; 0 for what is not known before an evaluation."""
    known = evaluator.costs(configuration)
    return [known.get(objective.value, 0.0) for objective in evaluator.spec.objectives[1:]]


def _free_memory() -> None:
    from workers.process import model_cache

    model_cache.release()

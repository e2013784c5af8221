"""Dispatching trials with Ray Tune: its Searcher asks the ledger, its Trainable evaluates."""

import json
import logging
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from bitfront.plan import Configuration
from bitfront.probes import witness
from bitfront.spec import SearchSpec
from search.hurdle import Hurdle
from workers.ledger import Assignment, TrialLedger
from workers.outcome import Failure, Outcome, worker_name
from workers.spool import Spool

if TYPE_CHECKING:
    from objectives.evaluation import Evaluator, Stage

logger = logging.getLogger(__name__)


class TrialWorker(tune.Trainable):
    """Evaluates one configuration, and keeps the model loaded from trial to trial.

    A step is a stage of the configuration's recovery, or what is left of the attempt.
    """

    def setup(self, config: dict[str, object]) -> None:
        """Takes the first assignment."""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """Takes the next assignment; the process, the model and its caches stay."""
        self._assignment = new_config
        self._course = self._attempt()
        return True

    def step(self) -> dict[str, object]:
        """Returns what a stage showed, or spools the attempt's outcome and returns it."""
        shown = next(self._course)
        if not isinstance(shown, Outcome):
            return {"step": shown.step, "error": shown.error, "done": False}
        number = cast("int", self._assignment["number"])
        attempt = cast("int", self._assignment["attempt"])
        self._spool.write(number, attempt, shown)
        witness("attempt ended", **self._facts, outcome=json.loads(shown.to_json()))
        return {"outcome": shown.to_json(), "done": True}

    @property
    def _facts(self) -> dict[str, object]:
        """What names the attempt in a log."""
        names = ("number", "attempt", "configuration")
        return {name: self._assignment[name] for name in names}

    @property
    def _spool(self) -> Spool:
        return Spool(Path(cast("str", self._assignment["spool"])))

    def _attempt(self) -> "Iterator[Stage | Outcome]":
        """The stages of the recovery, as long as there is hope, and in the end the outcome."""
        witness("attempt started", **self._facts)
        started_s = time.perf_counter()
        evaluation = failure = None
        try:
            # Imported here: the driver defines this class, but loads no model.
            from workers import resident

            evaluator = resident.evaluator(cast("str", self._assignment["order"]))
            content = cast("dict[str, object]", self._assignment["configuration"])
            configuration = Configuration.from_dict(content)
            hopeful = yield from self._rehearse(evaluator, configuration)
            if hopeful:
                evaluation = evaluator.evaluate(configuration)
        except Exception as error:  # noqa: BLE001 - recorded with its traceback by the ledger
            failure = Failure.of(error)
        seconds = time.perf_counter() - started_s
        yield Outcome(evaluation, failure, seconds, worker_name())

    def _rehearse(
        self, evaluator: "Evaluator", configuration: Configuration
    ) -> "Generator[Stage, None, bool]":
        """Trains the recovery stage by stage; whether the front is still in reach."""
        recovery = configuration.recovery
        if recovery is None:
            return True
        hurdle = Hurdle.from_dict(cast("dict[str, object]", self._assignment["hurdle"]))
        known = evaluator.costs(configuration)
        costs = [known.get(objective.value, 0.0) for objective in evaluator.spec.objectives[1:]]
        checkpoint = self._spool.checkpoint(cast("int", self._assignment["number"]))
        for stage in evaluator.rehearse(configuration, checkpoint):
            yield stage
            if not hurdle.allows(recovery, stage.step, stage.error, costs):
                return False
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing: what an attempt has come to is in the spool."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Loads nothing: an attempt goes on from its own checkpoint."""


class _Live:
    """Something that Tune pickles and copies for its snapshots, which are never read.

    A copy is the thing itself; a pickle is empty, so that no credential of the store gets
    into a file.
    """

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __deepcopy__(self, _memo: dict[int, object]) -> Self:
        return self


class LedgerSearcher(_Live, Searcher):
    """Tune's view of the ledger: asks for assignments, hands results back.

    Tune turns an exception in a searcher into a failed trial and goes on; here the first
    one is kept, ends the experiment, and is raised by `run_trials`.
    """

    def __init__(self, ledger: TrialLedger, order: str, spool: Spool, workers: int) -> None:
        super().__init__()
        self._ledger = ledger
        self._order = order
        self._spool = spool
        self._workers = workers
        self._out: dict[str, Assignment] = {}
        self.error: BaseException | None = None

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:  # type: ignore[override] # Tune's annotation leaves out FINISHED, a str
        """The next assignment as a Tune configuration; FINISHED at the end."""
        if self.error is not None:
            return str(Searcher.FINISHED)
        try:
            if self._ledger.running >= self._workers:
                return None
            assignment = self._ledger.next()
            if assignment is None:
                return str(Searcher.FINISHED) if self._ledger.is_finished else None
        except Exception as error:  # noqa: BLE001 - raised again by run_trials
            self.error = error
            return str(Searcher.FINISHED)
        self._out[trial_id] = assignment
        return {
            "number": assignment.number,
            "attempt": assignment.attempt,
            "configuration": assignment.configuration.to_dict(),
            "hurdle": self._ledger.hurdle().to_dict(),
            "order": self._order,
            "spool": str(self._spool.folder),
        }

    def on_trial_result(self, trial_id: str, result: dict[str, object]) -> None:
        """Hands over what a stage of a trial showed."""
        assignment = self._out.get(trial_id)
        if assignment is None or self.error is not None or "outcome" in result:
            return
        try:
            step, error = cast("int", result["step"]), cast("float", result["error"])
            self._ledger.report(assignment, step, error)
        except Exception as failure:  # noqa: BLE001 - raised again by run_trials
            self.error = failure

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, object] | None = None,
        error: bool = False,
    ) -> None:
        """Hands a finished attempt to the ledger."""
        assignment = self._out.pop(trial_id, None)
        if assignment is None or self.error is not None:
            return
        try:
            if error or result is None or "outcome" not in result:
                self._ledger.lose(assignment)
            else:
                outcome = Outcome.from_json(cast("str", result["outcome"]))
                self._ledger.finish(assignment, outcome)
        except Exception as failure:  # noqa: BLE001 - raised again by run_trials
            self.error = failure

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the truth is in the database."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing: the truth is in the database."""


class _Cancel(_Live, Stopper):
    """Stops every trial at once when the study is cancelled or its searcher failed."""

    def __init__(self, cancelled: threading.Event, searcher: LedgerSearcher) -> None:
        self._cancelled = cancelled
        self._searcher = searcher

    def __call__(self, _trial_id: str, _result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._cancelled.is_set() or self._searcher.error is not None


def _short_name(trial: Trial) -> str:
    """Tune would put the configuration into the folder's name."""
    return str(trial.trial_id)


def run_trials(
    ledger: TrialLedger,
    spec: SearchSpec,
    order: str,
    spool: Spool,
    cancelled: threading.Event,
    *,
    trainable: type[tune.Trainable] = TrialWorker,
) -> None:
    """Runs trials until the ledger has no more, or until `cancelled` is set.

    Needs a connection to Ray (`workers.cluster.connected`).

    Raises:
        BitfrontError: What the ledger raised: a lost lease, too many failures.
    """
    searcher = LedgerSearcher(ledger, order, spool, spec.workers)
    resources = {"cpu": 1.0, "gpu": spec.gpus_per_worker}
    with tempfile.TemporaryDirectory(prefix="bitfront-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=_short_name,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="trials",
                verbose=0,
                stop=_Cancel(cancelled, searcher),
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    if searcher.error is not None:
        raise searcher.error

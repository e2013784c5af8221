"""Dispatching trials with Ray Tune: its Searcher asks the ledger, its Trainable evaluates."""

import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Self, cast

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from bitfront.plan import Configuration
from bitfront.spec import SearchSpec
from workers.ledger import Assignment, TrialLedger
from workers.outcome import Failure, Outcome, worker_name
from workers.spool import Spool

logger = logging.getLogger(__name__)


class TrialWorker(tune.Trainable):
    """Evaluates one configuration a step, and keeps the model loaded from trial to trial."""

    def setup(self, config: dict[str, object]) -> None:
        """Takes the first assignment."""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """Takes the next assignment; the process, the model and its caches stay."""
        self._assignment = new_config
        return True

    def step(self) -> dict[str, object]:
        """Evaluates the assignment, spools the outcome, and returns it as JSON."""
        number = cast("int", self._assignment["number"])
        attempt = cast("int", self._assignment["attempt"])
        outcome = self._attempt()
        spool = Spool(Path(cast("str", self._assignment["spool"])))
        spool.write(number, attempt, outcome)
        return {"outcome": outcome.to_json(), "done": True}

    def _attempt(self) -> Outcome:
        started_s = time.perf_counter()
        evaluation = failure = None
        try:
            # Imported here: the driver defines this class, but loads no model.
            from workers import resident

            evaluator = resident.evaluator(cast("str", self._assignment["order"]))
            content = cast("dict[str, object]", self._assignment["configuration"])
            evaluation = evaluator.evaluate(Configuration.from_dict(content))
        except Exception as error:  # noqa: BLE001 - recorded with its traceback by the ledger
            failure = Failure.of(error)
        seconds = time.perf_counter() - started_s
        return Outcome(evaluation, failure, seconds, worker_name())

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing: finished attempts are in the spool."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Loads nothing: an attempt starts anew."""


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
            "order": self._order,
            "spool": str(self._spool.folder),
        }

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
    ledger: TrialLedger, spec: SearchSpec, order: str, spool: Spool, cancelled: threading.Event
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
            tune.with_resources(TrialWorker, resources),
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

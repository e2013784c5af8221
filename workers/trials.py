"""Dispatching trials with Ray Tune: its Searcher asks the ledger, its Trainable evaluates."""

import json
import logging
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Self, cast

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from bitfront.errors import Interrupted
from bitfront.plan import Configuration
from bitfront.probes import witness
from bitfront.spec import SearchSpec
from bitfront.trial import Cause
from objectives.files import shared_path
from search.hurdle import Hurdle
from workers.ending import Ending
from workers.ledger import Assignment, TrialLedger
from workers.logs import bound, set_up
from workers.metrics import observe_stage, timed
from workers.order import WorkOrder
from workers.outcome import Failure, Outcome, worker_name
from workers.placement import ONE_CPU, Placement
from workers.share import Share
from workers.spool import Spool

if TYPE_CHECKING:
    from objectives.evaluation import Evaluator, Stage

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""How long the workers of a cancelled study may take to save what they train."""


class TrialWorker(tune.Trainable):
    """Evaluates one configuration, and keeps the model loaded from trial to trial.

    A step is a stage of the configuration's recovery, or what is left of the attempt.
    """

    def setup(self, config: dict[str, object]) -> None:
        """Takes the first assignment."""
        set_up()
        self._ending = Ending()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """Takes the next assignment; the process, the model and its caches stay."""
        self._assignment = new_config
        self._spool = Spool(shared_path(cast("str", new_config["spool"])))
        self._ending.begin(self._spool, cast("int", new_config["epoch"]))
        self._study = cast("str", new_config["study"])
        self._course = self._attempt()
        return True

    def step(self) -> dict[str, object]:
        """Returns what a stage showed, or spools the attempt's outcome and returns it."""
        number, attempt = self._assignment["number"], self._assignment["attempt"]
        with (
            bound(study=self._study, trial=cast("int", number), attempt=cast("int", attempt)),
            self._ending.working(),
        ):
            shown = next(self._course)
            if not isinstance(shown, Outcome):
                return {"step": shown.step, "error": shown.error, "done": False}
            self._keep(shown)
        return {"outcome": shown.to_json(), "done": True}

    def _keep(self, outcome: Outcome) -> None:
        """Spools an outcome; the driver gets it even where the spool cannot be written."""
        number = cast("int", self._assignment["number"])
        if outcome.evaluation is not None:
            for name, seconds in outcome.evaluation.metrics.items():
                kind, _, stage = name.partition(".")
                if kind == "seconds":
                    observe_stage(self._study, stage, seconds)
        try:
            with timed(self._study, "spool"):
                self._spool.write(number, cast("int", self._assignment["attempt"]), outcome)
        except OSError as error:
            logger.warning("the result of trial %d cannot be spooled: %s", number, error)
        witness("attempt ended", **self._facts, outcome=json.loads(outcome.to_json()))

    @property
    def _facts(self) -> dict[str, object]:
        """What names the attempt in a log."""
        names = ("number", "attempt", "configuration")
        return {name: self._assignment[name] for name in names}

    def _attempt(self) -> "Iterator[Stage | Outcome]":
        """The stages of the recovery, as long as there is hope, and in the end the outcome."""
        witness("attempt started", **self._facts, code=__file__)
        started_s = time.perf_counter()
        evaluation = failure = None
        try:
            # Imported here: the driver defines this class, but loads no model.
            from workers import resident

            order = WorkOrder.from_json(cast("str", self._assignment["order"]))
            order = order.with_halved_batch(cast("int", self._assignment["halvings"]))
            evaluator = resident.evaluator(order.to_json())
            content = cast("dict[str, object]", self._assignment["configuration"])
            configuration = Configuration.from_dict(content)
            hopeful = yield from self._rehearse(evaluator, configuration)
            if hopeful:
                evaluation = evaluator.evaluate(configuration)
        except Interrupted as error:
            cause = self._ending.cause() or Cause.NODE_LOST
            failure = Failure(cause, f"the recovery was saved and ended early: {error}")
        except Exception as error:  # noqa: BLE001 - recorded with its traceback by the ledger
            failure = Failure.of(error)
            if failure.cause is Cause.OUT_OF_MEMORY:
                _free_memory()
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
        ends = self._ending
        for stage in evaluator.rehearse(
            configuration, checkpoint, lambda: ends.cause() is not None
        ):
            yield stage
            if not hurdle.allows(recovery, stage.step, stage.error, costs):
                return False
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing: what an attempt has come to is in the spool."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Loads nothing: an attempt goes on from its own checkpoint."""


def _free_memory() -> None:
    from workers import resident

    resident.release()


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

    def __init__(
        self, ledger: TrialLedger, order: str, spool: Spool, workers: int, share: Share | None
    ) -> None:
        super().__init__()
        self._ledger = ledger
        self._order = order
        self._spool = spool
        self._workers = workers
        self._share = share
        self._drivers = 1 if share is None else share.drivers
        self.gives_way = False
        self._out: dict[str, Assignment] = {}
        self.reasons: dict[str, str] = {}
        self.error: BaseException | None = None

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:  # type: ignore[override] # Tune's annotation leaves out FINISHED, a str
        """The next assignment as a Tune configuration; FINISHED at the end."""
        if self.error is not None:
            return str(Searcher.FINISHED)
        try:
            if self._ledger.running >= self._limit():
                return None
            if self.gives_way:
                return None if self._ledger.running else str(Searcher.FINISHED)
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
            "halvings": assignment.halvings,
            "epoch": self._ledger.epoch,
            "study": self._ledger.study,
            "configuration": assignment.configuration.to_dict(),
            "hurdle": self._ledger.hurdle().to_dict(),
            "order": self._order,
            "spool": str(self._spool.folder),
        }

    def _limit(self) -> int:
        """How many attempts may be out.

        Tune keeps a worker for later that has nothing to do now. Where a study has come to the
        cluster, the workers of this one are all given back once, to be shared anew.
        """
        if self._share is None:
            return self._workers
        limit = self._share.limit()
        self.gives_way |= self._share.drivers > self._drivers
        self._drivers = self._share.drivers
        return limit

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
                self._ledger.lose(assignment, self.reasons.pop(trial_id, ""))
            else:
                outcome = Outcome.from_json(cast("str", result["outcome"]))
                self._ledger.finish(assignment, outcome)
        except Exception as failure:  # noqa: BLE001 - raised again by run_trials
            self.error = failure

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the truth is in the database."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing: the truth is in the database."""


class _Reasons(_Live, FIFOScheduler):
    """Tells the searcher, which Tune tells nothing, why a worker went away."""

    def __init__(self, searcher: LedgerSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Ray's are untyped
        self._searcher = searcher

    def on_trial_error(self, _controller: object, trial: Trial) -> None:
        """Keeps what Ray said, behind Tune's own headline."""
        _, _, text = str(trial.get_error() or "").partition("\n")
        self._searcher.reasons[trial.trial_id] = text.strip()


class _End(_Live, Stopper):
    """Ends the experiment when the study is cancelled or its searcher failed.

    A cancelled study's workers are told first: they have `GRACE_S` seconds to save what they
    train.
    """

    def __init__(
        self,
        ledger: TrialLedger,
        spool: Spool,
        cancelled: threading.Event,
        searcher: LedgerSearcher,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._cancelled = cancelled
        self._searcher = searcher
        self._told_s: float | None = None

    def __call__(self, _trial_id: str, _result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._searcher.error is not None:
            return True
        if not self._cancelled.is_set():
            return False
        if self._told_s is None:
            self._told_s = time.monotonic()
            try:
                self._spool.end(self._ledger.epoch)
            except OSError as error:
                logger.warning("the workers cannot be told to end: %s", error)
        return self._ledger.running == 0 or time.monotonic() - self._told_s > GRACE_S


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
    place: Placement = ONE_CPU,
    share: Share | None = None,
    trainable: type[tune.Trainable] = TrialWorker,
) -> None:
    """Runs trials until the ledger has no more, or until `cancelled` is set.

    Needs a connection to Ray (`workers.cluster.connected`).

    Args:
        ledger: Decides what runs, and records what comes back.
        spec: How many workers are used.
        order: What every worker is told of the job.
        spool: Where workers leave results.
        cancelled: Ends what runs.
        place: What a worker takes of a node.
        share: What other studies on the cluster leave to this one; None if it is alone.
        trainable: What evaluates.

    Raises:
        BitfrontError: What the ledger raised: a lost lease, too many failures.
    """
    while True:
        searcher = LedgerSearcher(ledger, order, spool, spec.workers, share)
        _fit(searcher, place, trainable, _End(ledger, spool, cancelled, searcher))
        if searcher.error is not None:
            raise searcher.error
        if not searcher.gives_way or ledger.is_finished or cancelled.is_set():
            return


def _fit(
    searcher: LedgerSearcher, place: Placement, trainable: type[tune.Trainable], end: Stopper
) -> None:
    """One experiment of Tune's, until its searcher has no more."""
    with tempfile.TemporaryDirectory(prefix="bitfront-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory([place.resources])),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_Reasons(searcher),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=_short_name,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="trials",
                verbose=0,
                stop=end,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()

"""Trials that stop early: what their worker reports, and what the scheduler does."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitfront.attempt import Attempt, AttemptResult, Evaluated, Failed, IntermediateValue, Pruned
from bitfront.layers import Block, Tower
from bitfront.objective import Budget
from bitfront.plan import Configuration, Option, Plan, Recovery
from bitfront.precision import FULL, Precision
from bitfront.samples import SampleResults
from bitfront.spec import JobSpec, RecoverySpace
from bitfront.trial import Evaluation, Origin, Proposal, Trial, TrialState
from objectives.evaluation.scorer import PartialScore
from search.pruner import MIN_SEEN, Pruner
from search.race import Race, Rival
from search.space import SearchSpace
from storage.records import Lease
from storage.store import Store
from workers.process import model_cache as resident
from workers.process import preemption as ending
from workers.process import trial_worker as trials
from workers.process.trial_worker import TrialTask, TrialWorker
from workers.scheduling.spool import Spool
from workers.scheduling.trial_scheduler import TrialScheduler
from workers.scheduling.worker_config import WorkerConfig

BLOCKS = [Block(f"b{i}", Tower.VISION, (f"l{i}",)) for i in range(5)]
OPTIONS = {block.name: [Option((Precision(bits, 8),)) for bits in (2, 3, 4, 8)] for block in BLOCKS}
FULL_PLAN = Plan.uniform([block.layers[0] for block in BLOCKS], FULL)
RECOVERY = Recovery(context_length=0, reduction=4, distillation=4.0, steps=8)
SPACE = RecoverySpace(context_length=(0,), reduction=(4,), blend=(0.2,), steps=(8,))
SPEC = JobSpec.model_validate(
    {
        "study": "early",
        "model": {"source": "reference"},
        "data": {"source": "reference"},
        "space": {"recovery": SPACE},
        "stop": {"trials": 40},
    }
)


def plan(bits: int) -> Plan:
    return Plan.uniform([block.layers[0] for block in BLOCKS], Precision(bits, 8))


class Driver:
    """A driver of the study, which trains what it is told to have trained."""

    def __init__(self, store: Store, folder: Path, spec: JobSpec = SPEC) -> None:
        known = any(study.name == "early" for study in store.studies())
        if not known:
            store.create_study(spec, {})
        before = store.study("early").owner
        self.store = store
        self.spool = Spool(folder / "spool")
        self.lease: Lease = store.acquire("early", f"driver after {before}", 60, dead_owner=before)
        bare = [Proposal(Configuration(plan(bits)), Origin.BASELINE) for bits in (2, 3, 4, 8)]
        recovered = [
            Proposal(Configuration(plan(bits), replace(RECOVERY, blend=blend / 10)), Origin.PROGRAM)
            for blend in range(1, 4)
            for bits in (2, 3, 4, 8)
        ]
        self.scheduler = TrialScheduler(
            store,
            self.lease,
            spec,
            SearchSpace(BLOCKS, OPTIONS, {}, SPACE),
            [*bare, *recovered],
            self.spool,
            lambda configuration, _halvings: configuration.digest,
            reference=(1.0, 80.0),
            budget=Budget("nbytes", 40),
            is_winding_down=lambda: False,
            review=lambda _: None,
            on_progress=lambda _: None,
        )

    def take(self) -> Attempt:
        attempt = self.scheduler.next()
        assert attempt is not None
        return attempt

    def finish(self, attempt: Attempt, error: float, rungs: tuple[float, ...] = ()) -> None:
        for step, shown in zip(RECOVERY.rungs, rungs, strict=False):
            self.scheduler.report(attempt, IntermediateValue(step, shown))
        self.scheduler.finish(
            attempt, Evaluated(evaluation(attempt, error), seconds=0.1, worker="w")
        )


def evaluation(attempt: Attempt, error: float) -> Evaluation:
    bits = sum(p.weight_bits for _, p in attempt.configuration.plan)
    return Evaluation({"error": error, "nbytes": float(bits)}, {})


def measured(driver: Driver, recovered: int) -> None:
    """Runs the four bare plans and some recoveries, each of which takes away a tenth."""
    for error in (0.4, 0.3, 0.2, 0.1):
        driver.finish(driver.take(), error)
    for _ in range(recovered):
        driver.finish(driver.take(), 0.36, (0.4, 0.4, 0.4, 0.4))


@pytest.fixture
def driver(store: Store, tmp_path: Path) -> Driver:
    return Driver(store, tmp_path)


def test_stages_are_stored_while_the_trial_runs(driver: Driver) -> None:
    attempt = driver.take()

    driver.scheduler.report(attempt, IntermediateValue(0, 0.5))
    driver.scheduler.report(attempt, IntermediateValue(2, 0.25))

    assert driver.store.intermediates("early") == {0: {0: 0.5, 2: 0.25}}
    assert driver.store.trials("early")[0].state is TrialState.RUNNING


def test_the_pruner_has_the_front_and_what_training_has_taken_away(driver: Driver) -> None:
    measured(driver, MIN_SEEN - 1)
    before = driver.scheduler.pruner()
    driver.finish(driver.take(), 0.36, (0.4, 0.38, 0.37, 0.36))

    pruner = driver.scheduler.pruner()

    assert before.gains == {}
    assert pruner.gains == {"p4q": pytest.approx((0.1, 0.1, 0.1, 0.1))}
    front = {(row.values["error"], row.values["nbytes"]) for row in driver.store.front("early")}
    assert set(pruner.front) == front


def test_a_job_may_switch_early_stops_off(store: Store, tmp_path: Path) -> None:
    search = SPEC.search.model_copy(update={"early_stop": False})
    driver = Driver(store, tmp_path, SPEC.model_copy(update={"search": search}))

    measured(driver, MIN_SEEN)

    assert driver.scheduler.pruner() == Pruner()


def test_a_restarted_driver_has_the_same_pruner(
    driver: Driver, store: Store, tmp_path: Path
) -> None:
    measured(driver, MIN_SEEN + 1)

    again = Driver(store, tmp_path)

    assert again.scheduler.pruner().gains == driver.scheduler.pruner().gains
    assert set(again.scheduler.pruner().front) == set(driver.scheduler.pruner().front)


def test_a_pruned_trial_is_recorded_and_never_proposed_again(
    driver: Driver, store: Store, tmp_path: Path
) -> None:
    measured(driver, MIN_SEEN)
    attempt = driver.take()
    driver.spool.checkpoint(attempt.trial.number).parent.mkdir(parents=True, exist_ok=True)
    driver.spool.checkpoint(attempt.trial.number).write_text("where it was")

    driver.scheduler.report(attempt, IntermediateValue(0, 0.9))
    driver.scheduler.finish(attempt, Pruned(seconds=0.1, worker="w"))

    trial = store.trials("early")[attempt.trial.number]
    assert (trial.state, trial.values) == (TrialState.PRUNED, {})
    assert not driver.spool.checkpoint(attempt.trial.number).exists()
    again = Driver(store, tmp_path)
    rest = []
    while (later := again.scheduler.next()) is not None:
        rest.append(later.configuration.digest)
        again.finish(later, 0.5)
    assert attempt.configuration.digest not in rest
    assert len(store.trials("early")) == 40


def test_pruned_trials_are_no_failures(driver: Driver) -> None:
    measured(driver, 0)
    for _ in range(8):
        driver.scheduler.finish(driver.take(), Pruned(seconds=0.1, worker="w"))

    assert driver.scheduler.next() is not None


def test_an_early_stop_in_the_spool_is_taken_in_after_a_crash(
    driver: Driver, store: Store, tmp_path: Path
) -> None:
    attempt = driver.take()
    driver.spool.write(attempt.trial.number, attempt.number, Pruned(seconds=2.0, worker="w"))

    again = Driver(store, tmp_path)

    assert store.trials("early")[0].state is TrialState.PRUNED
    assert again.take().trial.number == 1
    assert again.spool.read(0, 1) is None


def test_a_lost_worker_that_had_stopped_early_is_not_asked_again(driver: Driver) -> None:
    attempt = driver.take()
    driver.spool.write(attempt.trial.number, attempt.number, Pruned(seconds=2.0, worker="w"))

    driver.scheduler.lose(attempt)

    assert driver.store.trials("early")[0].state is TrialState.PRUNED


class ReportingEvaluator:
    """Stands for an evaluator: shows given errors, and counts what is asked for."""

    def __init__(self, errors: tuple[float, ...]) -> None:
        self.errors = errors
        self.shown = 0
        self.evaluated = 0
        self.raced = 0
        self.spec = SPEC

    def costs(self, configuration: Configuration) -> dict[str, float]:
        return {"nbytes": float(sum(p.weight_bits for _, p in configuration.plan))}

    def train(
        self, configuration: Configuration, checkpoint: Path, is_ending: Callable[[], bool]
    ) -> Iterator[IntermediateValue]:
        assert not is_ending()
        assert configuration.recovery is not None
        assert checkpoint.name == "000007.safetensors"
        for step, error in zip(configuration.recovery.rungs, self.errors, strict=True):
            self.shown += 1
            yield IntermediateValue(step, error)

    def race(self, configuration: Configuration) -> Iterator[PartialScore]:
        assert not configuration.trained_by
        for count in (8, 16, 32):
            self.raced = count
            yield PartialScore(torch.arange(count), torch.linspace(1, 2, 64)[:count])

    def evaluate(self, configuration: Configuration) -> Evaluation:
        self.evaluated += 1
        return Evaluation({"error": 0.1, **self.costs(configuration)}, {})


def run_worker(
    evaluator: ReportingEvaluator,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    recovery: Recovery | None,
    pruner: Pruner,
    race: Race = Race(),  # noqa: B008 - it is frozen
) -> tuple[list[tuple[int, float]], AttemptResult]:
    """The intermediate values that a worker shows, and its result."""
    monkeypatch.setattr(resident, "evaluator", lambda _: evaluator)
    monkeypatch.setattr(ending, "node_is_draining", lambda: False)
    monkeypatch.setattr("workers.process.preemption.signal.signal", lambda *_: None)
    monkeypatch.setattr(trials, "set_up", lambda: None)
    proposal = Proposal(Configuration(plan(3), recovery), Origin.SAMPLER)
    attempt = Attempt(Trial.of("early", 7, proposal), "a key")
    worker = TrialWorker()
    config = WorkerConfig(SPEC)
    reply = worker.begin(TrialTask("early", 1, config, str(folder), attempt, pruner, race))
    shown = []
    while isinstance(reply.content, IntermediateValue):
        shown.append((reply.content.step, reply.content.value))
        reply = worker.resume()
    assert not reply.is_leaving
    return shown, reply.content


def test_a_worker_shows_every_stage_and_then_its_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluator = ReportingEvaluator((0.4, 0.3, 0.2, 0.1))

    shown, result = run_worker(evaluator, monkeypatch, tmp_path, RECOVERY, Pruner())

    assert shown == [(0, 0.4), (2, 0.3), (4, 0.2), (6, 0.1)]
    assert isinstance(result, Evaluated)
    assert result.evaluation == Evaluation({"error": 0.1, "nbytes": 15.0}, {})
    assert Spool(tmp_path).read(7, 1) == result


def test_a_worker_stops_where_the_front_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluator = ReportingEvaluator((0.4, 0.3, 0.2, 0.1))
    pruner = Pruner(((0.25, 15.0),), {"p4q": (0.4, 0.1, 0.1, 0.1)})

    shown, result = run_worker(evaluator, monkeypatch, tmp_path, RECOVERY, pruner)

    assert [step for step, _ in shown] == [0, 2]
    assert isinstance(result, Pruned)
    assert (evaluator.shown, evaluator.evaluated) == (2, 0)
    assert Spool(tmp_path).read(7, 1) == result


def test_a_trial_without_recovery_has_no_rungs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluator = ReportingEvaluator(())
    hopeless = Pruner(((0.0, 0.0),), {"p4q": (0.0, 0.0, 0.0, 0.0)})

    shown, result = run_worker(evaluator, monkeypatch, tmp_path, None, hopeless)

    assert not shown
    assert isinstance(result, Evaluated)


def results(level: float, samples: int = 64) -> SampleResults:
    return SampleResults.of([True] * samples, [level + 0.01 * place for place in range(samples)])


@pytest.mark.parametrize(
    ("size", "level", "recovery", "raced"),
    [
        (15.0, 0.0, None, 8),  # it is surely worse after the first part
        (16.0, 0.0, None, 0),  # what is larger is no rival
        (15.0, 9.0, None, 32),  # it keeps up
        (15.0, 0.0, RECOVERY, 0),  # what is trained is never raced
    ],
)
def test_a_worker_stops_where_a_rival_is_surely_better(
    size: float,
    level: float,
    recovery: Recovery | None,
    raced: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    evaluator = ReportingEvaluator((0.4, 0.3, 0.2, 0.1))
    race = Race.of([Rival(2, (size,), results(level))])

    _, result = run_worker(evaluator, monkeypatch, tmp_path, recovery, Pruner(), race)

    assert isinstance(result, Pruned) == (raced == 8)
    assert (evaluator.raced, evaluator.evaluated) == (raced, int(raced != 8))
    assert Spool(tmp_path).read(7, 1) == result


@pytest.mark.parametrize("asked", [True, False])
def test_only_the_samplers_trials_are_raced_against_those_before_them(
    asked: bool,
    store: Store,
    tmp_path: Path,
) -> None:
    spec = SPEC.model_copy(update={"search": SPEC.search.model_copy(update={"race": asked})})
    driver = Driver(store, tmp_path, spec)
    for error in (0.4, 0.3, 0.2, 0.1):
        attempt = driver.take()
        assert driver.scheduler.race(attempt) == Race()
        shown = replace(evaluation(attempt, error), samples=results(error))
        driver.scheduler.finish(attempt, Evaluated(shown, seconds=0.1, worker="w"))
    program = driver.take()
    shown = replace(evaluation(program, 0.05), samples=results(0.0))
    driver.scheduler.finish(program, Evaluated(shown, seconds=0.1, worker="w"))
    proposal = Proposal(Configuration(plan(3)), Origin.SAMPLER)
    attempt = Attempt(Trial.of("early", 30, proposal), "a key")

    race = driver.scheduler.race(attempt)

    assert driver.scheduler.race(program) == Race()
    expected = {(number, bits * 5.0) for number, bits in enumerate((2, 3, 4, 8)) if asked}
    assert {(one.number, *one.costs) for one in race.rivals} == expected, (
        "recoveries are never rivals"
    )
    again = Driver(store, tmp_path, spec)
    assert again.scheduler.race(attempt) == race


def test_an_error_while_training_is_the_attempts_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluator = ReportingEvaluator((0.4, 0.3))  # two rungs are missing

    _, result = run_worker(evaluator, monkeypatch, tmp_path, RECOVERY, Pruner())

    assert isinstance(result, Failed)
    assert "ValueError" in result.message

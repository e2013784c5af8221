"""The scheduler over a real store: what is handed out, what is recorded, what a restart finds."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from bitfront.attempt import Attempt, Evaluated, Failed
from bitfront.errors import (
    InvalidModel,
    InvalidSample,
    TooManyFailures,
    UnavailableDevice,
    UnusableSpool,
)
from bitfront.files import write_whole
from bitfront.layers import Block, Tower
from bitfront.objective import Budget
from bitfront.plan import Configuration, Option, Plan
from bitfront.precision import FULL, Precision
from bitfront.samples import SampleResults
from bitfront.spec import JobSpec
from bitfront.trial import Cause, Evaluation, Origin, Proposal, Trial, TrialState
from search.front import hypervolume, pareto_front
from search.space import SearchSpace
from storage.records import Lease
from storage.store import Store, open_store
from tests.support.store_samples import hypervolumes
from workers.scheduling.failures import failed_by
from workers.scheduling.retries import MAX_LOST
from workers.scheduling.spool import Spool
from workers.scheduling.trial_scheduler import Progress, TrialScheduler

BLOCKS = [Block(f"b{i}", Tower.VISION, (f"l{i}",)) for i in range(5)]
BITS = (2, 3, 4, 8)
OPTIONS = {block.name: [Option((Precision(bits, 8),)) for bits in BITS] for block in BLOCKS}
FULL_PLAN = Configuration(Plan.uniform([block.layers[0] for block in BLOCKS], FULL))
SEEDS = [Proposal(FULL_PLAN, Origin.BASELINE)]
REFERENCE = (1.0, 80.0)


def make_spec(**stop: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "study": "scheduler",
            "model": {"source": "reference"},
            "data": {"source": "reference"},
            "constraints": {"max_nbytes": 60},
            "search": {"sampler": "random"},
            "stop": {"trials": 30, **stop},
        }
    )


def measure(configuration: Configuration) -> Evaluated:
    bits = [precision.weight_bits for _, precision in configuration.plan]
    error = sum(2.0**-b * (i + 1) for i, b in enumerate(bits)) / 15
    values = {"error": error, "nbytes": float(sum(bits))}
    samples = SampleResults.of([True, False], [0.0, error])
    return Evaluated(Evaluation(values, {}, samples), seconds=0.1, worker="test:1")


def evaluation_key(configuration: Configuration, halvings: int) -> str:
    return f"{configuration.digest} {halvings}"


def broken(cause: Cause) -> Failed:
    return Failed(cause, f"a {cause} for the test", seconds=0.1, worker="test:1")


@dataclass
class Bench:
    """A study, and drivers of it one after the other."""

    store: Store
    folder: Path
    spec: JobSpec
    reports: list[Progress] = field(default_factory=list)
    drains: bool = False
    lease: Lease | None = None
    further: Sequence[Proposal] = ()

    def drive(
        self, review: Callable[[Sequence[Trial]], SearchSpace | None] | None = None
    ) -> TrialScheduler:
        owner = f"driver {0 if self.lease is None else self.lease.epoch}"
        dead = None if self.lease is None else self.lease.owner
        self.lease = self.store.acquire("scheduler", owner, 60, dead_owner=dead)
        return TrialScheduler(
            self.store,
            self.lease,
            self.spec,
            SearchSpace(BLOCKS, OPTIONS, {}, None),
            SEEDS,
            self.spool,
            evaluation_key,
            reference=REFERENCE,
            budget=Budget("nbytes", 20),
            is_winding_down=lambda: self.drains,
            review=review or (lambda _: None),
            further={Origin.PROGRAM: self.further},
            on_progress=self.reports.append,
        )

    @property
    def spool(self) -> Spool:
        return Spool(self.folder / "spool")

    @property
    def trials(self) -> list[Trial]:
        return self.store.trials("scheduler")


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    spec = make_spec()
    store.create_study(spec, {})
    return Bench(store, tmp_path, spec)


def take(scheduler: TrialScheduler) -> Attempt:
    attempt = scheduler.next()
    assert attempt is not None
    return attempt


def run_out(scheduler: TrialScheduler) -> int:
    done = 0
    while (attempt := scheduler.next()) is not None:
        scheduler.finish(attempt, measure(attempt.configuration))
        done += 1
    return done


def test_a_study_ends_at_its_number_of_trials(bench: Bench) -> None:
    scheduler = bench.drive()

    run_out(scheduler)

    assert scheduler.is_finished
    assert [trial.number for trial in bench.trials] == list(range(30))
    assert {trial.state for trial in bench.trials} == {TrialState.COMPLETE}
    assert len({trial.configuration.digest for trial in bench.trials}) == 30


def test_the_stored_front_is_the_brute_force_front_of_feasible_trials(bench: Bench) -> None:
    run_out(bench.drive())

    assert_front_is_brute_force(bench)


def assert_front_is_brute_force(bench: Bench) -> None:
    feasible = [trial for trial in bench.trials if trial.is_feasible]
    values = np.array([[t.values["error"], t.values["nbytes"]] for t in feasible])
    expected = {feasible[index].number for index in pareto_front(values)}
    assert {row.number for row in bench.store.front("scheduler")} == expected
    volumes = [volume for _, volume in hypervolumes(bench.store, "scheduler")]
    assert volumes == sorted(volumes)
    assert volumes[-1] == pytest.approx(hypervolume(values, REFERENCE))


def test_a_configuration_that_breaks_a_constraint_is_not_on_the_front(bench: Bench) -> None:
    scheduler = bench.drive()

    first = take(scheduler)
    scheduler.finish(first, measure(first.configuration))

    (trial,) = bench.trials
    assert trial.constraints == {"max_nbytes": pytest.approx(80 / 60 - 1)}
    assert not trial.is_feasible
    assert bench.store.front("scheduler") == []


def test_a_trial_is_stored_before_it_is_handed_out(bench: Bench) -> None:
    attempt = take(bench.drive())

    (trial,) = bench.trials
    assert trial.state is TrialState.RUNNING
    assert trial.configuration == attempt.configuration == FULL_PLAN
    assert trial.origin is Origin.BASELINE


def test_what_ran_when_the_driver_died_runs_again_as_the_same_trial(bench: Bench) -> None:
    first = bench.drive()
    done = take(first)
    first.finish(done, measure(done.configuration))
    lost = [take(first) for _ in range(3)]

    second = bench.drive()
    again = [take(second) for _ in range(3)]

    assert [(a.trial.number, a.configuration) for a in again] == [
        (a.trial.number, a.configuration) for a in lost
    ]
    assert [a.number for a in again] == [2, 2, 2]
    for attempt in again:
        second.finish(attempt, measure(attempt.configuration))
    run_out(second)
    assert [trial.number for trial in bench.trials] == list(range(30))
    assert {trial.state for trial in bench.trials} == {TrialState.COMPLETE}


def test_a_result_that_only_reached_the_spool_is_not_measured_again(bench: Bench) -> None:
    first = bench.drive()
    attempt = take(first)
    bench.spool.write(attempt.trial.number, attempt.number, measure(attempt.configuration))

    second = bench.drive()

    (trial,) = bench.trials
    assert trial.state is TrialState.COMPLETE
    assert trial.attempts == 1
    assert take(second).trial.number == 1


def test_a_spooled_result_of_another_configuration_is_not_taken(bench: Bench) -> None:
    attempt = take(bench.drive())
    measured = measure(attempt.configuration)
    bench.spool.write(attempt.trial.number, attempt.number, replace(measured, digest="another"))

    scheduler = bench.drive()

    assert bench.trials[0].state is TrialState.RUNNING
    again = take(scheduler)
    bench.spool.write(again.trial.number, again.number, replace(measured, digest="another"))
    scheduler.lose(again)
    assert bench.trials[0].state is TrialState.RUNNING


def test_a_result_of_a_fenced_attempt_is_refused(bench: Bench) -> None:
    first = bench.drive()
    stale = take(first)
    second = bench.drive()
    again = take(second)
    wrong = Evaluated(Evaluation({"error": 0.0, "nbytes": 1.0}), seconds=0.1, worker="late")

    second.finish(stale, wrong)
    second.finish(again, measure(again.configuration))

    (trial,) = bench.trials
    assert trial.values == measure(again.configuration).evaluation.values
    assert trial.attempts == 2


def test_a_refused_result_keeps_no_later_one_off_the_front(bench: Bench) -> None:
    bench.drive()
    scheduler = bench.drive()
    first = take(scheduler)
    scheduler.lose(first)
    best = Evaluated(Evaluation({"error": 0.0, "nbytes": 1.0}), seconds=0.1, worker="late")

    scheduler.finish(first, best)
    run_out(scheduler)

    assert_front_is_brute_force(bench)


def test_a_user_error_is_tried_again_up_to_the_limit(bench: Bench) -> None:
    scheduler = bench.drive()
    attempts = []

    for _ in range(bench.spec.search.max_attempts):
        attempt = take(scheduler)
        attempts.append((attempt.trial.number, attempt.number))
        scheduler.finish(attempt, broken(Cause.USER_ERROR))

    assert attempts == [(0, 1), (0, 2), (0, 3)]
    (trial,) = bench.trials
    assert trial.state is TrialState.FAILED
    assert take(scheduler).trial.number == 1


def test_an_invalid_metric_is_not_tried_again(bench: Bench) -> None:
    scheduler = bench.drive()

    scheduler.finish(take(scheduler), broken(Cause.INVALID_METRIC))

    assert take(scheduler).trial.number == 1
    assert bench.trials[0].state is TrialState.FAILED


def test_lost_workers_do_not_count_as_user_errors_but_have_a_cap(bench: Bench) -> None:
    scheduler = bench.drive()

    for expected in range(1, MAX_LOST + 1):
        attempt = take(scheduler)
        assert (attempt.trial.number, attempt.number) == (0, expected)
        scheduler.lose(attempt)

    assert bench.trials[0].state is TrialState.FAILED
    assert take(scheduler).trial.number == 1


def test_the_cap_on_lost_workers_outlives_drivers(bench: Bench) -> None:
    scheduler = bench.drive()
    for _ in range(MAX_LOST - 1):
        scheduler.lose(take(scheduler))

    scheduler = bench.drive()
    scheduler.lose(take(scheduler))

    assert bench.trials[0].state is TrialState.FAILED
    assert bench.trials[0].cause == "node_lost"


def test_restarts_and_lost_workers_leave_a_trial_all_its_attempts(bench: Bench) -> None:
    scheduler = bench.drive()
    for _ in range(4):
        scheduler.lose(take(scheduler))
        scheduler = bench.drive()

    for _ in range(bench.spec.search.max_attempts - 1):
        scheduler.finish(take(scheduler), broken(Cause.USER_ERROR))
        assert bench.trials[0].state is TrialState.RUNNING
    scheduler.finish(take(scheduler), broken(Cause.USER_ERROR))

    assert bench.trials[0].state is TrialState.FAILED


def test_each_time_that_memory_ran_out_halves_the_batch_even_after_a_restart(bench: Bench) -> None:
    scheduler = bench.drive()
    assert take_again(scheduler, Cause.OUT_OF_MEMORY).halvings == 0
    assert take_again(scheduler, Cause.NODE_LOST).halvings == 1

    scheduler = bench.drive()
    assert take_again(scheduler, Cause.OUT_OF_MEMORY).halvings == 1
    again = take(scheduler)

    assert (again.trial.number, again.halvings) == (0, 2)


def test_what_was_measured_in_smaller_batches_is_kept_under_their_key(bench: Bench) -> None:
    scheduler = bench.drive()
    take_again(scheduler, Cause.OUT_OF_MEMORY)
    attempt = take(scheduler)

    scheduler.finish(attempt, measure(attempt.configuration))

    assert bench.store.evaluation(evaluation_key(attempt.configuration, 0)) is None
    assert bench.store.evaluation(evaluation_key(attempt.configuration, 1)) is not None


def test_what_was_spooled_in_smaller_batches_is_kept_under_their_key(bench: Bench) -> None:
    scheduler = bench.drive()
    take_again(scheduler, Cause.OUT_OF_MEMORY)
    attempt = take(scheduler)
    bench.spool.write(attempt.trial.number, attempt.number, measure(attempt.configuration))

    bench.drive()

    assert bench.trials[0].state is TrialState.COMPLETE
    assert bench.store.evaluation(evaluation_key(attempt.configuration, 0)) is None
    assert bench.store.evaluation(evaluation_key(attempt.configuration, 1)) is not None


def take_again(scheduler: TrialScheduler, ended_by: Cause) -> Attempt:
    attempt = take(scheduler)
    scheduler.finish(attempt, broken(ended_by))
    return attempt


def test_what_was_only_cancelled_is_left_for_the_next_driver(bench: Bench) -> None:
    scheduler = bench.drive()
    scheduler.finish(take(scheduler), broken(Cause.CANCELLED))

    (trial,) = bench.trials
    assert (trial.state, trial.attempts, scheduler.running) == (TrialState.RUNNING, 1, 0)
    assert take(bench.drive()).trial.number == 0


def test_a_resumed_study_is_not_stopped_for_what_failed_before(bench: Bench) -> None:
    scheduler = bench.drive()
    for _ in range(4):
        scheduler.finish(take(scheduler), broken(Cause.INVALID_METRIC))
    with pytest.raises(TooManyFailures):
        scheduler.finish(take(scheduler), broken(Cause.INVALID_METRIC))

    run_out(bench.drive())

    assert sum(trial.state is TrialState.COMPLETE for trial in bench.trials) == 25


def test_a_lost_worker_that_had_spooled_its_result_loses_nothing(bench: Bench) -> None:
    scheduler = bench.drive()
    attempt = take(scheduler)
    bench.spool.write(0, 1, measure(attempt.configuration))

    scheduler.lose(attempt)

    assert bench.trials[0].state is TrialState.COMPLETE


def test_a_new_driver_sweeps_away_what_its_predecessor_had_recorded(bench: Bench) -> None:
    scheduler = bench.drive()
    done = take(scheduler)
    scheduler.finish(done, measure(done.configuration))
    open_one = take(scheduler)
    bench.spool.write(done.trial.number, done.number, measure(done.configuration))
    write_whole(bench.spool.checkpoint(done.trial.number), b"")
    write_whole(bench.spool.checkpoint(open_one.trial.number), b"")

    bench.drive()

    assert list(bench.spool.folder.iterdir()) == [bench.spool.checkpoint(open_one.trial.number)]


def test_a_lost_attempt_runs_again_where_the_spool_is_away(bench: Bench) -> None:
    scheduler = bench.drive()
    attempt = take(scheduler)
    bench.spool.folder.touch()

    scheduler.lose(attempt)

    assert take(scheduler).number == 2
    with pytest.raises(UnusableSpool, match="Not a directory"):
        bench.drive()


def test_more_than_half_failed_of_at_least_five_stops_the_study(bench: Bench) -> None:
    scheduler = bench.drive()
    for _ in range(4):
        scheduler.finish(take(scheduler), broken(Cause.INVALID_METRIC))

    with pytest.raises(TooManyFailures, match="5 of 5 trials failed, the last one with: a inval"):
        scheduler.finish(take(scheduler), broken(Cause.INVALID_METRIC))


def test_a_known_evaluation_is_not_handed_out(bench: Bench) -> None:
    run_out(bench.drive())
    other = bench.spec.model_copy(update={"study": "other"})
    bench.store.create_study(other, {})
    lease = bench.store.acquire("other", "driver", 60)
    scheduler = TrialScheduler(
        bench.store,
        lease,
        other,
        SearchSpace(BLOCKS, OPTIONS, {}, None),
        SEEDS,
        Spool(bench.folder / "other"),
        evaluation_key,
        reference=REFERENCE,
        budget=Budget("nbytes", 20),
        is_winding_down=lambda: False,
        review=lambda _: None,
        on_progress=bench.reports.append,
    )

    handed_out = run_out(scheduler)

    assert handed_out == 0
    assert len(bench.store.trials("other")) == 30


def test_why_a_study_ends_depends_on_no_question_asked_before(bench: Bench) -> None:
    scheduler = bench.drive()
    early = scheduler.stop_reason
    run_out(scheduler)

    again = bench.drive()

    assert early == ""
    assert again.stop_reason == "30 trials are done"
    assert (again.left, again.is_finished) == (0, True)


def best_plans() -> list[Proposal]:
    """The plans of the true front."""
    every = [
        Configuration(
            Plan.from_options((b, OPTIONS[b.name][n]) for b, n in zip(BLOCKS, chosen, strict=True))
        )
        for chosen in product(range(len(BITS)), repeat=len(BLOCKS))
    ]
    values = [measure(one).evaluation.values for one in every]
    front = pareto_front(np.array([(one["error"], one["nbytes"]) for one in values]))
    return [Proposal(every[place], Origin.PROGRAM) for place in front]


def test_the_program_takes_most_trials_where_the_sampler_brings_nothing(bench: Bench) -> None:
    bench.further = best_plans()

    run_out(bench.drive())

    origins = Counter(trial.origin for trial in bench.trials)
    assert origins[Origin.SAMPLER] >= 1
    assert origins[Origin.PROGRAM] > 2 * origins[Origin.SAMPLER]


def test_a_restart_shares_the_trials_as_if_nothing_had_happened(
    bench: Bench, tmp_path: Path
) -> None:
    bench.further = best_plans()
    first = bench.drive()
    for _ in range(12):
        attempt = take(first)
        first.finish(attempt, measure(attempt.configuration))
    run_out(bench.drive())
    with open_store(f"sqlite:///{tmp_path}/whole.db") as store:
        store.create_study(bench.spec, {})
        whole = Bench(store, tmp_path / "whole", bench.spec, further=best_plans())
        run_out(whole.drive())

        assert [t.configuration for t in bench.trials] == [t.configuration for t in whole.trials]
        assert [t.origin for t in bench.trials] == [t.origin for t in whole.trials]


def test_when_the_program_has_no_further_plan_the_sampler_goes_on(bench: Bench) -> None:
    bench.further = best_plans()[:3]

    run_out(bench.drive())

    origins = Counter(trial.origin for trial in bench.trials)
    assert origins == {Origin.BASELINE: 1, Origin.PROGRAM: 3, Origin.SAMPLER: 26}


def test_draining_finishes_what_runs_and_starts_nothing(bench: Bench) -> None:
    scheduler = bench.drive()
    attempt = take(scheduler)

    bench.drains = True

    assert scheduler.next() is None
    assert not scheduler.is_finished
    scheduler.finish(attempt, measure(attempt.configuration))
    assert scheduler.is_finished


def test_no_growth_of_the_hypervolume_ends_a_patient_study(bench: Bench) -> None:
    bench.spec = make_spec(trials=500, patience=8)

    scheduler = bench.drive()
    done = run_out(scheduler)

    assert done < 500
    assert "did not grow over 8 trials" in scheduler.stop_reason


def test_an_exhausted_space_ends_the_study(bench: Bench) -> None:
    bench.spec = make_spec(trials=5000)
    few = {block.name: OPTIONS[block.name][:2] for block in BLOCKS}

    scheduler = bench.drive(lambda _: SearchSpace(BLOCKS, few, {}, None))
    done = run_out(scheduler)

    assert done <= 2 ** len(BLOCKS) + len(SEEDS)
    assert scheduler.is_finished
    assert "no configuration that is new" in scheduler.stop_reason


def test_the_space_can_be_widened_once_the_seeds_are_measured(bench: Bench) -> None:
    wide = {block.name: [Option((Precision(6, 8),))] for block in BLOCKS}
    seen: list[int] = []

    def review(trials: Sequence[Trial]) -> SearchSpace:
        seen.append(len(trials))
        return SearchSpace(BLOCKS, wide, {}, None)

    run_out(bench.drive(review))

    assert seen == [len(SEEDS)]
    assert bench.trials[-1].configuration.plan.precision("l0") == Precision(6, 8)


def test_progress_tells_the_best_error_within_the_budget(bench: Bench) -> None:
    run_out(bench.drive())

    fitting = [
        t.values["error"] for t in bench.trials if t.is_feasible and t.values["nbytes"] <= 20
    ]
    last = bench.reports[-1]
    assert last.best_error == (min(fitting) if fitting else None)
    assert (last.done, last.total) == (30, 30)


def test_outdated_trials_do_not_count_and_stand_on_no_front(bench: Bench) -> None:
    scheduler = bench.drive()
    for _ in range(8):
        attempt = take(scheduler)
        scheduler.finish(attempt, measure(attempt.configuration))
    late = take(scheduler)
    old = Evaluation({"error": 0.0, "nbytes": 1.0})
    bench.spool.write(8, 1, Evaluated(old, digest=late.configuration.digest))
    assert bench.lease is not None
    bench.store.replace_spec(bench.lease, bench.spec, changes_results=True)

    again = bench.drive()
    assert (again.left, bench.reports[-1].done) == (30, 0)
    run_out(again)

    states = [trial.state for trial in bench.trials]
    assert states == [TrialState.OUTDATED] * 8 + [TrialState.COMPLETE] * 30
    assert bench.trials[8].configuration == late.configuration
    assert bench.trials[8].values["nbytes"] > 1
    measured = bench.trials[8:]
    assert FULL_PLAN in [trial.configuration for trial in measured]
    assert {trial.number for trial in bench.store.front("scheduler")} <= set(range(8, 38))
    assert bench.reports[-1].done == 30


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (InvalidModel("the weights are cut off"), 1),
        (InvalidSample("7.png cannot be read"), 1),
        (UnavailableDevice("no CUDA here"), 3),
        (OSError("a network drive is away"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_change_is_not_tried_again(
    bench: Bench, error: Exception, attempts: int
) -> None:
    scheduler = bench.drive()
    tries = 0
    attempt = take(scheduler)
    while attempt.trial.number == 0:
        scheduler.finish(attempt, failed_by(error))
        tries += 1
        attempt = take(scheduler)

    assert tries == attempts
    assert bench.trials[0].state is TrialState.FAILED

"""A study's life in any order of events, beside a model of it that fits on a page.

The store, the scheduler and the spool are real; the workers are the test itself. After each step
the rows are what the model says, and they hold the durability contract.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import create_engine, text

from bitfront.attempt import Attempt, AttemptResult, Evaluated, Failed, IntermediateValue, Pruned
from bitfront.errors import DuplicateStudy, InvalidMetric, LeaseHeld, LeaseLost, TooManyFailures
from bitfront.layers import Block, Tower
from bitfront.objective import Budget
from bitfront.plan import Configuration, Option, Plan
from bitfront.precision import FULL, Precision
from bitfront.spec import JobSpec
from bitfront.trial import Cause, Evaluation, Origin, Proposal, StudyState, Trial
from search.space import SearchSpace
from storage.location import parse_url
from storage.records import Lease, Request
from storage.store import open_store
from tests.support.contract import read_snapshot, violations
from tests.support.databases import Databases
from tests.support.store_samples import job
from workers.scheduling.failures import failed_by
from workers.scheduling.retries import MAX_LOST
from workers.scheduling.spool import Spool
from workers.scheduling.trial_scheduler import TrialScheduler

RELAXED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
QUICK = settings(RELAXED, max_examples=25, stateful_step_count=40, derandomize=True)
LONG = settings(RELAXED, max_examples=1_000, stateful_step_count=100)

BLOCKS = [Block(f"b{i}", Tower.VISION, (f"l{i}",)) for i in range(3)]
OPTIONS = {block.name: [Option((Precision(bits, 8),)) for bits in (2, 3, 4, 8)] for block in BLOCKS}
FULL_PLAN = Configuration(Plan.uniform([block.layers[0] for block in BLOCKS], FULL))
REFERENCE = {"error": 1.0, "nbytes": 48.0}
MAX_ATTEMPTS = 2
TRIALS = 14
KNOWN = 4  # trials of an earlier study, which this one's sampler proposes as well

ENDS = (
    *("complete", "complete", "complete", "pruned", "lost", "lost every time"),
    *("user_error", "out_of_memory", "invalid_metric", "lost, then late"),
)
"""How an attempt comes to its end."""

FAILURES = {
    Cause.USER_ERROR: failed_by(ValueError("a bad batch")),
    Cause.OUT_OF_MEMORY: failed_by(MemoryError("no room")),
    Cause.INVALID_METRIC: failed_by(InvalidMetric("error", "nan")),
}
OWN = (Cause.USER_ERROR, Cause.OUT_OF_MEMORY)


def make_spec(study: str, trials: int) -> JobSpec:
    return job(
        study,
        constraints={"max_nbytes": 30},
        search={"sampler": "random", "max_attempts": MAX_ATTEMPTS},
        stop={"trials": trials},
    )


def measure(configuration: Configuration) -> Evaluated:
    """What a worker finds; only the configuration decides."""
    bits = [precision.weight_bits for _, precision in configuration.plan]
    error = int(configuration.digest[:4], 16) / 2**16  # so that any trial may beat any other
    return Evaluated(
        Evaluation({"error": error, "nbytes": float(sum(bits))}), seconds=0.1, worker="host:1"
    )


def _state(result: Evaluated | Pruned) -> str:
    """The state of a trial that ended so."""
    return "complete" if isinstance(result, Evaluated) else "pruned"


PRUNED = Pruned(seconds=0.1, worker="host:1")


@dataclass
class Driver:
    """A process that runs the study, until it is killed or loses its lease.

    Attributes:
        lease: Its right to write.
        scheduler: Its trials.
        stop_signals: What it was told; in the form that the scheduler asks for.
        out: Attempts that workers have.
        ended: Trials that ended while it ran: failed ones and others.
    """

    lease: Lease
    stop_signals: set[str]
    out: list[Attempt] = field(default_factory=list)
    failed: int = 0
    measured: int = 0
    scheduler: TrialScheduler = field(init=False)


class Life(RuleBasedStateMachine):
    """Submit, drive, kill, resume, stop, cancel: and what must be in the database then."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__()
        self.url = url
        self.store = open_store(url, create=False)
        self.engine = create_engine(parse_url(url))
        self._delete_everything()
        self.spool = Spool(Path(tempfile.mkdtemp(dir=folder)))
        self.driver: Driver | None = None
        self.stale: list[Driver] = []
        self.trials: list[tuple[str, int]] = []
        self.counts: dict[int, dict[Cause, int]] = {}
        self.digests: list[str] = []
        self.spooled: dict[tuple[int, int], AttemptResult] = {}
        self.holder: str | None = None
        self.is_fresh = False
        self.asked: Request | None = None
        self.epoch = 0
        self.before = read_snapshot(self.url)

    def teardown(self) -> None:
        self.engine.dispose()
        self.store.close()

    @initialize()
    def submit(self) -> None:
        earlier = make_spec("earlier", KNOWN)
        self.store.create_study(earlier, {})
        lease = self.store.acquire("earlier", "an earlier driver", 60)
        self.store.set_reference(lease, REFERENCE)
        scheduler = self._scheduler(lease, earlier, set(), [])
        while (attempt := scheduler.next()) is not None:
            scheduler.finish(attempt, measure(attempt.configuration))
        self.store.release(lease, StudyState.COMPLETE)
        self.store.create_study(make_spec("life", TRIALS), {})
        self._start_a_driver(is_known_dead=False)
        self._hand_out()
        self._finish(self._driver().out.pop(), is_pruned=False, is_spooled=True)

    def _scheduler(
        self, lease: Lease, spec: JobSpec, stop_signals: set[str], seeds: list[Proposal]
    ) -> TrialScheduler:
        return TrialScheduler(
            self.store,
            lease,
            spec,
            SearchSpace(BLOCKS, OPTIONS, {}, None),
            seeds,
            self.spool,
            lambda configuration, _halvings: configuration.digest,
            reference=list(REFERENCE.values()),
            budget=Budget("nbytes", 20),
            is_winding_down=lambda: bool(stop_signals),
            review=lambda _: None,
            on_progress=lambda _: None,
        )

    def _delete_everything(self) -> None:
        """A deleted study leaves nothing but its evaluations."""
        self._sql("UPDATE study SET owner = NULL")
        for study in self.store.studies():
            self.store.delete_study(study.name)
        self._sql("DELETE FROM evaluation")
        left = read_snapshot(self.url)
        assert not any(left.tables.values()), left

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """One event; a single rule, since hypothesis tries each rule in only a part of its runs."""
        name, act = data.draw(st.sampled_from(self._possible()), label="event")
        assert name
        act(data)

    def _possible(self) -> list[tuple[str, Callable[[st.DataObject], None]]]:
        """What can happen now; what matters most is named more than once."""
        acts: list[Callable[[st.DataObject], None]] = [self.start_a_driver]
        if self.driver is not None:
            acts += [self.work, self.work, self.work, self.kill_the_driver]
            acts += [self.spool_and_say_nothing, self.show_a_stage] if self.driver.out else []
            acts += [] if self.driver.out else [self.end_if_nothing_is_left]
        if self.holder is not None:
            acts += [self.ask_for_something, self.submit_again_or_delete]
            acts += [self.hear_nothing_for_long] if self.is_fresh else []
        acts += [self.act_as_a_stale_driver] if self.stale else []
        acts += [self.spool_what_was_given_up]
        return [(act.__name__, act) for act in acts]

    def _sql(self, statement: str, **values: int) -> list[tuple[Any, ...]]:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else []

    # What people do

    def submit_again_or_delete(self, _: st.DataObject) -> None:
        with pytest.raises(DuplicateStudy):
            self.store.create_study(make_spec("life", TRIALS), {})
        if self.is_fresh:
            with pytest.raises(LeaseHeld):
                self.store.delete_study("life")

    def ask_for_something(self, data: st.DataObject) -> None:
        asked = data.draw(st.none() | st.sampled_from(Request), label="asked")
        is_heard = data.draw(st.booleans(), label="is heard")
        if asked is None:
            self.store.withdraw_request("life")
        else:
            self.store.request("life", asked)
        self.asked = asked
        if is_heard and self.driver is not None:
            self._beat()

    # What befalls the driver

    def start_a_driver(self, data: st.DataObject) -> None:
        self._start_a_driver(is_known_dead=data.draw(st.booleans(), label="is known dead"))

    def _start_a_driver(self, *, is_known_dead: bool) -> None:
        owner = f"driver {self.epoch + 1}"
        dead = self.holder if is_known_dead and self.driver is None else None
        if self.holder is not None and self.is_fresh and dead is None:
            with pytest.raises(LeaseHeld):
                self.store.acquire("life", owner, 60)
            return
        lease = self.store.acquire("life", owner, 60, dead_owner=dead)
        if self.driver is not None:
            self.stale.append(self.driver)
        self.epoch, self.holder, self.is_fresh, self.asked = self.epoch + 1, owner, True, None
        assert lease.epoch == self.epoch
        self.store.set_reference(lease, REFERENCE)
        self.driver = Driver(lease, set())
        self.driver.scheduler = self._scheduler(
            lease,
            make_spec("life", TRIALS),
            self.driver.stop_signals,
            [Proposal(FULL_PLAN, Origin.BASELINE)],
        )
        self._expect_fenced_trials()

    def _expect_fenced_trials(self) -> None:
        """Finished attempts come from the spool; what else was open starts its next attempt."""
        for number, (state, attempt) in enumerate(self.trials):
            result = self.spooled.pop((number, attempt), None) if state == "running" else None
            if isinstance(result, Evaluated | Pruned):
                self.trials[number] = (_state(result), attempt)
            elif state in ("running", "cancelled"):
                self.trials[number] = ("running", attempt + 1)

    def kill_the_driver(self, data: st.DataObject) -> None:
        driver = self._driver()
        for attempt in driver.out:
            if data.draw(st.booleans(), label=f"{attempt.trial.number} is spooled"):
                self._spool(attempt, measure(attempt.configuration))
        self.driver = None
        if data.draw(st.booleans(), label="another one takes over"):
            self._start_a_driver(is_known_dead=True)

    def hear_nothing_for_long(self, _: st.DataObject) -> None:
        self._sql(
            "UPDATE study SET heartbeat_at = '2026-01-01 00:00:00.000000' WHERE name = 'life'"
        )
        self.is_fresh = False

    def _beat(self) -> None:
        driver = self._driver()
        assert self.store.heartbeat(driver.lease) is self.asked
        self.is_fresh = True
        driver.stop_signals.clear()
        if self.asked is Request.CANCEL:
            self._end(StudyState.CANCELLED)
        elif self.asked is not None:
            driver.stop_signals.add(self.asked)

    def end_if_nothing_is_left(self, _: st.DataObject) -> None:
        driver = self._driver()
        if Request.STOP in driver.stop_signals and not driver.out:
            self._end(StudyState.STOPPED)
        elif driver.scheduler.is_finished and not driver.stop_signals:
            assert len(self.trials) == TRIALS
            self._end(StudyState.COMPLETE)

    def _end(self, state: StudyState) -> None:
        """The driver leaves in order: what is open gets no result."""
        lease = self._driver().lease
        open_ones = [number for number, (state, _) in enumerate(self.trials) if state == "running"]
        assert self.store.cancel_running(lease) == len(open_ones)
        self.store.release(lease, state)
        for number in open_ones:
            self.trials[number] = ("cancelled", self.trials[number][1])
        self.driver, self.holder, self.is_fresh, self.asked = None, None, False, None

    def act_as_a_stale_driver(self, data: st.DataObject) -> None:
        driver = data.draw(st.sampled_from(self.stale), label="driver")
        lease = driver.lease
        fresh = Trial(lease.name, len(self.trials), FULL_PLAN, Origin.SAMPLER, {})
        acts: dict[str, Callable[[], object]] = {
            "heartbeat": partial(self.store.heartbeat, lease),
            "release": partial(self.store.release, lease, StudyState.COMPLETE),
            "state": partial(self.store.set_state, lease, StudyState.FAILED, "stale"),
            "fence": partial(self.store.fence, lease),
            "cancel": partial(self.store.cancel_running, lease),
            "start": partial(self.store.start_trial, lease, fresh),
        }
        failed = replace(FAILURES[Cause.USER_ERROR], seconds=0.1, worker="host:1")
        for each in driver.out:
            done = measure(each.configuration)
            acts[f"finish {each.trial.number}"] = partial(driver.scheduler.finish, each, done)
            acts[f"fail {each.trial.number}"] = partial(driver.scheduler.finish, each, failed)
            acts[f"report {each.trial.number}"] = partial(
                driver.scheduler.report, each, IntermediateValue(0, 0.5)
            )
        name = data.draw(st.sampled_from(sorted(acts)), label="act")

        with pytest.raises(LeaseLost):
            acts[name]()
        if name.startswith(("finish", "fail")):
            driver.out = [each for each in driver.out if not name.endswith(f" {each.trial.number}")]

        assert read_snapshot(self.url) == self.before

    # What happens to trials

    def work(self, data: st.DataObject) -> None:
        taken = data.draw(st.integers(1, 4), label="taken")
        ended = data.draw(st.integers(0, 4), label="ended")
        how = data.draw(st.sampled_from(ENDS), label="how")
        is_spooled = data.draw(st.booleans(), label="is spooled")
        for _ in range(taken):
            self._hand_out()
        for _ in range(ended):
            if self.driver is not None and self.driver.out:
                self._end_attempt(self._take(data), how, is_spooled=is_spooled)

    def _end_attempt(self, attempt: Attempt, how: str, *, is_spooled: bool) -> None:
        if how in FAILURES:
            self._fail(attempt, Cause(how), is_spooled=is_spooled)
        elif how == "lost":
            self._lose(attempt)
        elif how == "lost, then late":
            self._lose(attempt)
            self._come_too_late(attempt)
        elif how == "lost every time":
            self._lose_every_time(attempt)
        else:
            self._finish(attempt, is_pruned=how == "pruned", is_spooled=is_spooled)

    def _hand_out(self) -> None:
        driver = self._driver()
        waiting = {
            number
            for number, (state, _) in enumerate(self.trials)
            if state == "running" and number not in {a.trial.number for a in driver.out}
        }
        attempt = driver.scheduler.next()
        self._expect_cached_trials(attempt)
        if attempt is None:
            is_out_of_trials = len(self.trials) == TRIALS or driver.out
            assert driver.stop_signals or (not waiting and is_out_of_trials)
            return
        assert not driver.stop_signals
        if waiting:
            assert attempt.trial.number in waiting
        else:
            assert attempt.trial.number == len(self.trials)
            self.trials.append(("running", 1))
        assert self.trials[attempt.trial.number] == ("running", attempt.number)
        driver.out.append(attempt)

    def _expect_cached_trials(self, attempt: Attempt | None) -> None:
        """New trials whose evaluation is known are complete before the next one is handed out."""
        rows = self._sql(
            "SELECT number, trial.state, cached FROM trial JOIN study ON study.id = study_id "
            "WHERE name = 'life' AND number >= :first ORDER BY number",
            first=len(self.trials),
        )
        if attempt is not None:
            rows = [row for row in rows if row[0] != attempt.trial.number]
        for number, state, cached in rows:
            assert (number, state, bool(cached)) == (len(self.trials), "complete", True)
            self.trials.append(("complete", 1))
            self._driver().measured += 1

    def _take(self, data: st.DataObject) -> Attempt:
        """Some attempt that is out, taken back from its worker."""
        out = self._driver().out
        return out.pop(data.draw(st.integers(0, len(out) - 1), label="attempt"))

    def _finish(self, attempt: Attempt, *, is_pruned: bool, is_spooled: bool) -> None:
        outcome = PRUNED if is_pruned else measure(attempt.configuration)
        if is_spooled:
            self.spool.write(attempt.trial.number, attempt.number, outcome)
        self._expect("pruned" if is_pruned else "complete", attempt)
        self._settle(lambda scheduler: scheduler.finish(attempt, outcome))

    def _fail(self, attempt: Attempt, cause: Cause, *, is_spooled: bool) -> None:
        outcome = replace(FAILURES[cause], seconds=0.1, worker="host:1")
        if is_spooled:
            self.spool.write(attempt.trial.number, attempt.number, outcome)
        self._expect_failure(attempt, cause)
        self._settle(lambda scheduler: scheduler.finish(attempt, outcome))

    def _come_too_late(self, attempt: Attempt) -> None:
        """A worker that was given up returns what would beat everything."""
        if self.driver is not None:
            best = Evaluation({"error": 0.0, "nbytes": 0.0})
            self.driver.scheduler.finish(attempt, Evaluated(best, seconds=0.1, worker="late"))

    def _lose_every_time(self, attempt: Attempt) -> None:
        self._lose(attempt)
        while self.trials[attempt.trial.number][0] == "running" and not self._driver().stop_signals:
            self._hand_out()
            for again in [a for a in self._driver().out if a.trial.number == attempt.trial.number]:
                self._driver().out.remove(again)
                self._lose(again)

    def _lose(self, attempt: Attempt) -> None:
        spooled = self.spooled.pop((attempt.trial.number, attempt.number), None)
        if spooled is None:
            self._expect_failure(attempt, Cause.NODE_LOST)
        elif isinstance(spooled, Failed):
            self._expect_failure(attempt, spooled.cause)
        else:
            self._expect(_state(spooled), attempt)
        self._settle(lambda scheduler: scheduler.lose(attempt))

    def spool_and_say_nothing(self, data: st.DataObject) -> None:
        kind = data.draw(
            st.sampled_from(["complete", "complete", "pruned", "failed"]), label="kind"
        )
        attempt = data.draw(st.sampled_from(self._driver().out), label="attempt")
        failed = replace(FAILURES[Cause.USER_ERROR], seconds=0.1, worker="host:1")
        ends: dict[str, AttemptResult] = {"pruned": PRUNED, "failed": failed}
        self._spool(attempt, ends.get(kind, measure(attempt.configuration)))

    def _spool(self, attempt: Attempt, result: AttemptResult) -> None:
        self.spool.write(attempt.trial.number, attempt.number, result)
        self.spooled[attempt.trial.number, attempt.number] = result

    def spool_what_was_given_up(self, _: st.DataObject) -> None:
        for number, (_state, attempt) in enumerate(self.trials):
            if attempt > 1:
                self.spool.write(
                    number, attempt - 1, Evaluated(Evaluation({}), seconds=0.1, worker="late")
                )

    def show_a_stage(self, data: st.DataObject) -> None:
        step = data.draw(st.integers(0, 3), label="step")
        error = data.draw(st.sampled_from([0.1, 0.5]), label="error")
        attempt = data.draw(st.sampled_from(self._driver().out), label="attempt")
        self._driver().scheduler.report(attempt, IntermediateValue(step, error))
        assert self.store.intermediates("life")[attempt.trial.number][step] == error

    def _driver(self) -> Driver:
        assert self.driver is not None
        return self.driver

    def _expect(self, state: str, attempt: Attempt) -> None:
        self.trials[attempt.trial.number] = (state, attempt.number)
        self.spooled.pop((attempt.trial.number, attempt.number), None)
        driver = self._driver()
        driver.failed += state == "failed"
        driver.measured += state != "failed"

    def _expect_failure(self, attempt: Attempt, cause: Cause) -> None:
        counts = self.counts.setdefault(attempt.trial.number, dict.fromkeys(Cause, 0))
        counts[cause] += 1
        is_lost_again = cause is Cause.NODE_LOST and counts[cause] < MAX_LOST
        if is_lost_again or (cause in OWN and sum(counts[own] for own in OWN) < MAX_ATTEMPTS):
            self.trials[attempt.trial.number] = ("running", attempt.number + 1)
        else:
            self._expect("failed", attempt)

    def _settle(self, act: Callable[[TrialScheduler], None]) -> None:
        """Lets the driver act; it gives up where most trials failed."""
        driver = self._driver()
        finished = driver.failed + driver.measured
        if finished >= 5 and driver.failed * 2 > finished:
            with pytest.raises(TooManyFailures):
                act(driver.scheduler)
            self._end(StudyState.FAILED)
        else:
            act(driver.scheduler)

    # What must hold

    @invariant()
    def the_rows_are_as_expected(self) -> None:
        rows = self._sql(
            "SELECT number, trial.state, attempt, configuration_digest FROM trial "
            "JOIN study ON study.id = study_id WHERE name = 'life' ORDER BY number"
        )
        assert [(state, attempt) for _, state, attempt, _ in rows] == self.trials
        digests = [digest for *_, digest in rows]
        assert digests[: len(self.digests)] == self.digests
        self.digests = digests
        ((epoch, owner),) = self._sql("SELECT epoch, owner FROM study WHERE name = 'life'") or [
            (0, None)
        ]
        assert (epoch, owner) == (self.epoch, self.holder)

    @invariant()
    def the_contract_holds(self) -> None:
        now = read_snapshot(self.url)
        assert violations(now, self.before) == []
        self.before = now


def live(databases: Databases, folder: Path, chosen: settings) -> None:
    url = databases.ready()

    class ThisLife(Life):
        def __init__(self) -> None:
            super().__init__(url, folder)

    run_state_machine_as_test(ThisLife, settings=chosen)


def test_a_study_lives_through_any_order_of_events(
    sqlite_databases: Databases, tmp_path: Path
) -> None:
    live(sqlite_databases, tmp_path, QUICK)


def test_a_study_on_postgresql_lives_through_any_order_of_events(
    postgres_databases: Databases, tmp_path: Path
) -> None:
    live(postgres_databases, tmp_path, settings(QUICK, max_examples=5))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_studies_live_through_any_order_of_events(
    sqlite_databases: Databases, tmp_path: Path
) -> None:
    live(sqlite_databases, tmp_path, LONG)

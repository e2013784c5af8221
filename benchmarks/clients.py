"""Two studies, four clients that query, one study stopped and resumed: all at once on PostgreSQL.

    OMP_NUM_THREADS=1 python -m benchmarks.clients run --seconds 300

Drivers are real `bitfront submit` and `resume` processes on the bundled model, each with a Ray
cluster of its own. A client opens the store for each query, as a command does; now and then it
runs a command. Nothing may fail, and no query may wait for a lock until it gives up.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click
import psycopg

from benchmarks.dispatch import database, machine, table
from bitfront.trial import TrialState
from storage.records import Limits
from storage.store import Store, open_store
from tests.support.studies import JOB

STUDIES = ("steady", "stopped")
CLIENTS = 4
COMMAND_EVERY_S = 20.0
PAUSE_S = 0.1
PATIENCE_S = 240.0

QUERIES: dict[str, Callable[[Store, str], object]] = {
    "status": lambda store, study: store.status(study),
    "front": lambda store, study: store.front(study),
    "best": lambda store, study: store.best(study, Limits(max_nbytes=300_000)),
    "list": lambda store, _: store.studies(),
}
COMMANDS = {
    "bitfront status": ("status",),
    "bitfront front": ("front", "--format", "json"),
    "bitfront best": ("best", "--max-nbytes", "1MB"),
}


@click.group()
def main() -> None:
    """Measure what clients see while studies run."""


@main.command()
@click.option("--db", "url", envvar="BITFRONT_DB", required=True)
@click.option("--seconds", type=float, required=True)
@click.option("--seed", type=int, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def query(url: str, seconds: float, seed: int, out: Path) -> None:
    """Be one client: ask until the time is over, and write a line for each answer."""
    chance = random.Random(seed)
    deadline = time.monotonic() + seconds
    command_s = time.monotonic() + chance.uniform(0, COMMAND_EVERY_S)
    with out.open("w") as lines:
        while time.monotonic() < deadline:
            study = chance.choice(STUDIES)
            if time.monotonic() >= command_s:
                line = run_command(chance.choice(list(COMMANDS)), study)
                command_s += COMMAND_EVERY_S
            else:
                line = ask(chance.choice(list(QUERIES)), study, url)
            lines.write(f"{json.dumps(line)}\n")
            lines.flush()
            time.sleep(PAUSE_S)


def ask(name: str, study: str, url: str) -> dict[str, object]:
    """One query on a store of its own: its name, its seconds, and what went wrong."""
    started_s = time.perf_counter()
    line: dict[str, object] = {"query": name, "study": study}
    try:
        with open_store(url, create=False) as store:
            QUERIES[name](store, study)
            if name == "status":
                record = store.study(study)
                if record.owner is not None and record.heartbeat_at is not None:
                    age = datetime.now(UTC) - record.heartbeat_at
                    line["heartbeat_s"] = age.total_seconds()
    except Exception as error:  # noqa: BLE001 - each is counted and shown in the report
        line["error"] = f"{type(error).__name__}: {error}"
    return {**line, "seconds": time.perf_counter() - started_s}


def run_command(name: str, study: str) -> dict[str, object]:
    """One command in a process of its own."""
    verb, *options = COMMANDS[name]
    started_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "service", verb, study, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started_s
    line: dict[str, object] = {"query": name, "study": study, "seconds": seconds}
    nothing_fits = done.returncode == 1 and verb == "best"
    if done.returncode and not nothing_fits:
        line["error"] = f"exit code {done.returncode}: {done.stderr.strip()[-500:]}"
    return line


@dataclass
class Driver:
    """The processes that drive one study, one after the other."""

    study: str
    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """What its processes say."""
        return self.folder / f"{self.study}.log"

    def start(self, *arguments: str) -> None:
        """Starts the next process."""
        command = [sys.executable, "-m", "service", *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def submit(self, workers: int) -> None:
        """Submits the study."""
        job = self.folder / f"{self.study}.yaml"
        job.write_text(f"study: {self.study}\nstop: {{trials: 100000}}{JOB}")
        self.start("submit", str(job), "--workers", str(workers))

    def check(self) -> None:
        """Notes it where the process has ended although nobody told it to."""
        if self.process is not None and self.process.poll() is not None:
            self.failures.append(f"{self.study} ended by itself with {self.process.returncode}")
            raise click.ClickException(self.log.read_text()[-3000:])

    def stop(self) -> float:
        """Asks the study to stop, waits for its process, and returns how long that took."""
        assert self.process is not None
        started_s = time.monotonic()
        command = [sys.executable, "-m", "service", "stop", self.study]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            self.failures.append(f"stop {self.study}: {done.stderr.strip()[-500:]}")
        code = self.process.wait(timeout=PATIENCE_S)
        if code:
            self.failures.append(f"{self.study} stopped with exit code {code}")
        return time.monotonic() - started_s

    def kill(self) -> None:
        """Ends what is left of it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def completed(store: Store, study: str) -> int:
    """How many trials of a study are complete; 0 before there is one."""
    counts = {s.name: s.counts[TrialState.COMPLETE] for s in store.studies()}
    return counts.get(study, 0)


def wait_for(drivers: Sequence[Driver], ready: Callable[[], bool], deadline_s: float) -> bool:
    """Waits; False if the deadline, a time of the monotonic clock, came first."""
    while not ready():
        for driver in drivers:
            driver.check()
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.2)
    return True


def wait_for_trials(
    drivers: Sequence[Driver], store: Store, study: str, count: int, deadline_s: float
) -> bool:
    """Waits until so many trials of a study are complete."""
    return wait_for(drivers, lambda: completed(store, study) >= count, deadline_s)


@main.command()
@click.option("--seconds", default=300.0, show_default=True)
@click.option("--workers", default=1, show_default=True, help="Trial workers of each study.")
@click.option("--clients", default=CLIENTS, show_default=True)
def run(seconds: float, workers: int, clients: int) -> None:
    """Run drivers and clients, and print what they met."""
    click.echo(machine())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bitfront-")))
        url = stack.enter_context(database("postgresql", folder))
        store = stack.enter_context(open_store(url))
        environment = {**os.environ, "BITFRONT_DB": url, "BITFRONT_SPOOL": str(folder / "spool")}
        drivers = [Driver(study, folder, environment) for study in STUDIES]
        for driver in drivers:
            stack.callback(driver.kill)
            driver.submit(workers)
        for driver in drivers:
            if not wait_for_trials(drivers, store, driver.study, 1, time.monotonic() + PATIENCE_S):
                raise click.ClickException(driver.log.read_text()[-3000:])
        before = {study: completed(store, study) for study in STUDIES}
        answers = [folder / f"client-{number}.jsonl" for number in range(clients)]
        processes = [
            _client(environment, seconds, number, out) for number, out in enumerate(answers)
        ]
        for process in processes:
            stack.callback(process.kill)
        stops = stop_and_resume(drivers, store, time.monotonic() + seconds)
        codes = [process.wait(timeout=PATIENCE_S) for process in processes]
        stops += [driver.stop() for driver in drivers]
        after = {study: completed(store, study) for study in STUDIES}
        lines = [line for out in answers for line in _read(out)]
        report(lines, drivers, stops)
        done = {study: after[study] - before[study] for study in STUDIES}
        click.echo(f"trials completed: {done}; client exit codes: {codes}")
        click.echo(f"server: {server_counts(url)}")


def _client(
    environment: dict[str, str], seconds: float, seed: int, out: Path
) -> subprocess.Popen[bytes]:
    arguments = ("query", "--seconds", str(seconds), "--seed", str(seed), "--out", str(out))
    command = [sys.executable, "-m", "benchmarks.clients", *arguments]
    return subprocess.Popen(command, env=environment)


def stop_and_resume(drivers: Sequence[Driver], store: Store, deadline_s: float) -> list[float]:
    """Stops the second study and resumes it, again and again; how long each stop took."""
    driver = drivers[1]
    stops = []
    while time.monotonic() < deadline_s:
        stops.append(driver.stop())
        held = completed(store, driver.study)
        driver.start("resume", driver.study)
        wait_for_trials(drivers, store, driver.study, held + 4, deadline_s)
    # A driver that has only just been started must be there before it is stopped for good.
    wait_for(drivers, lambda: store.study(driver.study).owner is not None, deadline_s + PATIENCE_S)
    return stops


def _read(path: Path) -> Iterator[dict[str, object]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def server_counts(url: str) -> dict[str, int]:
    """What the server itself counted: deadlocks, and transactions that it rolled back."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT deadlocks, xact_commit, xact_rollback FROM pg_stat_database"
            " WHERE datname = current_database()"
        ).fetchone()
    assert row is not None
    return dict(zip(("deadlocks", "commits", "rollbacks"), row, strict=True))


def report(
    lines: Sequence[dict[str, object]], drivers: Sequence[Driver], stops: Sequence[float]
) -> None:
    """Prints the latencies, the heartbeats and every failure."""
    seconds: dict[str, list[float]] = defaultdict(list)
    errors: dict[str, list[str]] = defaultdict(list)
    ages: list[float] = []
    for line in lines:
        name = str(line["query"])
        seconds[name].append(float(str(line["seconds"])))
        if "error" in line:
            errors[name].append(str(line["error"]))
        if "heartbeat_s" in line:
            ages.append(float(str(line["heartbeat_s"])))
    rows = [
        [name, len(taken), *(f"{1e3 * value:.0f}" for value in spread(taken)), len(errors[name])]
        for name, taken in sorted(seconds.items())
    ]
    click.echo(table(("query", "answers", "p50 ms", "p95", "p99", "max", "errors"), rows))
    if ages:
        text = " / ".join(f"{value:.1f}" for value in spread(ages))
        click.echo(f"age of the heartbeats, s, p50 / p95 / p99 / max: {text}")
    click.echo(
        f"stopped and resumed {len(stops) - len(drivers)} times; "
        f"a stop took {statistics.median(stops):.1f} s, at most {max(stops):.1f} s"
    )
    failures = [text for driver in drivers for text in driver.failures]
    for name, texts in errors.items():
        failures += [f"{name}: {text}" for text in texts]
    for driver in drivers:
        warnings = [line for line in driver.log.read_text().splitlines() if is_trouble(line)]
        failures += [f"{driver.study}: {line}" for line in warnings]
    click.echo(f"errors: {len(failures)}")
    for failure in failures[:20]:
        click.echo(f"  {failure}")


def is_trouble(line: str) -> bool:
    """Whether a driver's line tells of an error."""
    marks = ("Traceback", "Error", "no heartbeat", "lock timeout", "deadlock", "cannot be")
    return any(mark in line for mark in marks)


def spread(values: Sequence[float]) -> list[float]:
    """Median, 95th and 99th percentile, and the largest."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return [statistics.median(ordered), *(ordered[int(q * last)] for q in (0.95, 0.99, 1.0))]


if __name__ == "__main__":
    main()

"""How long the command line takes to answer from a database of many trials.

The trials are made up, their configurations and their rows are of the real size. Each command
is a process of its own, start of Python included; the median of some runs is printed.

    python -m benchmarks.store --trials 100000
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
from sqlalchemy import create_engine, insert, select

from bitfront.plan import Configuration, Plan
from bitfront.precision import WEIGHT_BITS, Precision
from bitfront.spec import JobSpec
from bitfront.trial import Origin, StudyState, TrialState
from search.front import pareto_front
from storage.store import open_store
from storage.tables import Attempt, Front, Study, Trial

STUDY = "large"
CHUNK = 5_000
LAYER_WEIGHTS = 65_536

COMMANDS = {
    "front": ("front", STUDY),
    "front as json": ("front", STUDY, "--format", "json"),
    "best by bytes": ("best", STUDY, "--max-nbytes", "1MB"),
    "best by error": ("best", STUDY, "--max-error", "0.2"),
    "best by bytes and bits": ("best", STUDY, "--max-nbytes", "1.5MB", "--max-bits", "5.5"),
    "best by latency": ("best", STUDY, "--max-latency-s", "0.006"),
    "best, nothing fits": ("best", STUDY, "--max-nbytes", "1kB", "--max-latency-s", "0.001"),
    "status": ("status", STUDY),
    "list": ("list",),
}


def values(trials: int, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight bits of every layer of every trial, and its error, which falls with them."""
    generator = np.random.default_rng(0)
    bits = generator.choice(WEIGHT_BITS, size=(trials, layers))
    error = (4.0 ** (1.5 - bits)).mean(axis=1) * generator.lognormal(0, 0.3, trials)
    return bits, np.minimum(error, 1.0)


def rows(study_id: int, bits: np.ndarray, error: np.ndarray) -> Iterator[dict[str, object]]:
    """The rows of `trial`."""
    names = [f"visual.transformer.resblocks.{n}.mlp.c_fc.weight" for n in range(bits.shape[1])]
    precisions = {width: Precision(width, 8) for width in WEIGHT_BITS}
    for number, (widths, wrong) in enumerate(zip(bits.tolist(), error.tolist(), strict=True)):
        plan = Plan.of({n: precisions[width] for n, width in zip(names, widths, strict=True)})
        configuration = Configuration(plan)
        yield {
            "study_id": study_id,
            "number": number,
            "state": TrialState.COMPLETE,
            "attempt": 1,
            "origin": Origin.SAMPLER,
            "configuration": configuration.to_dict(),
            # Two trials may draw the same bits; in a study, that would be one trial.
            "configuration_digest": f"{configuration.digest} {number}",
            "params": dict(zip(names, widths, strict=True)),
            "error": wrong,
            "nbytes": sum(widths) * LAYER_WEIGHTS / 8,
            "bits_per_weight": sum(widths) / len(widths),
            "bit_operations": sum(widths) * LAYER_WEIGHTS * 8.0,
            "latency_s": 0.001 * (1 + sum(widths) / len(widths)),
            "feasible": True,
            "constraints": {},
            "metrics": {"nbytes_vision": sum(widths) * LAYER_WEIGHTS / 8, "seconds_evaluate": 0.5},
            "seconds": 0.5,
            "finished_at": datetime.now(UTC),
        }


def fill(url: str, trials: int, layers: int) -> None:
    """Makes a study of so many complete trials."""
    content = {"study": STUDY, "model": {"source": "reference"}, "data": {"source": "reference"}}
    spec = JobSpec.model_validate({**content, "stop": {"trials": trials}})
    with open_store(url) as store:
        store.create_study(spec, {"model": "benchmark"})
        lease = store.acquire(STUDY, "benchmark", 3600)
        bits, error = values(trials, layers)
        engine = create_engine(url, hide_parameters=True)
        with engine.begin() as connection:
            study_id = connection.scalar(select(Study.id))
            assert study_id is not None
            chunk: list[dict[str, object]] = []
            for row in rows(study_id, bits, error):
                chunk.append(row)
                if len(chunk) == CHUNK or row["number"] == trials - 1:
                    connection.execute(insert(Trial), chunk)
                    chunk = []
            keys = connection.scalars(select(Trial.id).order_by(Trial.number)).all()
            connection.execute(
                insert(Attempt), [{"trial_id": key, "number": 1, "seconds": 0.5} for key in keys]
            )
            front = pareto_front(np.stack([error, bits.sum(axis=1)], axis=1))
            connection.execute(
                insert(Front), [{"trial_id": keys[n], "study_id": study_id} for n in front]
            )
        engine.dispose()
        store.release(lease, StudyState.COMPLETE)


def measure(command: Sequence[str], runs: int) -> dict[str, float]:
    """The median time of a command, that of the processor alone, and how much it prints."""
    times, cpu_times = [], []
    answer = ""
    for _ in range(runs):
        started, cpu_started = time.perf_counter(), children_cpu_s()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - started)
        cpu_times.append(children_cpu_s() - cpu_started)
        if done.returncode not in (0, 1) or (done.returncode == 1 and not done.stderr):
            raise click.ClickException(f"{' '.join(command)}: {done.stderr}")
        answer = done.stdout or done.stderr
    return {
        "seconds": round(statistics.median(times), 3),
        "cpu_seconds": round(statistics.median(cpu_times), 3),
        "lines": len(answer.splitlines()),
    }


def children_cpu_s() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@click.command()
@click.option("--trials", default=100_000, help="Trials in the study.", show_default=True)
@click.option("--layers", default=32, help="Layers of each plan.", show_default=True)
@click.option("--runs", default=5, help="Runs of each command.", show_default=True)
def main(trials: int, layers: int, runs: int) -> None:
    """Fill a database, ask it, and print the times as JSON lines."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.db"
        url = f"sqlite:///{path}"
        started = time.perf_counter()
        fill(url, trials, layers)
        size = {"trials": trials, "layers": layers, "nbytes": path.stat().st_size}
        print(json.dumps({"filled": size, "seconds": round(time.perf_counter() - started, 1)}))
        for name, arguments in COMMANDS.items():
            command = [sys.executable, "-m", "service", *arguments, "--db", url]
            print(json.dumps({"command": name, **measure(command, runs)}))
        with open_store(url, create=False) as store:
            started = time.perf_counter()
            read = len(store.trials(STUDY))
            print(json.dumps({"read": read, "seconds": round(time.perf_counter() - started, 3)}))


if __name__ == "__main__":
    main()

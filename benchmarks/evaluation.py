"""One trial with the caches against one from scratch: copy the model, quantize it, evaluate it.

Both run in one process, one after the other for every configuration, and must agree to the
last bit. The kinds of change are drawn around the uniform 4-bit plan; the sequence is that of
a real search (or of a file of configurations, such as a study's).

    OMP_NUM_THREADS=1 python -m benchmarks.evaluation --trials 160
"""

import copy
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from benchmarks.in_process import profile
from benchmarks.search import SPEC, ours
from bitfront.job import load_job
from bitfront.layers import Tower
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from bitfront.trial import Evaluation
from bitfront.vlm import load_model
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.registry import load_family
from objectives.profiling.calibration import calibrate
from service.study.proxy_search import ProxySearch

T = TypeVar("T")

WEIGHT_BITS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Timing:
    """Processor seconds of one configuration.

    Attributes:
        cached: With everything that earlier trials left.
        scratch: With a fresh copy of the model and the input ranges given.
        calibrated: The same, with the input ranges measured first.
    """

    cached: float
    scratch: float
    calibrated: float


class Bench:
    """Evaluates configurations both ways."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._pristine = load_model(spec.model)
        self._clips = sorted({1.0, *spec.space.clips})
        self.layers = self._pristine.layers
        self.cached = Evaluator.from_spec(spec)

    def compare(self, configuration: Configuration) -> Timing:
        """Times both ways; raises if they disagree in a single bit."""
        cached, cached_s = _timed(lambda: self.cached.evaluate(configuration))
        model, copy_s = _timed(lambda: copy.deepcopy(self._pristine))
        family = load_family(self._spec.data, model)
        ranges, calibrate_s = _timed(lambda: calibrate(family.task, self._clips))

        def evaluate() -> Evaluation:
            fresh = Evaluator(self._spec, family, ranges, cache_nbytes=0)
            return fresh.evaluate(configuration)

        scratch, scratch_s = _timed(evaluate)
        if figures(cached) != figures(scratch):
            raise click.ClickException(f"the caches change {configuration.to_dict()}")
        return Timing(cached_s, copy_s + scratch_s, copy_s + calibrate_s + scratch_s)


def figures(evaluation: Evaluation) -> dict[str, float]:
    """Everything measured, apart from times and cache hits."""
    kept = {
        name: value
        for name, value in evaluation.metrics.items()
        if not name.startswith(("seconds.", "hits."))
    }
    return {**kept, **evaluation.values}


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    started_s = time.process_time()
    result = run()
    return result, time.process_time() - started_s


def changes(bench: Bench, count: int) -> Iterator[tuple[str, Configuration]]:
    """Configurations that differ from the uniform 4-bit plan, kind by kind, none twice."""
    rng = random.Random(0)
    scopes = sorted({layer.scope for layer in bench.layers})
    base = Plan.uniform([layer.name for layer in bench.layers], Precision(4, 8))

    def redrawn(scope: str | None, towers: Iterable[Tower]) -> Configuration:
        chosen = {
            layer.name: Precision(rng.choice(WEIGHT_BITS), 8)
            for layer in bench.layers
            if (layer.scope == scope if scope else layer.tower in towers)
        }
        return Configuration(Plan.of({**dict(base), **chosen}))

    for turn in range(count):
        yield "one block", redrawn(scopes[turn % len(scopes)], ())
    for turn in range(count):
        yield "one tower", redrawn(None, ((Tower.VISION, Tower.TEXT)[turn % 2],))
    for _ in range(count):
        yield "both towers", redrawn(None, Tower)
    for turn in range(count):
        blend = 0.2 + 0.6 * turn / count
        adapter = Recovery(context_length=0, steps=60, blend=blend)
        yield "recovery only: adapter", Configuration(base, adapter)
    for turn in range(min(count, 3)):
        prompt = Recovery(context_length=4, steps=60, blend=0.2 + 0.1 * turn)
        yield "recovery only: prompt", Configuration(base, prompt)


def searched(spec: JobSpec, trials: int) -> list[Configuration]:
    """What a study of the job evaluates, in its order."""
    measured, _ = profile(spec)
    evaluator = Evaluator.from_spec(spec)
    sequence: list[Configuration] = []

    def measure(configuration: Configuration) -> tuple[float, ...]:
        sequence.append(configuration)
        values = evaluator.evaluate(configuration).values
        return values["error"], values["nbytes"]

    for _ in zip(range(trials), ours(spec, ProxySearch(spec, measured), 0, measure), strict=False):
        pass
    return sequence


def report(title: str, timings: list[Timing]) -> None:
    """Prints the medians and the speed-ups of one kind."""
    rows = {name: [getattr(t, name) for t in timings] for name in ("cached", "scratch")}
    rows["calibrated"] = [t.calibrated for t in timings]
    cached, scratch, calibrated = (1000 * statistics.median(row) for row in rows.values())
    ratio = statistics.median(t.scratch / t.cached for t in timings)
    full_ratio = statistics.median(t.calibrated / t.cached for t in timings)
    overall = sum(rows["scratch"]) / sum(rows["cached"])
    click.echo(
        f"{title:24s} {len(timings):4d} {cached:10.1f} {scratch:10.1f} {calibrated:10.1f}"
        f" {ratio:8.1f} {full_ratio:8.1f} {overall:8.1f}"
    )


@click.command()
@click.option("--job", type=click.Path(path_type=Path), help="A job file; default: the reference.")
@click.option("--sequence", type=click.Path(path_type=Path), help="Configurations, as JSON.")
@click.option("--save", type=click.Path(path_type=Path), help="Where to write the sequence.")
@click.option("--trials", default=160)
@click.option("--changes", "count", default=12, help="Configurations of each kind of change.")
def main(
    job: Path | None, sequence: Path | None, save: Path | None, trials: int, count: int
) -> None:
    """Prints a table of processor milliseconds: median cached, from scratch, and the ratios."""
    spec = JobSpec.model_validate(SPEC) if job is None else load_job(job)
    click.echo(
        f"{'change':24s} {'n':>4s} {'cached ms':>10s} {'scratch ms':>10s} {'+ calib.':>10s}"
        f" {'ratio':>8s} {'+ calib.':>8s} {'in all':>8s}"
    )
    bench = Bench(spec)
    bench.compare(Configuration(Plan.uniform([x.name for x in bench.layers], Precision(4, 8))))
    kinds: dict[str, list[Timing]] = {}
    for kind, configuration in changes(bench, count):
        kinds.setdefault(kind, []).append(bench.compare(configuration))
    for kind, timings in kinds.items():
        report(kind, timings)
    if sequence is None:
        configurations = searched(spec, trials)
    else:
        content = json.loads(sequence.read_text())
        configurations = [Configuration.from_dict(entry) for entry in content][:trials]
    if save is not None:
        save.write_text(json.dumps([entry.to_dict() for entry in configurations]))
    bench = Bench(spec)
    report("a search's sequence", [bench.compare(entry) for entry in configurations])


if __name__ == "__main__":
    main()

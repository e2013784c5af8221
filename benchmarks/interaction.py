"""Plans from cells that whole plans corrected, against plans from the cells alone.

A study is run in this process: full precision, uniform precisions and the program's plans are
measured on 512 samples, then `--further` more plans of the program, once with the cells as they
were profiled and once corrected by the plans so far (`search.correction`). Both are judged on
samples that neither saw: at 60 sizes between the smallest and the largest plan of the program, by
the held-out divergence of the plan with the least measured one.

    OMP_NUM_THREADS=1 python -m benchmarks.interaction --seeds 300,301,302 --out interaction.json

Runs that `--out` already holds are read from it, so an interrupted run resumes.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch

from benchmarks.choice import SELECTION, job
from benchmarks.in_process import profile
from benchmarks.p4q import interval
from bitfront.plan import Plan
from bitfront.spec import JobSpec
from bitfront.trial import Origin, Proposal, Trial, TrialState
from service.study.proxy_search import ProxySearch
from workers.process import model_cache
from workers.scheduling.worker_config import WorkerConfig

# By name: the model, and what its job has in place of that of `benchmarks.choice`.
CASES: Final[dict[str, tuple[str, dict[str, dict[str, object]]]]] = {
    "digit-llava, weights": ("digit-llava", {}),
    "digit-llava, inputs of 4 bits": ("digit-llava", {"space": {"activation_bits": [4]}}),
    "digit-clip, weights": ("digit-clip", {}),
    "digit-clip, inputs of 4 bits": ("digit-clip", {"space": {"activation_bits": [4]}}),
}
SIZES: Final = 60

Run = dict[str, object]


class Measurer:
    """Evaluates each plan once."""

    def __init__(self, spec: JobSpec) -> None:
        self._evaluator = model_cache.evaluator(WorkerConfig(spec))
        self._known: dict[Plan, tuple[dict[str, float], float, float]] = {}

    def __call__(self, seed: Proposal, number: int) -> Trial:
        """The complete trial of a proposal, with what the first samples say."""
        return replace(
            Trial.of("s", number, seed),
            state=TrialState.COMPLETE,
            values=self._measured(seed)[0],
        )

    def held_out(self, trial: Trial) -> tuple[float, float]:
        """The divergence and the error of a trial on the other samples."""
        return self._known[trial.configuration.plan][1:]

    def _measured(self, seed: Proposal) -> tuple[dict[str, float], float, float]:
        plan = seed.configuration.plan
        if plan not in self._known:
            evaluation = self._evaluator.evaluate(seed.configuration)
            assert evaluation.samples is not None
            nats, right = evaluation.samples.divergence, evaluation.samples.right
            values = {
                "error": 1 - float(right[:SELECTION].mean()),
                "nbytes": evaluation.metrics["nbytes"],
                "divergence": float(nats[:SELECTION].mean()),
            }
            error = 1 - float(right[SELECTION:].mean())
            self._known[plan] = values, float(nats[SELECTION:].mean()), error
        return self._known[plan]


def run(spec: JobSpec, further: int) -> Run:
    """A study of the job with and without correction."""
    search = ProxySearch(spec, profile(spec)[0])
    measure = Measurer(spec)
    seeds = [measure(seed, number) for number, seed in enumerate(search.seeds())]
    plans = [trial for trial in seeds if trial.origin is Origin.PROGRAM]
    nbytes = [trial.values["nbytes"] for trial in plans]
    sizes = np.linspace(min(nbytes), max(nbytes), SIZES)

    def went_on(*, learn: bool) -> list[Trial]:
        trials = list(seeds)
        known = {trial.configuration.digest for trial in seeds}
        source = search.further_seeds((lambda: trials) if learn else tuple)
        for seed in islice(_fresh(source, known), further):
            trials.append(measure(seed, len(trials)))
        return trials

    started_s = time.process_time()
    correction = search.correction(seeds)
    seconds = time.process_time() - started_s
    assert correction is not None
    found: Run = {
        "correct_s": seconds,
        "is_better": correction.is_better,
        "correlation": correction.correlations,
    }
    uniform = [trial for trial in seeds if trial.origin is Origin.BASELINE]
    for name, trials in (
        ("uniform", uniform),
        ("seeds", seeds),
        ("cells", went_on(learn=False)),
        ("corrected cells", went_on(learn=True)),
    ):
        found[name] = [at(trials, float(size), measure.held_out) for size in sizes]
    return found


def _fresh(source: Iterator[Proposal], known: set[str]) -> Iterator[Proposal]:
    for seed in source:
        if seed.configuration.digest not in known:
            known.add(seed.configuration.digest)
            yield seed


def at(
    trials: Sequence[Trial], size: float, held_out: Callable[[Trial], tuple[float, float]]
) -> tuple[float, float] | None:
    """What the trial of a size that measured least is worth; None where none is so small."""
    within = [trial for trial in trials if trial.values["nbytes"] <= size]
    if not within:
        return None
    return held_out(min(within, key=lambda trial: trial.values["divergence"]))


def report(case: str, runs: Sequence[Run]) -> None:
    """Prints the table of a case: means over the sizes, and 95 % intervals over the seeds."""
    before, after = ([run["correlation"][n] for run in runs] for n in (0, 1))  # type: ignore[index]
    click.echo(f"\n{case}, {len(runs)} seeds: rank correlation {before} before, {after} after\n")
    click.echo("| plans | geometric mean divergence | in the smallest third | error in % |")
    click.echo("|---|---|---|---|")
    for name in ("uniform", "seeds", "cells", "corrected cells"):
        rows = [[pair for pair in run[name] if pair is not None] for run in runs]  # type: ignore[attr-defined]
        cells = [
            interval([1000 * math.exp(np.mean([math.log(d) for d, _ in row])) for row in rows]),
            interval(
                [
                    1000 * math.exp(np.mean([math.log(d) for d, _ in row[: SIZES // 3]]))
                    for row in rows
                ]
            ),
            interval([100 * float(np.mean([error for _, error in row])) for row in rows]),
        ]
        click.echo(f"| {name} | {' | '.join(cells)} |")


@click.command()
@click.option("--seeds", default="300,301,302,303,304", show_default=True)
@click.option("--cases", default=";".join(CASES), show_default=True)
@click.option("--further", default=24, help="Plans after the seeds.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("interaction.json"))
def main(seeds: str, cases: str, further: int, out: Path) -> None:
    """Runs what is not known yet, and prints the tables."""
    torch.set_num_threads(1)
    known: dict[str, Run] = json.loads(out.read_text()) if out.exists() else {}
    for seed in seeds.split(","):
        for case in cases.split(";"):
            name = f"{case}, {seed}"
            if name not in known:
                model, changes = CASES[case]
                content = job(model, int(seed), out.parent).model_dump(mode="json")
                content["search"]["correct_cells"] = True
                for section, values in changes.items():
                    content[section] |= values
                known[name] = run(JobSpec.model_validate(content), further)
                out.write_text(json.dumps(known))
                click.echo(f"{name} is done", err=True)
                model_cache.release()
    for case in cases.split(";"):
        runs = [run for name, run in known.items() if name.rpartition(", ")[0] == case]
        if runs:
            report(case, runs)


if __name__ == "__main__":
    main()

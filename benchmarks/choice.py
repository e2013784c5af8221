"""What `best` answers, against the program's plan, the raw choice, and the oracle.

For each model and calibration seed a study is run in this process: its seeds (full precision,
uniform precisions, the program's plans at budgets from 2.25 to 4 bits a weight), then the sampler
up to `--trials`. Each trial is evaluated once on a pool of samples; then, over and over, 512 are
drawn as the selection split, a choice is made by them, and the others judge it. Weights only,
symmetric, one scale a channel, a block a layer.

    OMP_NUM_THREADS=1 python -m benchmarks.choice --calibrations 5 --out choice.json

Studies that `--out` already holds are read from it, so an interrupted run resumes.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.in_process import profile
from benchmarks.made_up_trials import OBJECTIVES, complete
from benchmarks.p4q import interval
from benchmarks.three_models import MODELS, prepare, sections
from bitfront.plan import Configuration
from bitfront.samples import SampleResults
from bitfront.spec import JobSpec, Sampler
from bitfront.trial import Measured, Origin
from search.choice import Ranking, choose
from search.estimate import estimate_errors
from search.sampler import Proposer
from service.study.proxy_search import ProxySearch
from workers.process import model_cache
from workers.scheduling.worker_config import WorkerConfig

BUDGETS: Final = (2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0)
SELECTION: Final = 512
POOL: Final = {"digit-clip": 2560, "shapes-clip": 3584, "digit-llava": 2048}

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class PoolTrial:
    """One trial of one study, on all samples of the pool.

    Attributes:
        origin: Who proposed it.
        nbytes: Its size.
        proxy: The sum of its cells' errors.
        samples: What comes out for each sample.
    """

    origin: Origin
    nbytes: float
    proxy: float
    samples: SampleResults

    def to_dict(self) -> dict[str, object]:
        """As plain JSON."""
        packed = self.samples.packed.hex()
        return {
            "origin": self.origin,
            "nbytes": self.nbytes,
            "proxy": self.proxy,
            "samples": packed,
        }


@dataclass(frozen=True)
class Row:
    """A trial as one draw of selection samples shows it, and what the others say of it.

    Attributes:
        measured: As a choice sees it.
        origin: Who proposed it.
        proxy: The sum of its cells' errors.
        error: On the held-out samples.
        divergence: On the held-out samples, in nats.
    """

    measured: Measured
    origin: Origin
    proxy: float
    error: float
    divergence: float


def job(model: str, seed: int, folder: Path) -> JobSpec:
    """The job of a model with fresh samples."""
    samples = {"calibration": 64, "tuning": 4, "selection": POOL[model], "test": 4}
    low, high = BUDGETS[0], BUDGETS[-1]
    return JobSpec.model_validate(
        {
            "study": f"{model}-{seed}",
            **sections(model, folder, samples, seed),
            "quantizer": {"scheme": "symmetric", "rounding": "nearest"},
            "partition": {"granularity": "layer"},
            "space": {"weight_bits": [2, 3, 4, 6, 8], "activation_bits": [16]},
            "search": {"from_bits": low, "to_bits": high, "budgets": len(BUDGETS), "seed": seed},
        }
    )


def study(spec: JobSpec, trials: int) -> list[PoolTrial]:
    """The trials of a study of that job; the sampler hears of the first selection samples."""
    found, _ = profile(spec)
    proxy_search = ProxySearch(spec, found)
    evaluator = model_cache.evaluator(WorkerConfig(spec))
    proposer = Proposer(proxy_search.space, OBJECTIVES, Sampler.TPE, spec.search.seed)
    measured: list[PoolTrial] = []

    def measure(configuration: Configuration, origin: Origin) -> None:
        evaluation = evaluator.evaluate(configuration)
        assert evaluation.samples is not None
        nbytes = evaluation.metrics["nbytes"]
        error = 1 - float(evaluation.samples.right[:SELECTION].mean())
        proposer.tell(complete(configuration, (error, nbytes)))
        proxy = proxy_search.proxy_error(configuration.plan) or 0.0
        measured.append(PoolTrial(origin, nbytes, proxy, evaluation.samples))

    known: set[str] = set()
    for seed in proxy_search.seeds():
        if seed.configuration.digest not in known:
            known.add(seed.configuration.digest)
            proposer.start(seed.configuration)
            measure(seed.configuration, seed.origin)
    while len(measured) < trials and (proposal := proposer.propose()) is not None:
        measure(proposal.configuration, Origin.SAMPLER)
    return measured


def drawn(trials: Sequence[PoolTrial], seed: int) -> list[Row]:
    """The trials on selection samples that a seed draws, judged by all other samples."""
    order = np.random.default_rng(seed).permutation(len(trials[0].samples))
    chosen, others = order[:SELECTION], order[SELECTION:]
    rows = []
    for number, trial in enumerate(trials):
        right, nats = trial.samples.right, trial.samples.divergence
        own = SampleResults.of(right[chosen].tolist(), nats[chosen].tolist())
        values = {
            "error": 1 - float(right[chosen].mean()),
            "nbytes": trial.nbytes,
            "divergence": float(nats[chosen].mean()),
        }
        measured = Measured("study", number, values, samples=own)
        error, divergence = 1 - float(right[others].mean()), float(nats[others].mean())
        rows.append(Row(measured, trial.origin, trial.proxy, error, divergence))
    return rows


def answers(rows: Sequence[Row]) -> list[dict[str, Row]]:
    """At each budget: the program's plan, both choices, and both oracles.

    The smallest and the largest plan of the program have the first and the last budget; those
    between are as evenly spaced as the budgets are.
    """
    trials = [row.measured for row in rows]
    plans = [row for row in rows if row.origin is Origin.PROGRAM]
    sizes = sorted(plan.measured.values["nbytes"] for plan in plans)
    found = []
    for wanted in np.linspace(sizes[0], sizes[-1], len(BUDGETS)):
        limits = {"nbytes": float(wanted)}
        fitting = [plan for plan in plans if plan.measured.values["nbytes"] <= wanted]
        plan = max(fitting, key=lambda row: row.measured.values["nbytes"])
        within = [row for row in rows if row.measured.values["nbytes"] <= limits["nbytes"]]
        chosen = {ranking: choose(trials, OBJECTIVES, limits, ranking) for ranking in Ranking}
        best, raw = chosen[Ranking.ESTIMATE], chosen[Ranking.ERROR]
        assert best is not None
        assert raw is not None
        found.append(
            {
                "program": plan,
                "best": rows[best.answer.number],
                "raw": rows[raw.answer.number],
                "oracle, divergence": min(within, key=lambda row: row.divergence),
                "oracle, error": min(within, key=lambda row: row.error),
            }
        )
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean over the draws, and the standard deviation of one draw."""
    table = np.asarray(values)
    return float(table.mean()), float(table.std(ddof=1)) if len(table) > 1 else float("nan")


def report(model: str, studies: Sequence[Sequence[Row]], draws: int) -> None:
    """Prints the table of a model.

    Args:
        model: Its name.
        studies: Each study once for every draw of selection samples, the draws of one together.
        draws: How many draws each study has.
    """
    chosen = [answers(rows) for rows in studies]
    count = len(studies) // draws
    click.echo(f"\n{model}: {count} studies, {draws} draws each, {len(studies[0])} trials a study")
    names = list(chosen[0][0])
    click.echo("bits  " + "".join(f"{name:>26s}" for name in names))
    for place, bits in enumerate(BUDGETS):
        at = [own[place] for own in chosen]
        cells = []
        for name in names:
            divergence = spread([own[name].divergence for own in at])
            error = 100 * np.mean([own[name].error for own in at])
            cells.append(f"{divergence[0]:10.4f} ±{divergence[1]:7.4f} {error:5.2f} %")
        click.echo(f"{bits:4.2f}  " + "".join(f"{cell:>26s}" for cell in cells))
    for figure in ("divergence", "error"):
        _report_distance(chosen, figure)
        _report_studies(chosen, figure, draws)
    _report_estimator(studies)


def _report_distance(chosen: Sequence[Sequence[Mapping[str, Row]]], figure: str) -> None:
    """How far the answers are from the oracle and from the program's plan, mean over budgets."""

    def distance(name: str, base: str) -> list[float]:
        return [
            float(np.mean([getattr(at[name], figure) - getattr(at[base], figure) for at in own]))
            for own in chosen
        ]

    oracle = f"oracle, {figure}"
    raw, best = spread(distance("raw", oracle)), spread(distance("best", oracle))
    plan = spread(distance("best", "program"))
    click.echo(
        f"{figure}: from the oracle, raw {raw[0]:.5f} ± {raw[1]:.5f}, best {best[0]:.5f} ± "
        f"{best[1]:.5f} ({1 - best[0] / raw[0] if raw[0] else 0:.0%} of the distance gone); "
        f"best less the program's plan {plan[0]:+.5f} ± {plan[1]:.5f}"
    )


def _report_studies(chosen: Sequence[Sequence[Mapping[str, Row]]], figure: str, draws: int) -> None:
    """The same with 95 % intervals over the studies, each the mean of its draws and budgets."""

    def means(name: str, base: str) -> Vector:
        less = [
            [getattr(at[name], figure) - getattr(at[base], figure) for at in own] for own in chosen
        ]
        found: Vector = 1000 * np.array(less).mean(axis=1).reshape(-1, draws).mean(axis=1)
        return found

    raw, best = means("raw", f"oracle, {figure}"), means("best", f"oracle, {figure}")
    told = [interval(own.tolist()) for own in (raw, best, raw - best, means("best", "program"))]
    click.echo(
        f"{figure} times 1,000 over the studies: raw less the oracle {told[0]}, best {told[1]}, "
        f"raw less best {told[2]}, best less the program's plan {told[3]}"
    )


def _report_estimator(studies: Sequence[Sequence[Row]]) -> None:
    """The error of the estimate and of plain error, against the held-out error.

    Both as differences from full precision on the same samples: what a choice compares.
    """
    plain, drawn = [], []
    ranks: list[list[float]] = []
    for rows in studies:
        estimates = estimate_errors([row.measured for row in rows])
        measured = _table(rows, [row.measured.values["error"] for row in rows])
        estimated = _table(rows, [estimates[row.measured.place].error for row in rows])
        true = _table(rows, [row.error for row in rows])
        plain.append(float(np.mean((measured - true) ** 2)))
        drawn.append(float(np.mean((estimated - true) ** 2)))
        held_out = [row.divergence for row in rows]
        against = (
            [row.measured.values["divergence"] for row in rows],
            [row.measured.values["error"] for row in rows],
            [row.proxy for row in rows],
            [estimates[row.measured.place].error for row in rows],
        )
        ranks.append([float(spearmanr(held_out, own).statistic) for own in against])
    ratio = np.mean(drawn) / np.mean(plain)
    click.echo(
        f"mean squared error of error, in points squared: plain {1e4 * np.mean(plain):.3f}, "
        f"estimate {1e4 * np.mean(drawn):.3f} (ratio {ratio:.2f})"
    )
    means = np.mean(ranks, axis=0)
    click.echo(
        f"rank correlation with held-out divergence: divergence {means[0]:.3f}, error "
        f"{means[1]:.3f}, proxy {means[2]:.3f}, estimate {means[3]:.3f}"
    )


def _table(rows: Sequence[Row], values: Sequence[float]) -> Vector:
    """The values as differences from full precision's, without full precision."""
    table: Vector = np.asarray(values, dtype=np.float64)
    full = int(np.argmin([row.measured.values["divergence"] for row in rows]))
    return np.delete(table - table[full], full)


@click.command()
@click.option("--calibrations", default=5, help="Studies of each model, with fresh samples.")
@click.option("--draws", default=40, help="Draws of selection samples from each pool.")
@click.option("--trials", default=32)
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option("--steps", default=1400, help="Training steps of the third model.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("choice.json"))
def main(calibrations: int, draws: int, trials: int, models: str, steps: int, out: Path) -> None:
    """Runs the studies that are not known yet, and prints the tables."""
    known = json.loads(out.read_text()) if out.exists() else {}
    folder = out.parent / "shapes"
    named = models.split(",")
    for seed in range(100, 100 + calibrations):
        for model in named:
            name = f"{model}-{seed}"
            if name not in known:
                prepare(model, folder, 80, steps=steps)
                started_s = time.process_time()
                known[name] = [t.to_dict() for t in study(job(model, seed, folder), trials)]
                out.write_text(json.dumps(known))
                click.echo(f"{name}: {time.process_time() - started_s:.0f} processor seconds")
                model_cache.release()
    for model in named:
        pools = [
            [
                PoolTrial(
                    Origin(row["origin"]),
                    row["nbytes"],
                    row["proxy"],
                    SampleResults(bytes.fromhex(row["samples"])),
                )
                for row in rows
            ]
            for name, rows in known.items()
            if name.rpartition("-")[0] == model
        ]
        if pools:
            report(model, [drawn(pool, seed) for pool in pools for seed in range(draws)], draws)


if __name__ == "__main__":
    main()

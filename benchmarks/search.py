"""Hypervolume against trials: bitfront, Optuna on the unpruned space, random, the program alone.

Every method evaluates the same way on the selection split of the reference; an evaluation
that another method or seed has made already is looked up, which changes no curve.

    python -m benchmarks.search --trials 100 --seeds 5
"""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np

from benchmarks.in_process import profile
from benchmarks.made_up_trials import OBJECTIVES, complete
from bitfront.layers import Block
from bitfront.plan import Configuration
from bitfront.profile import Profile
from bitfront.spec import JobSpec, Sampler
from bitfront.trial import Origin
from objectives.evaluation.evaluator import Evaluator
from search.front import hypervolume
from search.options import block_options
from search.sampler import Proposer
from search.space import SearchSpace
from service.study.proxy_search import ProxySearch
from workers.process import model_cache
from workers.scheduling.proposals import Proposals
from workers.scheduling.worker_config import WorkerConfig

Measure = Callable[[Configuration], tuple[float, ...]]

SPEC = {
    "study": "benchmark",
    "model": {"source": "reference"},
    "data": {
        "source": "reference",
        "samples": {"calibration": 96, "tuning": 64, "selection": 384, "test": 64},
    },
    "quantizer": {"rounding": "nearest"},
    "space": {"weight_bits": [2, 3, 4, 6, 8], "activation_bits": [8]},
    "search": {"budgets": 12},
}


def unpruned(spec: JobSpec, measured: Profile) -> SearchSpace:
    """One variable a layer with every precision: what Optuna has without bitfront."""
    blocks = [Block(layer.name, layer.tower, (layer.name,)) for layer in measured.layers]
    options = {
        block.name: sorted(block_options(block, measured.layers, spec.space, spec.quantizer))
        for block in blocks
    }
    return SearchSpace(blocks, options, {}, None)


def sampled(
    space: SearchSpace, sampler: Sampler, seed: int, measure: Measure
) -> Iterator[tuple[float, ...]]:
    """The values of one trial after another, as the sampler proposes them."""
    proposer = Proposer(space, OBJECTIVES, sampler, seed)
    yield from _continue(proposer, measure)


def ours(
    spec: JobSpec, proxy_search: ProxySearch, seed: int, measure: Measure
) -> Iterator[tuple[float, ...]]:
    """A study: its seeds, then the program and the sampler in the pruned space in turn."""
    search = spec.search.model_copy(update={"seed": seed})
    proposals = Proposals(
        spec.model_copy(update={"search": search}),
        proxy_search.space,
        proxy_search.seeds(),
        review=lambda _: None,
        further={Origin.PROGRAM: proxy_search.further_seeds()},
    )
    while (proposal := proposals.next(is_running=False, trials=tuple)) is not None:
        values = measure(proposal.configuration)
        trial = replace(complete(proposal.configuration, values), origin=proposal.origin)
        proposals.start(trial)
        proposals.tell(trial)
        yield values


def _continue(proposer: Proposer, measure: Measure) -> Iterator[tuple[float, ...]]:
    while (proposal := proposer.propose()) is not None:
        values = measure(proposal.configuration)
        proposer.tell(complete(proposal.configuration, values))
        yield values


def program_alone(
    spec: JobSpec, measured: Profile, trials: int, measure: Measure
) -> Iterator[tuple[float, ...]]:
    """The program's optimum at as many budgets as there are trials."""
    dense = spec.model_copy(
        update={"search": spec.search.model_copy(update={"budgets": trials, "prune": False})}
    )
    for start in ProxySearch(dense, measured).program_seeds():
        yield measure(start.configuration)


def curve(
    values: Iterator[tuple[float, ...]], trials: int, reference: Sequence[float]
) -> list[float]:
    """The hypervolume after 1, 2, ... trials; flat where a method ends early."""
    rows: list[tuple[float, ...]] = []
    volumes: list[float] = []
    for row in values:
        rows.append(row)
        volumes.append(hypervolume(np.array(rows), reference))
        if len(rows) == trials:
            break
    return volumes + volumes[-1:] * (trials - len(volumes))


@click.command()
@click.option("--trials", default=100)
@click.option("--seeds", default=5)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/images"))
def main(trials: int, seeds: int, out: Path) -> None:
    """Runs every method with every seed, prints a table and draws the curves."""
    spec = JobSpec.model_validate(SPEC)
    measured, profile_s = profile(spec)
    evaluator: Evaluator = model_cache.evaluator(WorkerConfig(spec))
    known: dict[str, tuple[float, ...]] = {}

    def measure(configuration: Configuration) -> tuple[float, ...]:
        if configuration.digest not in known:
            values = evaluator.evaluate(configuration).values
            known[configuration.digest] = (values["error"], values["nbytes"])
        return known[configuration.digest]

    proxy_search = ProxySearch(spec, measured)
    reference = (1.0, measure(proxy_search.seeds()[0].configuration)[1])
    space = unpruned(spec, measured)
    methods: dict[str, Callable[[int], Iterator[tuple[float, ...]]]] = {
        "bitfront": lambda seed: ours(spec, proxy_search, seed, measure),
        "program alone": lambda _: program_alone(spec, measured, trials, measure),
        "TPE, unpruned": lambda seed: sampled(space, Sampler.TPE, seed, measure),
        "NSGA-II, unpruned": lambda seed: sampled(space, Sampler.NSGA2, seed, measure),
        "random": lambda seed: sampled(space, Sampler.RANDOM, seed, measure),
    }
    curves = {
        name: [curve(method(seed), trials, reference) for seed in range(seeds)]
        for name, method in methods.items()
    }
    click.echo(f"profile: {profile_s:.1f} s, {len(measured.cells)} joint cells")
    report(curves, trials)
    draw(curves, out / "search.png")
    (out / "search.json").write_text(json.dumps(curves))


def report(curves: dict[str, list[list[float]]], trials: int) -> None:
    """Prints final hypervolumes, and when bitfront reaches each method's."""
    click.echo(f"{'method':20s} {'final':>8s} {'sd':>8s}  trials for bitfront to reach it")
    for name, runs in curves.items():
        finals = [run[-1] for run in runs]
        reached = [
            next((n for n, volume in enumerate(run, 1) if volume >= final), None)
            for run, final in zip(curves["bitfront"], finals, strict=True)
        ]
        spread = statistics.stdev(finals) if len(finals) > 1 else 0.0
        click.echo(
            f"{name:20s} {statistics.mean(finals):8.5f} {spread:8.5f}  {reached} of {trials}"
        )


def draw(curves: dict[str, list[list[float]]], path: Path) -> None:
    """Draws the mean and the range of each method's curves."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, runs in curves.items():
        values = np.array(runs)
        x = np.arange(1, values.shape[1] + 1)
        (line,) = axes.plot(x, values.mean(axis=0), label=name, linewidth=2)
        axes.fill_between(
            x, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.15, lw=0
        )
    low = min(run[len(run) // 8] for runs in curves.values() for run in runs)
    axes.set_ylim(bottom=low)
    axes.set_xlabel("trials")
    axes.set_ylabel("hypervolume (share of the full-precision box)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

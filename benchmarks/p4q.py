"""P4Q on the bundled models: what it wins back, its settings, its speed, and joint search.

    OMP_NUM_THREADS=1 python -m benchmarks.p4q table --seeds 5
    OMP_NUM_THREADS=1 python -m benchmarks.p4q ablation --seeds 5
    OMP_NUM_THREADS=1 python -m benchmarks.p4q generative --seeds 5
    OMP_NUM_THREADS=1 python -m benchmarks.p4q speed
    OMP_NUM_THREADS=1 python -m benchmarks.p4q joint --seeds 5
    OMP_NUM_THREADS=1 python -m benchmarks.p4q relation --seeds 5

A seed draws its own samples of every split, and starts its own training. Accuracy is that on the
test split, in per cent, with the half width of the 95 % interval of the mean over seeds (Student's
t); settings were chosen on selection splits of other seeds.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import click
from scipy.stats import t

from benchmarks.in_process import profile
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.spec import JobSpec
from objectives.evaluation import Evaluator
from objectives.task import SplitName
from search.seeds import uniform_precision
from service.shortlist import Shortlist

FULL = Plan(())
BEST = Recovery(
    context_length=4, reduction=2, adapter_bits=8, blend=0.5, distillation=4.0, views=4, steps=200
)
UNIFORM = ((8, 8), (3, 8), (2, 8), (4, 4))
TEST = SplitName.TEST


def job(seed: int, model: str = "digit-clip", **sections: object) -> JobSpec:
    """The job whose model, data and seed a measurement takes."""
    samples = {"calibration": 96, "tuning": 2048, "selection": 2000, "test": 4000}
    if model == "digit-llava":
        samples |= {"tuning": 1024, "selection": 1000, "test": 2000}
    return JobSpec.model_validate(
        {
            "study": "p4q",
            "model": {"source": "reference", "name": model, "device": "cpu"},
            "data": {"source": "reference", "samples": samples, "seed": seed, "batch_size": 128},
            "space": {"weight_bits": [2, 3, 4, 6, 8], "activation_bits": [4, 8]},
            "search": {"seed": seed},
            **sections,
        }
    )


def uniform(evaluator: Evaluator, weight_bits: int, activation_bits: int) -> Plan:
    """The same precision for every layer."""
    space = evaluator.spec.space
    return Plan.of(
        {
            layer.name: uniform_precision(layer, weight_bits, activation_bits, space)
            for layer in evaluator.model.layers
        }
    )


def searched(seed: int, bits: float, model: str = "digit-clip") -> Plan:
    """The program's plan of so many bits a weight, with inputs of 8 bits."""
    space = {"weight_bits": [2, 3, 4, 6, 8], "activation_bits": [8]}
    spec = job(seed, model, space=space, objectives=["error", "nbytes"])
    measured, _ = profile(spec)
    shortlist = Shortlist(spec, measured)
    weights = {layer.name: layer.weights for layer in measured.layers}

    def mean_bits(plan: Plan) -> float:
        total = sum(weights[name] * precision.weight_bits for name, precision in plan)
        return total / sum(weights.values())

    plans = [seed.configuration.plan for seed in shortlist.program_seeds()]
    return min(plans, key=lambda plan: abs(mean_bits(plan) - bits))


def interval(values: Sequence[float]) -> str:
    """The mean with the half width of its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2f} ± {half:.2f}"


def accuracy(
    evaluator: Evaluator, plan: Plan, recovery: Recovery | None, split: SplitName = TEST
) -> float:
    """Per cent of a split that comes out right."""
    recovery = None if recovery is None else recovery.canonical
    figures = evaluator.judge.figures(Configuration(plan, recovery), split)
    return 100 * (1 - figures["error"])


def nbytes(evaluator: Evaluator, plan: Plan, recovery: Recovery | None = None) -> int:
    """Bytes of the packed checkpoint."""
    return sum(evaluator.nbytes(Configuration(plan, recovery)).values())


METHODS: Mapping[str, Recovery | None] = {
    "quantized only": None,
    "prompt only": replace(BEST, reduction=0),
    "adapter only": replace(BEST, context_length=0),
    "both, no distillation": replace(BEST, distillation=0.0),
    "both": BEST,
}


def print_rows(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """A table in Markdown."""
    click.echo(f"\n| | {' | '.join(head)} |\n|---|{'---|' * len(head)}")
    for name, cells in rows.items():
        click.echo(f"| {name} | {' | '.join(cells)} |")


@click.group()
def main() -> None:
    """Measure P4Q."""


def _plans(evaluator: Evaluator, seed: int, model: str) -> dict[str, Plan]:
    plans = {f"w{w}a{a}": uniform(evaluator, w, a) for w, a in UNIFORM}
    return plans | {"searched, 2.5 bits": searched(seed, 2.5, model)}


def _table(seeds: int, model: str, methods: Mapping[str, Recovery | None], coop: Recovery) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    shares: dict[str, dict[str, list[float]]] = {}
    extra: dict[str, list[float]] = {}
    full, prompted = [], []
    for seed in range(seeds):
        evaluator = Evaluator.from_spec(job(seed, model))
        full.append(accuracy(evaluator, FULL, None))
        prompted.append(accuracy(evaluator, FULL, coop))
        for title, plan in _plans(evaluator, seed, model).items():
            plain = accuracy(evaluator, plan, None)
            for method, recovery in methods.items():
                value = accuracy(evaluator, plan, recovery)
                found.setdefault(method, {}).setdefault(title, []).append(value)
                if full[-1] - plain > 1:
                    share = 100 * (value - plain) / (full[-1] - plain)
                    shares.setdefault(method, {}).setdefault(title, []).append(share)
            added = 100 * (nbytes(evaluator, plan, methods["both"]) / nbytes(evaluator, plan) - 1)
            extra.setdefault(title, []).append(added)
        click.echo(f"seed {seed} done", err=True)
    titles = list(extra)
    click.echo(f"full precision: {interval(full)}")
    click.echo(f"full precision with a CoOp prompt: {interval(prompted)}")
    print_rows(titles, {m: [interval(row[title]) for title in titles] for m, row in found.items()})
    click.echo("\nshare of the lost accuracy that comes back, in %")
    print_rows(
        titles,
        {
            method: [interval(row[title]) if title in row else "-" for title in titles]
            for method, row in shares.items()
        },
    )
    click.echo(f"bytes added by both: { ({k: f'{v[0]:.2f} %' for k, v in extra.items()}) }")


@main.command()
@click.option("--seeds", default=5)
def table(seeds: int) -> None:
    """What each part of P4Q wins back (digit-clip)."""
    _table(seeds, "digit-clip", METHODS, replace(BEST, reduction=0, distillation=0.0))


GENERATIVE = Recovery(
    context_length=4, reduction=4, adapter_bits=8, blend=0.5, distillation=4.0, steps=200
)


@main.command()
@click.option("--seeds", default=5)
def generative(seeds: int) -> None:
    """The same for the generative model (digit-llava)."""
    methods = {
        "quantized only": None,
        "prompt only": replace(GENERATIVE, reduction=0),
        "adapter only": replace(GENERATIVE, context_length=0),
        "both, no distillation": replace(GENERATIVE, distillation=0.0),
        "both": GENERATIVE,
    }
    coop = replace(GENERATIVE, reduction=0, distillation=0.0)
    _table(seeds, "digit-llava", methods, coop)


ABLATIONS: Mapping[str, Mapping[str, Callable[[Recovery], Recovery]]] = {
    "context length M": {
        str(m): (lambda r, m=m: replace(r, context_length=m)) for m in (0, 4, 8, 16)
    },
    "reduction": {str(n): (lambda r, n=n: replace(r, reduction=n)) for n in (2, 4, 8)},
    "blend": {str(b): (lambda r, b=b: replace(r, blend=b)) for b in (0.1, 0.2, 0.5)},
    "adapter bits": {str(b): (lambda r, b=b: replace(r, adapter_bits=b)) for b in (16, 8, 6, 4)},
    "shots": {str(s or "all"): (lambda r, s=s: replace(r, shots=s)) for s in (1, 2, 4, 8, 16, 0)},
    "views": {str(v): (lambda r, v=v: replace(r, views=v)) for v in (0, 1, 4)},
    "class position": {
        p: (lambda r, p=p: replace(r, class_position=p)) for p in ("end", "middle", "front")
    },
    "class-specific": {
        str(c): (lambda r, c=c: replace(r, class_specific=c)) for c in (False, True)
    },
    "teacher": {s: (lambda r, s=s: replace(r, teacher=s)) for s in ("templates", "prompt")},
    "distillation weight": {
        str(w): (lambda r, w=w: replace(r, distillation=w)) for w in (0.0, 1.0, 4.0)
    },
    "steps": {str(n): (lambda r, n=n: replace(r, steps=n)) for n in (30, 60, 200)},
}


@main.command()
@click.option("--seeds", default=5)
@click.option("--only", multiple=True, help="Settings to vary.  [default: all]")
def ablation(seeds: int, only: Sequence[str]) -> None:
    """One setting after another, the others as in `BEST`."""
    bits = ((3, 8), (2, 8))
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for seed in range(seeds):
        evaluator = Evaluator.from_spec(job(seed))
        for setting, choices in ABLATIONS.items():
            if only and setting not in only:
                continue
            for choice, change in choices.items():
                for w, a in bits:
                    value = accuracy(evaluator, uniform(evaluator, w, a), change(BEST))
                    found.setdefault((setting, choice), {}).setdefault(f"w{w}a{a}", []).append(
                        value
                    )
        click.echo(f"seed {seed} done", err=True)
    titles = [f"w{w}a{a}" for w, a in bits]
    rows = {
        f"{setting} {choice}": [interval(row[title]) for title in titles]
        for (setting, choice), row in found.items()
    }
    print_rows(titles, rows)


if __name__ == "__main__":
    main()

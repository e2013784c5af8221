"""Q-VLM on the bundled models: dependency against DED, searches of clips, the mixed front.

    OMP_NUM_THREADS=1 python -m benchmarks.qvlm ded --seeds 3
    OMP_NUM_THREADS=1 python -m benchmarks.qvlm clips --seeds 5
    OMP_NUM_THREADS=1 python -m benchmarks.qvlm front

A seed draws its own calibration, selection and test samples.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import click
import torch
from scipy.stats import spearmanr, t
from torch import Tensor

from benchmarks.ded import Ded, list_pairs, measure_ded
from benchmarks.in_process import profile
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Configuration, Option, Plan, full_precision
from bitfront.precision import Precision
from bitfront.profile import ClipChoice, LayerEntropy
from bitfront.quant.inputs import InputQuantizer, LearnedBounds, input_levels
from bitfront.spec import JobSpec, PartitionSpec, QuantizerSpec, Rounding, VisionSpec
from bitfront.vlm import LayeredModel, PlanSwitch, load_model
from objectives.data.split_name import SplitName
from objectives.data.task import Task
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.family import Family
from objectives.evaluation.families.registry import load_family
from objectives.profiling.calibration import Ranges, calibrate, watch_calibration
from objectives.profiling.clips import ClipSearch, prefix_after, walk
from objectives.profiling.entropy import entropy_nats, measure_entropies, soft_assignment
from search.partition import partition
from service.study.proxy_search import ProxySearch
from workers.process import model_cache
from workers.scheduling.worker_config import WorkerConfig

CLIPS = (1.0, 0.995, 0.99, 0.985, 0.98)
MODELS = ("digit-llava", "digit-clip")
QUANTIZER = QuantizerSpec(rounding=Rounding.NEAREST)
_ELEMENTS = 60_000
# Models whose vision tower can be optimised.
OPTIMISED = frozenset({"digit-llava"})


def job(model: str, seed: int, **sections: object) -> JobSpec:
    """The job whose model, data and seed a measurement takes."""
    samples = {"calibration": 64, "tuning": 1, "selection": 512, "test": 2000}
    data = {"source": "reference", "samples": samples, "seed": seed, "batch_size": 64}
    if model == "digit-clip":
        data["templates"] = ["a picture of {}"]
    return JobSpec.model_validate(
        {
            "study": "qvlm",
            "model": {"source": "reference", "name": model, "device": "cpu"},
            "data": data,
            "quantizer": {"rounding": "nearest"},
            **sections,
        }
    )


@dataclass
class Subject:
    """A model family, calibrated for every clip."""

    family: Family
    ranges: Ranges

    @classmethod
    def load(cls, spec: JobSpec) -> "Subject":
        """What a job names."""
        family = load_family(spec.data, load_model(spec.model))
        return cls(family, calibrate(family.task, CLIPS))

    @property
    def task(self) -> Task:
        """The family's task."""
        return self.family.task

    @property
    def model(self) -> LayeredModel:
        """The task's model."""
        return self.task.model

    def searcher(self, bounds: LearnedBounds | None = None) -> ClipSearch:
        """A search on the calibration split."""
        switch = PlanSwitch(self.model, QUANTIZER, self.ranges, bounds=bounds or {})
        return ClipSearch(self.task, switch, CLIPS)

    def entropies(self, bits: int) -> list[LayerEntropy]:
        """The layers' entropies in full precision."""
        return measure_entropies(self.task, self.ranges, bits)


# Dependency and DED


Estimate = Callable[[Ded], float]


def estimators(subject: Subject, bits: int) -> dict[str, Estimate]:
    """What may stand for DED, as functions of a pair of steps."""
    entropies = {entry.layer: entry for entry in subject.entropies(bits)}
    values = inputs_under(subject, Plan(()))

    def error(layer: str, clip: float = 1.0) -> float:
        x = values[layer]
        rounded = InputQuantizer(bits, subject.ranges[layer][clip])(x)
        return float((rounded - x).square().sum() / x.square().sum())

    def element(layer: str) -> float:
        x = values[layer]
        levels = input_levels(subject.ranges[layer][1.0], bits)
        p = soft_assignment(x[:: max(1, len(x) // _ELEMENTS)], levels)
        return -float(torch.special.xlogy(p, p).sum(dim=-1).mean()) / math.log(2**bits)

    steps = {before.layers[0]: before.layers for before, _ in list_pairs(subject.model.layers)}
    after: dict[str, Tensor] = {}

    def rounded_before(pair: Ded) -> Tensor:
        """The later step's input where the earlier one is rounded."""
        if pair.before not in after:
            plan = Plan.uniform(steps[pair.before], Precision(bits, bits))
            after[pair.before] = inputs_under(subject, plan, pair.after)[pair.after]
        return after[pair.before]

    def arriving(pair: Ded) -> float:
        x = values[pair.after]
        return float((rounded_before(pair) - x).square().sum() / x.square().sum())

    def changed_codes(pair: Ded) -> float:
        levels = input_levels(subject.ranges[pair.after][1.0], bits)
        joint = torch.zeros(len(levels), len(levels), dtype=torch.float64)
        codes = [codes_of(x, levels) for x in (values[pair.after], rounded_before(pair))]
        ones = torch.ones(len(codes[0]), dtype=torch.float64)
        joint = joint.index_put_((codes[0], codes[1]), ones, accumulate=True) / len(ones)
        return (entropy_nats(joint) - entropy_nats(joint.sum(dim=1))) / math.log(2**bits)

    return {
        "conditional entropy (Eq 4)": lambda pair: entropies[pair.before].dependency or 0.0,
        "entropy of the earlier input": lambda pair: entropies[pair.before].entropy,
        "entropy of the later input": lambda pair: entropies[pair.after].entropy,
        "mean entropy of an element (Eq 5)": lambda pair: element(pair.after),
        "mutual information": lambda pair: (
            entropies[pair.after].entropy - (entropies[pair.before].dependency or 0.0)
        ),
        "conditional entropy of the later codes, before and after rounding": changed_codes,
        "rounding error that arrives": arriving,
        "quantization error, earlier input": lambda pair: error(pair.before),
        "quantization error, later input": lambda pair: error(pair.after),
    }


def codes_of(x: Tensor, levels: Tensor) -> Tensor:
    """The nearest level of every value."""
    step = levels[1] - levels[0]
    return ((x - levels[0]) / step).round().clamp(0, len(levels) - 1).long()


def inputs_under(subject: Subject, plan: Plan, only: str | None = None) -> dict[str, Tensor]:
    """The layers' inputs over the calibration split under a plan, flat."""
    switch = PlanSwitch(subject.model, QUANTIZER, subject.ranges)
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, x: Tensor) -> None:
        if only in (None, name):
            seen.setdefault(name, []).append(x.flatten())

    switch.to(plan)
    watch_calibration(subject.task, keep)
    switch.clear()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@click.group()
def main() -> None:
    """Q-VLM on the bundled models."""


@main.command()
@click.option("--seeds", default=3)
@click.option("--bits", default=4)
def ded(seeds: int, bits: int) -> None:
    """Spearman's rank correlation of every estimator with DED, over all neighbouring steps."""
    for name in MODELS:
        truths: list[list[float]] = []
        guesses: dict[str, list[list[float]]] = {}
        for seed in range(seeds):
            subject = Subject.load(job(name, seed))
            started_s = time.perf_counter()
            pairs = measure_ded(subject.searcher(), subject.model.layers, Precision(bits, bits))
            seconds = time.perf_counter() - started_s
            truths.append([pair.difference for pair in pairs])
            for title, estimate in estimators(subject, bits).items():
                guesses.setdefault(title, []).append([estimate(pair) for pair in pairs])
            runs, zeros = sum(pair.evaluations for pair in pairs), truths[-1].count(0.0)
            click.echo(
                f"{name}, seed {seed}: {len(pairs)} pairs, {zeros} without any difference, "
                f"{runs} joint runs, {seconds:.0f} s"
            )
        repeated = [spearman(one, other) for one, other in combinations(truths, 2)]
        click.echo(f"DED of one seed with that of another: {_signed(repeated)}\n")
        click.echo(f"| {name}, W{bits}A{bits} | each seed | means over the seeds |\n|---|---|---|")
        rows = []
        for title, values in guesses.items():
            each = [spearman(guess, truth) for guess, truth in zip(values, truths, strict=True)]
            rows.append((spearman(_means(values), _means(truths)), title, each))
        for mean, title, each in sorted(rows, reverse=True):
            click.echo(f"| {title} | {_signed(each)} | {mean:+.2f} |")
        click.echo()


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr(one, other)[0])


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]


def _signed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


@main.command()
@click.option("--seeds", default=3)
@click.option("--bits", default=4)
def samples(seeds: int, bits: int) -> None:
    """The same over input samples: one pair of layers, one point a sample (the paper's figure)."""
    for seed in range(seeds):
        subject = Subject.load(job("digit-llava", seed))
        for layer in range(4):
            prefix = f"model.language_model.layers.{layer}.mlp"
            entropy, error, truth = by_sample(
                subject, f"{prefix}.up_proj.weight", f"{prefix}.down_proj.weight", bits
            )
            click.echo(
                f"seed {seed}, decoder layer {layer}, up to down: "
                f"entropy {spearmanr(entropy, truth)[0]:+.2f}, "
                f"quantization error {spearmanr(error, truth)[0]:+.2f}, "
                f"{truth.count(0.0)} of {len(truth)} samples without any difference"
            )


def by_sample(
    subject: Subject, before: str, after: str, bits: int
) -> tuple[list[float], list[float], list[float]]:
    """For each calibration sample: entropy and rounding error of the later input, and DED."""
    seen: list[Tensor] = []

    def keep(name: str, x: Tensor) -> None:
        if name == after:
            seen.extend(x)

    watch_calibration(subject.task, keep)
    search = subject.searcher()
    runner, stream = search.runner, search.stream(Tower.LANGUAGE)
    full = runner.observe(stream, Plan(()), (before, after))
    errors: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}
    for first in CLIPS:
        for second in CLIPS:
            plan = Plan.of(
                {before: Precision(bits, bits, 0, first), after: Precision(bits, bits, 0, second)}
            )
            changed = runner.observe(stream, plan, (before, after))
            errors[first, second] = tuple(  # type: ignore[assignment]
                torch.cat(
                    [
                        (new - old).square().flatten(1).sum(1) / old.square().flatten(1).sum(1)
                        for old, new in zip(full[name], changed[name], strict=True)
                    ]
                )
                for name in (before, after)
            )
    levels = input_levels(subject.ranges[after][1.0], bits)
    rounded = InputQuantizer(bits, subject.ranges[after][1.0])
    entropy, error, truth = [], [], []
    for place, x in enumerate(seen):
        p = soft_assignment(x.flatten(), levels).mean(dim=0)
        entropy.append(entropy_nats(p) / math.log(2**bits))
        error.append(float((rounded(x) - x).square().sum() / x.square().sum()))
        greedy = min(CLIPS, key=lambda c: float(errors[c, 1.0][0][place]))
        one_by_one = min(float(errors[greedy, c][1][place]) for c in CLIPS)
        truth.append(one_by_one - min(float(own[1][place]) for own in errors.values()))
    return entropy, error, truth


# Searches of clips


def cut(layers: Sequence[Layer], depth: int) -> list[Block]:
    """Fixed blocks of `depth` neighbouring layers of a tower."""
    blocks = []
    for tower in dict.fromkeys(layer.tower for layer in layers):
        own = [layer.name for layer in layers if layer.tower is tower]
        parts = [own[start : start + depth] for start in range(0, len(own), depth)]
        blocks += [Block(part[0], tower, tuple(part)) for part in parts]
    return blocks


def all_pairs(
    search: ClipSearch, layers: Sequence[Layer], precision: Precision
) -> dict[str, ClipChoice]:
    """Every step jointly with the one after it: the costliest search."""
    chosen: dict[str, ClipChoice] = {}
    prefix = Plan(())
    pairs = list(list_pairs(layers))
    for before, after in pairs:
        pair = Block(before.name, after.tower, (*before.layers, *after.layers))
        found = search.joint(pair, Option((precision,) * len(pair.layers)), prefix)
        kept = Option(found.option.precisions[: len(before.layers)])
        chosen[before.name] = replace(found, option=kept)
        prefix = prefix_after(prefix, before, kept)
    ends = [after for _, after in pairs if after.name not in chosen]
    for block in ends:
        found = search.joint(block, Option((precision,) * len(block.layers)), prefix)
        chosen[block.name] = found
    return chosen


@dataclass
class Row:
    """One search: what it found and what it cost."""

    accuracy: float
    runs: int
    seconds: float
    blocks: int
    entropy: float


def strategies(
    subject: Subject, entropies: Sequence[LayerEntropy], threshold: float
) -> Mapping[str, list[Block] | None]:
    """The blocks of every search; None stands for all pairs."""
    layers = subject.model.layers
    by_entropy = partition(layers, entropies, PartitionSpec(threshold=threshold))
    return {
        "layer by layer": cut(layers, 1),
        "blocks of 2": cut(layers, 2),
        "blocks of 3": cut(layers, 3),
        "all pairs": None,
        "entropy partition": list(by_entropy),
    }


def run_search(
    subject: Subject,
    evaluator: Evaluator,
    bounds: LearnedBounds,
    blocks: list[Block] | None,
    precision: Precision,
) -> tuple[float, int, float, int]:
    """The test accuracy, the runs and seconds of the search, and how many blocks it had."""
    search = subject.searcher(bounds)
    layers = [layer for layer in subject.model.layers if layer.kind is not LayerKind.EMBEDDING]
    started_s = time.perf_counter()
    if blocks is None:
        chosen = all_pairs(search, layers, precision)
        members = {block.name: block.layers for pair in list_pairs(layers) for block in pair}
    else:
        options = {b.name: Option((precision,) * len(b.layers)) for b in blocks}
        chosen = walk(search, blocks, options)
        members = {block.name: block.layers for block in blocks}
    seconds = time.perf_counter() - started_s
    plan = Plan.of(
        {
            layer: p
            for name, choice in chosen.items()
            for layer, p in zip(members[name], choice.option.precisions, strict=True)
        }
    )
    runs = sum(choice.evaluations for choice in chosen.values())
    accuracy = 1 - evaluator.evaluate(Configuration(plan), SplitName.TEST).values["error"]
    evaluator.switch.clear()
    return accuracy, runs, seconds, len(chosen)


@main.command()
@click.option("--seeds", default=5)
@click.option("--bits", default=(4, 6), multiple=True)
@click.option("--model", default=MODELS, multiple=True)
def clips(seeds: int, bits: Sequence[int], model: Sequence[str]) -> None:
    """Test accuracy and cost of every search, with and without visual-encoder optimisation."""
    for name in model:
        for width in bits:
            rows: dict[str, list[Row]] = {}
            for seed in range(seeds):
                for title, row in measure_searches(name, width, seed):
                    rows.setdefault(title, []).append(row)
            _show(f"{name}, W{width}A{width}, {seeds} seeds", rows)


def measure_searches(name: str, bits: int, seed: int) -> list[tuple[str, Row]]:
    """Every search of one model, width and seed."""
    spec = job(name, seed)
    subject = Subject.load(spec)
    precision = Precision(bits, bits)
    layers = subject.model.layers
    uniform = Plan.uniform(
        [layer.name for layer in layers if layer.kind is not LayerKind.EMBEDDING], precision
    )
    found = []
    threshold: float | None = None
    for is_optimised in (False, True) if name in OPTIMISED else (False,):
        bounds: LearnedBounds = {}
        seconds = 0.0
        if is_optimised:
            settings = VisionSpec(weight_bits=bits, activation_bits=bits)
            started_s = time.perf_counter()
            bounds = subject.family.optimise_vision(subject.ranges, QUANTIZER, settings, seed)
            seconds = time.perf_counter() - started_s
        entropies = after_vision(subject, bounds, precision)
        linked = [entry.dependency for entry in entropies if entry.dependency is not None]
        threshold = statistics.fmean(linked) if threshold is None else threshold
        decoder = {x.name for x in layers if x.tower in (Tower.PROJECTOR, Tower.LANGUAGE)}
        mean = statistics.fmean([e.entropy for e in entropies if e.layer in decoder or not decoder])
        evaluator = Evaluator(spec, subject.family, subject.ranges, bounds=bounds)
        suffix = " + VEO" if is_optimised else ""
        plain = 1 - evaluator.evaluate(Configuration(uniform), SplitName.TEST).values["error"]
        evaluator.switch.clear()
        found.append((f"no clipping{suffix}", Row(plain, 0, seconds, 0, mean)))
        for title, blocks in strategies(subject, entropies, threshold).items():
            measured = run_search(subject, evaluator, bounds, blocks, precision)
            found.append((f"{title}{suffix}", Row(*measured, mean)))
    return found


def after_vision(
    subject: Subject, bounds: LearnedBounds, precision: Precision
) -> list[LayerEntropy]:
    """The entropies with the vision tower quantized."""
    switch = PlanSwitch(subject.model, QUANTIZER, subject.ranges, bounds=bounds)
    vision = [layer.name for layer in subject.model.layers if layer.tower is Tower.VISION]
    switch.to(Plan.uniform(vision, precision))
    try:
        return subject.entropies(precision.activation_bits)
    finally:
        switch.clear()


# The mixed front

SPACES: Mapping[str, dict[str, object]] = {
    "weights mixed, inputs at 4 bits": {"activation_bits": [4], "clips": [1.0]},
    "weights mixed, inputs at 4 bits, clips searched": {"activation_bits": [4], "clips": CLIPS},
    "weights and inputs mixed (4 and 8 bits)": {"activation_bits": [4, 8], "clips": [1.0]},
}


@main.command()
@click.option("--seeds", default=3)
@click.option("--depth", default=2, help="Layers in a block at most.")
def front(seeds: int, depth: int) -> None:
    """At the bytes of uniform W4A4: the test accuracy of the search's best, and of uniform."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(seeds):
        for title, space in SPACES.items():
            spec = job(
                "digit-llava",
                seed,
                space={"weight_bits": [2, 3, 4, 6, 8], **space},
                partition={"depth": depth},
                search={"budgets": 24, "prune": False},
            )
            for name, figures in at_uniform_size(spec, title):
                found.setdefault(name, []).append(figures)
    click.echo(f"\n| {seeds} seeds | test accuracy | bytes | bit operations | lost |")
    click.echo("|---|---|---|---|---|")
    full = statistics.fmean(figures[0] for figures in found["full precision"])
    for name, rows in found.items():
        accuracy, nbytes, operations = (
            statistics.fmean(column) for column in zip(*rows, strict=True)
        )
        spread = _interval([100 * row[0] for row in rows])
        click.echo(
            f"| {name} | {100 * accuracy:.1f} ± {spread:.1f} | {nbytes:,.0f} | {operations:.3g} "
            f"| {100 * (full - accuracy):.1f} |"
        )


def at_uniform_size(spec: JobSpec, title: str) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Test accuracy, bytes and bit operations: full precision, uniform W4A4, the search's best.

    The best is the configuration with the least selection error among the program's plans of
    at most the bytes of uniform W4A4.
    """
    measured, seconds = profile(spec)
    evaluator: Evaluator = model_cache.evaluator(WorkerConfig(spec))
    proxy_search = ProxySearch(spec, measured)
    names = [layer.name for layer in measured.layers]

    def figures(configuration: Configuration) -> tuple[float, float, float]:
        known = evaluator.evaluate(configuration, SplitName.TEST).metrics
        return 1 - known["error"], known["nbytes"], known["bit_operations"]

    uniform = Configuration(Plan.uniform(names, Precision(4, 4)))
    limit = evaluator.evaluate(uniform).metrics["nbytes"]
    best: tuple[float, Configuration] | None = None
    for start in proxy_search.program_seeds():
        known = evaluator.evaluate(start.configuration).metrics
        if known["nbytes"] <= limit and (best is None or known["error"] < best[0]):
            best = known["error"], start.configuration
    assert best is not None
    click.echo(f"{title}, seed {spec.data.seed}: {len(measured.cells)} cells, {seconds:.0f} s")
    if title == next(iter(SPACES)):
        yield "full precision", figures(full_precision(measured.layers))
        yield "uniform W4A4", figures(uniform)
    yield title, figures(best[1])


def _show(title: str, rows: Mapping[str, Sequence[Row]]) -> None:
    click.echo(f"\n| {title} | test accuracy | runs | seconds | blocks | mean entropy |")
    click.echo("|---|---|---|---|---|---|")
    for name, found in rows.items():
        values = [100 * row.accuracy for row in found]
        click.echo(
            f"| {name} | {statistics.fmean(values):.1f} ± {_interval(values):.1f} "
            f"| {statistics.fmean(row.runs for row in found):.0f} "
            f"| {statistics.median(row.seconds for row in found):.1f} "
            f"| {statistics.fmean(row.blocks for row in found):.1f} "
            f"| {statistics.fmean(row.entropy for row in found):.3f} |"
        )


def _interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean."""
    if len(values) < 2:
        return float("nan")
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return float(t.ppf(0.975, len(values) - 1)) * spread


if __name__ == "__main__":
    main()

"""P4Q on the bundled models: what it wins back, its settings, its speed, and joint search.

    OMP_NUM_THREADS=1 python -m benchmarks.p4q table --seeds 5
    OMP_NUM_THREADS=1 python -m benchmarks.p4q ablation --seeds 5
    OMP_NUM_THREADS=1 python -m benchmarks.p4q generative --seeds 5
    OMP_NUM_THREADS=1 python -m benchmarks.p4q speed
    OMP_NUM_THREADS=1 python -m benchmarks.p4q memory
    OMP_NUM_THREADS=1 python -m benchmarks.p4q joint --seeds 5
    OMP_NUM_THREADS=1 python -m benchmarks.p4q relation --seeds 5

A seed draws its own samples of every split, and starts its own training. Accuracy is that on the
test split, in per cent, with the half width of the 95 % interval of the mean over seeds (Student's
t); settings were chosen on selection splits of other seeds.
"""

import math
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import open_clip
import torch
from PIL.Image import Image
from scipy.stats import t
from torch import Tensor
from torch.nn import functional

from benchmarks.in_process import profile
from benchmarks.made_up_trials import OBJECTIVES, complete, pruned
from bitfront.plan import ClassPosition, Configuration, Plan, Recovery, TeacherText
from bitfront.precision import Precision
from bitfront.reference.scenes import WORDS
from bitfront.spec import JobSpec, QuantizerSpec, RecoverySpace, Sampler
from bitfront.vlm import DualEncoder, PlanSwitch
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from objectives.data.classification import ClassificationTask, Split
from objectives.data.split_name import SplitName
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.classification import ClassificationFamily
from objectives.recovery.checkpointed_training import advance
from objectives.recovery.class_training import ClassData, ClassTraining
from search.front import Front, hypervolume
from search.pruner import Pruner, TrainingGains
from search.sampler import Proposer
from search.seeds import uniform_precision
from search.space import SearchSpace
from service.study.proxy_search import ProxySearch

FULL = Plan(())
BEST = Recovery(
    context_length=8, reduction=2, adapter_bits=8, blend=0.5, distillation=16.0, views=4, steps=400
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
            "quantizer": {"rounding": "nearest"},
            "space": {"weight_bits": [2, 3, 4, 6, 8], "activation_bits": [4, 8]},
            "search": {"seed": seed},
            **sections,
        }
    )


def uniform(evaluator: Evaluator, weight_bits: int, activation_bits: int) -> Plan:
    """The same precision for every layer."""
    space, quantizer = evaluator.spec.space, evaluator.spec.quantizer
    wanted = replace(space.of_width(weight_bits)[0], activation_bits=activation_bits)
    return Plan.of(
        {
            layer.name: uniform_precision(layer, wanted, space, quantizer)
            for layer in evaluator.model.layers
        }
    )


def searched(seed: int, bits: float) -> Plan:
    """The program's plan of so many bits a weight, with inputs of 8 bits."""
    spec = job(seed, space={"weight_bits": [2, 3, 4, 6, 8], "activation_bits": [8]})
    measured, _ = profile(spec)
    proxy_search = ProxySearch(spec, measured)
    weights = {layer.name: layer.weights for layer in measured.layers}

    def mean_bits(plan: Plan) -> float:
        total = sum(weights[name] * precision.weight_bits for name, precision in plan)
        return total / sum(weights.values())

    plans = [seed.configuration.plan for seed in proxy_search.program_seeds()]
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
    figures = evaluator.scorer.figures(Configuration(plan, recovery), split)
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
    if model == "digit-clip":
        plans["searched, 2.5 bits"] = searched(seed, 2.5)
    return plans


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
    context_length=4, reduction=2, adapter_bits=8, blend=0.5, distillation=4.0, steps=100
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
    "context length M": {str(m): partial(replace, context_length=m) for m in (0, 4, 8, 16)},
    "reduction": {str(n): partial(replace, reduction=n) for n in (2, 4, 8)},
    "blend": {str(b): partial(replace, blend=b) for b in (0.1, 0.2, 0.5)},
    "adapter bits": {str(b): partial(replace, adapter_bits=b) for b in (16, 8, 6, 4)},
    "shots": {str(s or "all"): partial(replace, shots=s) for s in (1, 2, 4, 8, 16, 0)},
    "views": {str(v): partial(replace, views=v) for v in (0, 1, 4)},
    "class position": {p.value: partial(replace, class_position=p) for p in ClassPosition},
    "class-specific": {str(c): partial(replace, class_specific=c) for c in (False, True)},
    "teacher": {s.value: partial(replace, teacher=s) for s in TeacherText},
    "distillation weight": {
        str(w): partial(replace, distillation=w) for w in (0.0, 1.0, 4.0, 16.0)
    },
    "steps": {str(n): partial(replace, steps=n) for n in (60, 100, 200)},
}


@main.command()
@click.option("--seeds", default=5)
@click.option("--only", multiple=True, help="Settings to vary.  [default: all]")
def ablation(seeds: int, only: Sequence[str]) -> None:
    """One setting after another, the others as in `BEST`, but 100 steps and no views."""
    bits, base = ((3, 8), (2, 8)), replace(BEST, steps=100, views=0)
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for seed in range(seeds):
        evaluator = Evaluator.from_spec(job(seed))
        for setting, choices in ABLATIONS.items():
            if only and setting not in only:
                continue
            for choice, change in choices.items():
                for w, a in bits:
                    value = accuracy(evaluator, uniform(evaluator, w, a), change(base))
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


RELATIONS = {"left of": slice(0, 100), "above": slice(100, 200)}


def _of_relation(split: Split, relation: str) -> Split:
    """The scenes of one relation; the classes are all of them."""
    wanted = RELATIONS[relation]
    places = [n for n, c in enumerate(split.labels.tolist()) if wanted.start <= c < wanted.stop]
    pixels = split.read(0, len(split))[places]
    labels = split.labels[places]
    return replace(split, labels=labels, read=lambda start, stop: pixels[start:stop])


@main.command()
@click.option("--seeds", default=5)
def relation(seeds: int) -> None:
    """Tuned on one relation of the digit scenes, tested on it and on the other."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        evaluator = Evaluator.from_spec(job(seed))
        whole = evaluator.task
        assert isinstance(whole, ClassificationTask)
        for tuned_on in ("nothing", "both", *RELATIONS):
            splits = dict(whole.splits)
            if tuned_on in RELATIONS:
                splits[SplitName.TUNING] = _of_relation(splits[SplitName.TUNING], tuned_on)
            # What is tested stands where other splits stand, so that one training serves both.
            for tested_on, place in zip(RELATIONS, (SplitName.SELECTION, TEST), strict=True):
                splits[place] = _of_relation(whole.splits[TEST], tested_on)
            family = ClassificationFamily(replace(whole, splits=splits))
            scoped = Evaluator(evaluator.spec, family, evaluator.ranges)
            recovery = None if tuned_on == "nothing" else BEST
            for w, a in ((3, 8), (2, 8)):
                for tested_on, place in zip(RELATIONS, (SplitName.SELECTION, TEST), strict=True):
                    title = f"w{w}a{a}, tested on {tested_on}"
                    value = accuracy(scoped, uniform(scoped, w, a), recovery, place)
                    found.setdefault(f"tuned on {tuned_on}", {}).setdefault(title, []).append(value)
        click.echo(f"seed {seed} done", err=True)
    titles = list(found["tuned on nothing"])
    print_rows(titles, {n: [interval(row[title]) for title in titles] for n, row in found.items()})


class ReencodingTraining(ClassTraining):
    """The training as it is without kept features: each step encodes its images twice."""

    def __init__(
        self, teacher: DualEncoder, pixels: Tensor, *arguments: object, **named: object
    ) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]  # as they are
        self._teacher = teacher
        self._pixels = pixels

    def loss(self, samples: Tensor) -> Tensor:
        """The loss of some samples, whose features are computed for it."""
        with torch.no_grad():
            student = self._model.encode_images(self._pixels[samples])
            teacher = self._teacher.encode_images(self._pixels[samples])
        self._data.image_features[samples] = student
        self._data.teacher_image_features[samples] = functional.normalize(teacher, dim=-1)
        return super().loss(samples)


@main.command()
@click.option("--seeds", default=5)
@click.option("--steps", default=60)
def speed(seeds: int, steps: int) -> None:
    """Tuning on kept features against encoding the images of each step."""
    kept_s, again_s, kept_accuracy, again_accuracy = [], [], [], []
    for seed in range(seeds):
        evaluator = Evaluator.from_spec(job(seed))
        assert isinstance(evaluator.scorer, ClassificationScorer)
        assert isinstance(evaluator.model, DualEncoder)
        assert isinstance(evaluator.task, ClassificationTask)
        split = evaluator.task.split(SplitName.TUNING)
        recovery = replace(BEST, views=0, steps=steps)
        configuration = Configuration(uniform(evaluator, 3, 8), recovery)
        accuracy(evaluator, configuration.plan, None)  # weights are quantized before the clock runs
        started_s = time.perf_counter()
        training = evaluator.scorer.begin(configuration)
        advance(training, steps)
        kept_s.append(time.perf_counter() - started_s)
        evaluator.scorer.keep(configuration, training.stored())
        kept_accuracy.append(accuracy(evaluator, configuration.plan, recovery))

        teacher = Evaluator.from_spec(job(seed)).model
        assert isinstance(teacher, DualEncoder)
        data = evaluator.scorer._data(configuration.plan, recovery)  # noqa: SLF001
        evaluator.switch.to(configuration.plan)
        pixels = split.read(0, len(split))
        started_s = time.perf_counter()
        quantizer = evaluator.spec.quantizer
        slow = ReencodingTraining(teacher, pixels, evaluator.model, recovery, quantizer, data, seed)
        advance(slow, steps)
        again_s.append(time.perf_counter() - started_s)
        evaluator.scorer.keep(configuration, slow.stored())
        again_accuracy.append(accuracy(evaluator, configuration.plan, recovery))
    ratios = [slow / fast for slow, fast in zip(again_s, kept_s, strict=True)]
    click.echo(f"reference, {steps} steps: kept {interval(kept_s)} s, {interval(kept_accuracy)} %")
    click.echo(f"encoding again: {interval(again_s)} s, {interval(again_accuracy)} %")
    click.echo(f"times faster: {interval(ratios)}")
    _speed_at_true_width(steps)


@main.command()
@click.option("--steps", default=5)
def memory(steps: int) -> None:
    """Host memory of training a prompt for 1,000 classes at the shapes of ViT-B/32."""
    model, names = vit_b_32(), [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]
    switch = PlanSwitch(model, QuantizerSpec(activations="dynamic", scale_search=False), {})
    switch.to(Plan.uniform([layer.name for layer in model.layers], Precision(4, 8)))
    features = torch.randn(512, model.feature_width, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1000, model.feature_width, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(512)
    data = ClassData(features, labels, features, text, text, model.class_names(names, "."), 100.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recovery = replace(BEST, context_length=16, steps=steps)
    training = ClassTraining(model, recovery, QuantizerSpec(activations="dynamic"), data, 0)
    advance(training, steps)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    click.echo(f"peak before {before / 2**20:.2f} GiB, with training {after / 2**20:.2f} GiB")


def _speed_at_true_width(steps: int, samples: int = 512, classes: int = 100) -> None:
    """The same at the shapes of ViT-B/32, with random weights, w4a8."""
    torch.manual_seed(0)  # open_clip draws its first weights from torch's global generator
    quantizer = QuantizerSpec(activations="dynamic", scale_search=False)
    names = [f"{first} {second}" for first in WORDS for second in WORDS][:classes]
    student, teacher = (vit_b_32() for _ in range(2))
    switch = PlanSwitch(student, quantizer, {})
    switch.to(Plan.uniform([layer.name for layer in student.layers], Precision(4, 8)))
    pixels = torch.randn(samples, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    started_s = time.perf_counter()
    with torch.no_grad():
        parts = torch.split(pixels, 64)
        images = torch.cat([student.encode_images(part) for part in parts])
        targets = torch.cat([teacher.encode_images(part) for part in parts])
    encoding_s = time.perf_counter() - started_s
    with torch.no_grad():
        text = teacher.encode_texts(teacher.tokenize(names))
    data = ClassData(
        image_features=images,
        labels=torch.arange(samples) % classes,
        teacher_image_features=targets,
        teacher_text_features=text,
        text_features=text,
        names=student.class_names(names, "."),
        scale=100.0,
    )
    recovery = replace(BEST, context_length=16, reduction=4, steps=steps)
    fast = ClassTraining(student, recovery, quantizer, data, 0)
    slow = ReencodingTraining(teacher, pixels, student, recovery, quantizer, data, 0)
    fast_s = [_timed(fast.step) for _ in range(7)][2:]
    slow_s = [_timed(slow.step) for _ in range(3)]
    a_step_s, again_s = statistics.median(fast_s), statistics.median(slow_s)
    kept_s = encoding_s + steps * a_step_s
    click.echo(
        f"ViT-B/32, {samples} images, {classes} classes, M = 16: features once {encoding_s:.1f} s, "
        f"a step {a_step_s:.2f} s, a step that encodes {again_s:.1f} s; {steps} steps: "
        f"{kept_s:.0f} s against {steps * again_s:.0f} s, {steps * again_s / kept_s:.1f} times"
    )


def vit_b_32() -> DualEncoder:
    """ViT-B/32 of open_clip with random weights."""
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")

    def preprocess(image: Image) -> Tensor:
        return torch.from_numpy(np.array(image))

    return open_clip_encoder(model, preprocess=preprocess, tokenize=tokenizer)


def _timed(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


# Joint search against plans first


RECOVERIES = RecoverySpace(
    context_length=(0, 4), reduction=(0, 2, 4), blend=(0.2, 0.5), distillation=(4.0,), steps=(60,)
)


class Budgeted:
    """A search that may take so many processor seconds, with what it has measured."""

    def __init__(self, evaluator: Evaluator, seconds: float) -> None:
        self.evaluator = evaluator
        self.until_s = time.process_time() + seconds
        self.front = Front((1.0, float(nbytes(evaluator, FULL))))
        self.gains = TrainingGains()
        self.configurations: list[Configuration] = []
        self.pruned = 0

    @property
    def is_over(self) -> bool:
        """Whether the time is spent."""
        return time.process_time() >= self.until_s

    def measure(self, configuration: Configuration) -> tuple[float, float] | None:
        """Error and bytes on the selection split; None where the trial stopped early."""
        size = float(nbytes(self.evaluator, configuration.plan, configuration.recovery))
        recovery = configuration.recovery
        errors: dict[int, float] = {}
        if recovery is not None:
            pruner = Pruner(self.front.points, self.gains.largest())
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint"
                for shown in self.evaluator.train(configuration, path):
                    errors[shown.step] = shown.value
                    if not pruner.allows(configuration, shown.step, shown.value, [size]):
                        self.pruned += 1
                        return None
        error = self.evaluator.evaluate(configuration).values["error"]
        if recovery is not None:
            self.gains.add(configuration, errors, error)
        self.front.add(len(self.configurations), (error, size))
        self.configurations.append(configuration)
        return error, size

    def test_hypervolume(self) -> float:
        """The hypervolume that the front reaches on the test split."""
        points = []
        for number in self.front.numbers:
            chosen = self.configurations[number]
            error = 1 - accuracy(self.evaluator, chosen.plan, chosen.recovery) / 100
            points.append((error, float(nbytes(self.evaluator, chosen.plan, chosen.recovery))))
        return hypervolume(np.array(points), self.front.reference)


def _propose(search: Budgeted, proposer: Proposer, until: Callable[[], bool]) -> None:
    while not until() and (proposal := proposer.propose()) is not None:
        values = search.measure(proposal.configuration)
        if values is None:
            proposer.tell(pruned(proposal.configuration))
        else:
            proposer.tell(complete(proposal.configuration, values))


def _start(search: Budgeted, proposer: Proposer, seeds: Sequence[Configuration]) -> None:
    for configuration in seeds:
        if search.is_over:
            return
        proposer.start(configuration)
        values = search.measure(configuration)
        if values is None:
            proposer.tell(pruned(configuration))
        else:
            proposer.tell(complete(configuration, values))


def jointly(search: Budgeted, proxy_search: ProxySearch, seed: int) -> None:
    """Plans and recoveries in one space, as a study does it."""
    proposer = Proposer(proxy_search.space, OBJECTIVES, Sampler.TPE, seed)
    _start(search, proposer, [start.configuration for start in proxy_search.seeds()])
    _propose(search, proposer, lambda: search.is_over)


def plans_first(search: Budgeted, proxy_search: ProxySearch, seed: int) -> None:
    """Half of the time for plans alone, then recoveries for the plans on the front."""
    halfway_s = time.process_time() + (search.until_s - time.process_time()) / 2
    bare = SearchSpace(proxy_search.space.blocks, proxy_search.space.options, {}, None)
    proposer = Proposer(bare, OBJECTIVES, Sampler.TPE, seed)
    seeds = [s.configuration for s in proxy_search.seeds() if s.configuration.recovery is None]
    _start(search, proposer, seeds)
    _propose(search, proposer, lambda: time.process_time() >= halfway_s)
    plans = [search.configurations[number].plan for number in search.front.numbers]
    tried = [
        Recovery(context_length=m, reduction=r, blend=b, distillation=4.0, steps=60).canonical
        for m in RECOVERIES.context_length
        for r in RECOVERIES.reduction
        for b in RECOVERIES.blend
        if m or r
    ]
    pairs = [(plan, recovery) for recovery in dict.fromkeys(tried) for plan in plans]
    random.Random(seed).shuffle(pairs)
    for plan, recovery in pairs:
        if search.is_over:
            return
        search.measure(Configuration(plan, recovery))


def plans_only(search: Budgeted, proxy_search: ProxySearch, seed: int) -> None:
    """All of the time for plans, none for recoveries."""
    bare = SearchSpace(proxy_search.space.blocks, proxy_search.space.options, {}, None)
    proposer = Proposer(bare, OBJECTIVES, Sampler.TPE, seed)
    seeds = [s.configuration for s in proxy_search.seeds() if s.configuration.recovery is None]
    _start(search, proposer, seeds)
    _propose(search, proposer, lambda: search.is_over)


@main.command()
@click.option("--seeds", default=5)
@click.option("--seconds", default=60.0, help="Processor seconds of each search.")
def joint(seeds: int, seconds: float) -> None:
    """Joint search of plan and recovery against first plan, then recovery, at equal compute."""
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        samples = {"calibration": 96, "tuning": 512, "selection": 512, "test": 4000}
        spec = job(
            seed,
            data={"source": "reference", "samples": samples, "seed": seed, "batch_size": 128},
            space={
                "weight_bits": [2, 3, 4, 6, 8],
                "activation_bits": [8],
                "recovery": RECOVERIES.model_dump(),
            },
        )
        measured, _ = profile(spec)
        for strategy in (jointly, plans_first, plans_only):
            search = Budgeted(Evaluator.from_spec(spec), seconds)
            strategy(search, ProxySearch(spec, measured), seed)
            volume = 100 * search.test_hypervolume()
            found.setdefault(strategy.__name__, []).append(volume)
            click.echo(
                f"seed {seed} {strategy.__name__}: {len(search.configurations)} trials, "
                f"{search.pruned} stopped early, hypervolume {volume:.2f}",
                err=True,
            )
    for name, volumes in found.items():
        click.echo(f"{name}: {interval(volumes)}")
    gains = [a - b for a, b in zip(found["jointly"], found["plans_first"], strict=True)]
    click.echo(f"jointly - plans_first: {interval(gains)}")


if __name__ == "__main__":
    main()

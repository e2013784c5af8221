"""What latencies are worth that a search predicts: against whole models in the target's runtime.

    BITFRONT_RUNTIME_THREADS=1 python -m benchmarks.latency --to onnx --model ViT-B-32 --batch 1
    BITFRONT_RUNTIME_THREADS=1 python -m benchmarks.latency --to onnx --model digit-clip
    BITFRONT_RUNTIME_THREADS=1 python -m benchmarks.latency --to onnx --model digit-llava
    BITFRONT_RUNTIME_THREADS=1 python -m benchmarks.latency --to onnx --model large-llava

`digit-clip` is searched with `target` set and `latency_s` as an objective, and every point of its
front is built, verified and timed. `ViT-B-32` has random weights and no search: plans are drawn,
each from some of the precisions, so that they differ in more than their order. `digit-llava` has
drawn plans too, whose inputs have 8 bits in groups, and its `token_s` is compared; `large-llava` is
that of `benchmarks.large_llava`, with groups of 128 in ONNX Runtime. Whole models run in turns,
medians of the repeats. With one thread its processor time counts, so that other work on the machine
counts little.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import click
import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg
from PIL.Image import Image
from scipy.stats import spearmanr
from torch import Tensor

import bitfront as bf
from benchmarks import large_llava
from bitfront.artefact.onnx.products import ROUNDED
from bitfront.artefact.runtime.exported_model import Answerer, Classifier, load, open_graph
from bitfront.layers import LayerKind, Tower
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import InputRange
from bitfront.spec import JobSpec, QuantizerSpec
from bitfront.targets import target_of
from bitfront.vlm import DualEncoder, PlanSwitch
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.settings import preprocess_settings
from bitfront.vlm.models.settings import ModelSettings
from objectives.cost.latency import LatencyMeter
from objectives.cost.runtimes.choose import THREADS
from objectives.cost.runtimes.exported_runtime import ExportedRuntime
from objectives.cost.runtimes.onnx_runtime import OnnxRuntime
from objectives.cost.runtimes.openvino_runtime import OpenVinoRuntime
from objectives.cost.runtimes.runtime import ONE_THREAD, STANDARD
from objectives.cost.runtimes.stages import image_stage
from objectives.data.questions import QuestionTask
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.onnx_models import write_onnx
from objectives.evaluation.openvino_models import write_openvino

RUNTIMES: Mapping[str, type[ExportedRuntime]] = {"onnx": OnnxRuntime, "openvino": OpenVinoRuntime}
SPACE = ("w2a16", "w4a16", "w4a16g32", "w8a16", "w4a8", "w8a8")
CLASSES = 1000
TOKENS = 16
WRITERS: Mapping[str, Callable[..., object]] = {
    "onnx": partial(write_onnx, accuracy_level=ROUNDED),
    "openvino": write_openvino,
}
FULL = "full precision"
SAMPLES = {"calibration": 64, "tuning": 64, "selection": 512, "test": 64}

Call = Callable[[], object]


def random_encoder(seed: int) -> DualEncoder:
    """A CLIP of ViT-B/32's shape."""
    torch.manual_seed(seed)
    model = open_clip.create_model("ViT-B-32", pretrained=None).eval()
    settings = ModelSettings("", preprocess_settings(PreprocessCfg(**model.visual.preprocess_cfg)))
    return open_clip_encoder(
        model, preprocess=_no_picture, tokenize=open_clip.tokenize, settings=settings
    )


def _no_picture(picture: Image) -> Tensor:
    raise NotImplementedError


def random_plan(model: DualEncoder, space: Sequence[str], seed: int) -> Plan:
    """A precision for each layer of the vision tower, from a few of the space."""
    draw = Random(seed)
    few = draw.sample(space, draw.randint(2, 3))
    layers = [layer for layer in model.layers if layer.tower is Tower.VISION]
    return Plan.of({layer.name: Precision.parse(draw.choice(few)) for layer in layers})


def in_turns(calls: Mapping[str, Call], repeats: int, threads: int) -> dict[str, list[float]]:
    """Each call's seconds, round by round; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.thread_time if threads == 1 else time.perf_counter
    for _ in range(repeats + 1):
        for name, call in calls.items():
            started = clock()
            call()
            seconds[name].append(clock() - started)
    return {name: found[1:] for name, found in seconds.items()}


def tell(
    label: str, predicted: Mapping[str, float], seconds: Mapping[str, list[float]], batch: int
) -> None:
    """Each plan's prediction and time a sample, and how well the predictions are ranked."""
    measured = {name: statistics.median(found) / batch for name, found in seconds.items()}
    for name, expected in predicted.items():
        shares = sorted(own / full for own, full in zip(seconds[name], seconds[FULL], strict=True))
        click.echo(
            f"{label} {name}: predicted {1000 * expected:.4g} ms, end to end "
            f"{1000 * measured[name]:.4g} ms ({expected / measured[name]:.2f}), "
            f"{statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f}) of {FULL}"
        )
    names = [name for name in predicted if name != FULL]
    found = spearmanr([predicted[n] for n in names], [measured[n] for n in names]).statistic
    off = [abs(predicted[n] / measured[n] - 1) for n in names]
    click.echo(
        f"{label}: Spearman's rank correlation {found:.3f} over {len(names)} plans; off by "
        f"{100 * statistics.median(off):.1f} % in the median, {100 * max(off):.1f} % at most"
    )


def shaped(to: str, batch: int, plans: int, repeats: int, seed: int) -> None:
    """Random plans of a ViT-B/32's image tower."""
    model = random_encoder(seed)
    quantizer = QuantizerSpec.model_validate(
        {"scheme": "symmetric", "scale_search": False, "rounding": "nearest"}
    )
    ranges = {layer.name: {1.0: InputRange(-4.0, 4.0)} for layer in model.layers}
    switch = PlanSwitch(model, quantizer, ranges)
    threads = int(os.environ.get(THREADS, "0"))
    timing = ONE_THREAD if threads == 1 else STANDARD
    runtime = RUNTIMES[to](model, switch, quantizer, CLASSES, threads, timing)
    stage = image_stage(model, runtime, batch)
    meter = LatencyMeter(model, switch, stage, runtime, quantizer)
    chosen = {FULL: Plan(())}
    chosen |= {f"plan {n}": random_plan(model, SPACE, seed + n) for n in range(plans)}
    started = time.perf_counter()
    predicted = {name: meter.seconds(Configuration(plan)) for name, plan in chosen.items()}
    click.echo(f"the table took {time.perf_counter() - started:.0f} s")
    pixels = np.random.default_rng(seed).normal(size=(batch, *model.image_shape))
    given = {"pixels": pixels.astype(np.float32)}
    with tempfile.TemporaryDirectory() as made:
        calls: dict[str, Call] = {}
        for name, plan in chosen.items():
            folder = Path(made) / name
            folder.mkdir()
            graph, parts = runtime.image_model(plan)
            runtime.write(graph, parts, folder, "image")
            calls[name] = partial(open_graph(folder, "image", threads), given)
        tell(f"ViT-B-32 {to} batch {batch}", predicted, in_turns(calls, repeats, threads), batch)


def answering(model: str, to: str, folder: Path, seed: int) -> dict[str, Any]:
    """A job of the bundled LLaVA, or of the large one, which is saved first."""
    objectives = {"objectives": ["error", "token_s"], "target": target_of(to).name.value}
    space = {"weight_bits": [2, 4, 8], "activation_bits": [8]}
    if model == "large-llava":
        large_llava.save(folder, seed)
        group = 128 if to == "onnx" else 32
        job = large_llava.job(folder, "grouped", group)
        return {**job, **objectives, "space": {**space, "groups": [0, group]}}
    return {
        "study": "tokens",
        "model": {"source": "reference", "name": model, "device": "cpu"},
        "data": {"source": "reference", "samples": {**SAMPLES, "selection": 64}},
        "quantizer": {"scheme": "symmetric", "activations": "grouped", "rounding": "nearest"},
        "space": space,
        **objectives,
    }


def written(label: str, to: str, plans: int, repeats: int, seed: int) -> None:
    """Tokens of random plans of a LLaVA."""
    threads = int(os.environ.get(THREADS, "0"))
    with tempfile.TemporaryDirectory() as made:
        os.environ["BITFRONT_CACHE"] = str(Path(made) / "cache")  # times of its own
        source = Path(made) / "source"
        source.mkdir()
        kept = Evaluator.from_spec(JobSpec.model_validate(answering(label, to, source, seed)))
        (meter,) = kept.latency_meters
        chosen = {FULL: Plan(())}
        for number in range(plans):
            draw = Random(seed + number)
            widths = draw.sample((2, 4, 8), 2)
            chosen[f"plan {number}"] = Plan.of(
                {
                    layer.name: Precision(
                        draw.choice(widths), 16 if layer.kind is LayerKind.EMBEDDING else 8
                    )
                    for layer in kept.model.layers
                }
            )
        predicted = {name: meter.seconds(Configuration(plan)) for name, plan in chosen.items()}
        assert isinstance(kept.task, QuestionTask)
        batch = kept.task.split(SplitName.CALIBRATION).read(0)
        assert batch.pixels is not None
        given = batch.prompts[:1].numpy(), batch.pixels[:1].numpy()
        calls: dict[str, Call] = {}
        for name, plan in chosen.items():
            folder = Path(made) / name
            folder.mkdir()
            WRITERS[to](kept, Configuration(plan), folder, {})
            model = load(folder, threads)
            assert isinstance(model, Answerer)
            model.ends = frozenset()
            for limit in (1, 1 + TOKENS):
                calls[f"{name}, {limit}"] = partial(model.generate, *given, limit)
        found = in_turns(calls, repeats, threads)
        seconds = {
            name: [
                (long - short) / TOKENS
                for short, long in zip(
                    found[f"{name}, 1"], found[f"{name}, {1 + TOKENS}"], strict=True
                )
            ]
            for name in chosen
        }
        tell(f"{label} {to} a token", predicted, seconds, 1)


def searched(to: str, batch: int, repeats: int, seed: int, trials: int) -> None:
    """The front of a search on the bundled CLIP: every point built, verified and timed."""
    threads = int(os.environ.get(THREADS, "0"))
    job = {
        "study": "latency",
        "model": {"source": "reference", "device": "cpu"},
        "data": {"source": "reference", "batch_size": batch, "samples": SAMPLES},
        "quantizer": {"scheme": "symmetric"},
        "space": {"weight_bits": [2, 4, 8], "activation_bits": [8, 16]},
        "objectives": ["error", "latency_s"],
        "search": {"seed": seed, "workers": 1},
        "stop": {"trials": trials},
        "target": target_of(to).name.value,
    }
    with tempfile.TemporaryDirectory() as made:
        os.environ["BITFRONT_CACHE"] = str(Path(made) / "cache")  # times of its own
        study = bf.open(str(Path(made) / "latency.db")).submit(job)
        full = study.trial(0)  # a search starts with it
        points = {FULL: full} | {f"trial {point.number}": point for point in study.front()}
        calls: dict[str, Call] = {}
        for name, point in points.items():
            folder = Path(made) / name
            found = point.build(folder, to=to).verification
            click.echo(
                f"{name}: error {100 * found.error:.2f} % as built, measured "
                f"{100 * found.measured_error:.2f} %, outputs differ by "
                f"{found.mean_difference:.2g} of {found.spread:.3g}"
            )
            model = load(folder, threads)
            assert isinstance(model, Classifier)
            side, _ = model.card["preprocessing"]["size"]
            pixels = np.random.default_rng(seed).normal(size=(batch, 3, side, side))
            calls[name] = partial(model.logits, pixels.astype(np.float32))
        predicted = {name: point.values["latency_s"] for name, point in points.items()}
        tell(f"digit-clip {to} batch {batch}", predicted, in_turns(calls, repeats, threads), batch)


@click.command()
@click.option(
    "--model",
    type=click.Choice(["digit-clip", "digit-llava", "large-llava", "ViT-B-32"]),
    default="ViT-B-32",
)
@click.option("--to", type=click.Choice(list(RUNTIMES)), default="onnx")
@click.option("--batch", default=1, show_default=True)
@click.option("--plans", default=10, show_default=True, help="Random ones of all but digit-clip.")
@click.option("--trials", default=60, show_default=True, help="Of the search on digit-clip.")
@click.option("--repeats", default=9, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(model: str, to: str, batch: int, plans: int, trials: int, repeats: int, seed: int) -> None:
    """Compare predicted latencies with those of whole models."""
    if model == "digit-clip":
        searched(to, batch, repeats, seed, trials)
    elif model.endswith("llava"):
        written(model, to, plans, repeats, seed)
    else:
        shaped(to, batch, plans, repeats, seed)


if __name__ == "__main__":
    main()

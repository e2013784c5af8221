"""What the runtimes make of the same plans: parity, size, memory, and time against float32.

    python -m benchmarks.runtimes --model digit-llava --to openvino
    OMP_NUM_THREADS=1 python -m benchmarks.runtimes --model ViT-B-32 --to both --batch 32

The bundled models are calibrated, written and verified as `bitfront build` does it; a CLIP of
ViT-B/32's shape has random weights, and its image tower is only sized and timed. Times are the
processor's of one thread, in turns: medians of the repeats' ratios to full precision in the same
runtime and process; with `--to both`, to torch in bfloat16 and to ONNX Runtime in float32.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.onnx_models import IN_GROUPS, VIT_B_32, configuration, shaped
from bitfront.artefact.architectures import RUNTIME
from bitfront.artefact.onnx.kernels import Kernels
from bitfront.artefact.onnx.products import EXACT, ROUNDED, OnnxRuntimeKernels
from bitfront.artefact.openvino.kernels import OpenVinoKernels, by_input
from bitfront.artefact.openvino.representation import write_representation
from bitfront.artefact.runtime.clip import Clip
from bitfront.artefact.runtime.exported_model import Classifier, load, open_graph
from bitfront.layers import LayerKind
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import GROUP
from bitfront.spec import JobSpec
from objectives.evaluation.compressed_models import write_compressed
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.gguf_models import write_gguf
from objectives.evaluation.onnx_models import write_onnx
from objectives.evaluation.openvino_models import write_openvino
from objectives.evaluation.verification import verify

VIT = "ViT-B-32"
TORCH = "torch bfloat16"
PLANS = ("full", "w8a8", "w4a8", "w4a16", f"w4a8 {IN_GROUPS}")
PLANS_16 = ("full", "w8a16", "w4a16", "mix")
"""For runtimes whose artefacts hold no rounding of inputs."""
MIX = tuple(Precision(bits) for bits in (8, 6, 5, 4, 3, 2))
STEPS = 16

Call = Callable[[], object]


def bundled(name: str, target: str, activations: str) -> Evaluator:
    """A bundled model with symmetric weights, and the data that the demo takes."""
    content = {
        "study": "runtimes",
        "model": {"source": "reference", "name": name, "device": "cpu"},
        "data": {
            "source": "reference",
            "samples": {"calibration": 64, "tuning": 16, "selection": 256, "test": 16},
        },
        "quantizer": {
            "scheme": "symmetric",
            "rounding": "nearest",
            "activations": activations,
        },
        "target": "gguf" if target == "gguf" else "any",
    }
    return Evaluator.from_spec(JobSpec.model_validate(content))


def write(kept: Evaluator, chosen: Configuration, target: str, out: Path) -> None:
    """Writes an artefact of a kind."""
    if target == "openvino":
        write_openvino(kept, chosen, out, {})
    elif target == "compressed-tensors":
        write_compressed(kept, chosen, out, {})
    elif target == "gguf":
        write_gguf(kept, chosen, out, {})
    else:
        write_onnx(kept, chosen, out, {}, accuracy_level=EXACT if target[-1] == "0" else ROUNDED)


def planned(kept: Evaluator, plan: str) -> Configuration:
    """A plan by its name; in the mix convolutions stay at 16 bits, and the rest takes turns."""
    if plan == "full":
        return Configuration(Plan(()))
    if plan != "mix":
        return configuration(kept, plan, 0)
    layers = [layer for layer in kept.model.layers if layer.kind is not LayerKind.CONVOLUTION]
    return Configuration(Plan.of({x.name: MIX[n % len(MIX)] for n, x in enumerate(layers)}))


def built(name: str, target: str, folder: Path) -> dict[str, Path]:
    """Verifies every plan of a bundled model, says what was found, and gives the folders."""
    evaluators, folders = {}, {}
    for plan in PLANS_16 if target in ("compressed-tensors", "gguf") else PLANS:
        activations = "grouped" if plan.endswith(IN_GROUPS) else "static"
        if activations not in evaluators:
            evaluators[activations] = bundled(name, target, activations)
        kept = evaluators[activations]
        chosen = planned(kept, plan)
        out = folder / plan
        out.mkdir()
        write(kept, chosen, target, out)
        measured = kept.evaluate(chosen).values["error"]
        found = verify(kept, chosen, out, measured, target.partition(" ")[0])
        files = sum(p.stat().st_size for p in out.iterdir() if p.suffix not in (".py", ".json"))
        click.echo(
            f"{name} {target} {plan}: largest {found.largest_difference:.2g} mean "
            f"{found.mean_difference:.2g} of {found.spread:.3g}, same "
            f"{100 * found.same_predictions:.1f} %, error {100 * found.error:.2f} % "
            f"({100 * found.error_low:.2f} to {100 * found.error_high:.2f}), measured "
            f"{100 * measured:.2f} %, nbytes {found.tensors_nbytes:,}, models {files:,}, resident "
            f"{found.resident_nbytes:,}"
        )
        folders[plan] = out
    return folders


def opened(folder: Path, target: str) -> Any:  # noqa: ANN401  # of the module that travels
    """The model of a folder, with one thread."""
    if target != "gguf":
        return load(folder, threads=1)
    sys.path.insert(0, str(RUNTIME))
    return import_module("gguf_model").load(folder, 1)


def calls(folders: Mapping[str, Path], target: str, batch: int) -> dict[str, dict[str, Call]]:
    """What is timed, by its name and the plan."""
    rng = np.random.default_rng(0)
    timed: dict[str, dict[str, Call]] = {}
    for plan, folder in folders.items():
        model = opened(folder, target)
        height, width = model.card["preprocessing"]["size"]
        pixels = rng.normal(size=(batch, 3, height, width)).astype(np.float32)
        if isinstance(model, Classifier):
            timed.setdefault("images", {})[plan] = partial(model.logits, pixels)
            continue
        words = model.card["words"]
        prompt = [words["start"], *[model.card["image_code"]] * words["image_tokens"]]
        tokens = np.array([[*prompt, words["answer"]]] * batch)
        model.ends = frozenset()
        for name, limit in (("prompt", 1), (f"prompt and {STEPS} tokens", 1 + STEPS)):
            timed.setdefault(name, {})[plan] = partial(model.generate, tokens, pixels, limit)
    return timed


def shaped_calls(target: str, folder: Path, batch: int) -> dict[str, dict[str, Call]]:
    """The image tower of a ViT-B/32, written, sized, and opened."""
    pixels = np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype(np.float32)
    timed: dict[str, Call] = {}
    for plan in PLANS:
        kernels: Kernels = (
            OpenVinoKernels() if target == "openvino" else OnnxRuntimeKernels(ROUNDED)
        )
        parts = replace(shaped(plan, "symmetric", 0), kernels=kernels)
        out = folder / plan
        out.mkdir()
        if target == "openvino":
            write_representation(parts.image_model(), by_input(parts.weights), out / "image.xml")
        else:
            (out / "image.onnx").write_bytes(parts.image_model().SerializeToString())
        size = sum(path.stat().st_size for path in out.iterdir())
        click.echo(f"{VIT} {target} {plan}: {size:,} bytes")
        graph = open_graph(out, "image", 1, GROUP if plan.endswith(IN_GROUPS) else 0)
        timed[plan] = partial(graph, {"pixels": pixels})
    return {"images": timed}


def torch_call(batch: int) -> Call:
    """The image tower of a ViT-B/32 in torch, in bfloat16."""
    torch.set_num_threads(1)
    tower = Clip(dict(VIT_B_32)).visual.eval().bfloat16()
    pixels = torch.randn(batch, 3, 224, 224, dtype=torch.bfloat16)

    def call() -> object:
        with torch.inference_mode():
            return tower(pixels)

    return call


def both(folder: Path, batch: int) -> dict[str, dict[str, Call]]:
    """torch, and every plan in both runtimes."""
    timed: dict[str, Call] = {TORCH: torch_call(batch)}
    for target in ("onnx", "openvino"):
        (folder / target).mkdir()
        plans = shaped_calls(target, folder / target, batch)["images"]
        timed |= {f"{target} {plan}": call for plan, call in plans.items()}
    return {"images": timed}


def tell_ratios(
    timed: Mapping[str, Mapping[str, Call]], label: str, repeats: int, baselines: Sequence[str]
) -> None:
    """Runs everything in turns and says each plan's time, as a ratio to each baseline."""
    for name, plans in timed.items():
        seconds: dict[str, list[float]] = {plan: [] for plan in plans}
        for _ in range(repeats + 1):
            for plan, call in plans.items():
                started = time.thread_time()
                call()
                seconds[plan].append(time.thread_time() - started)
        for plan, baseline in product(seconds, baselines):
            own, full = seconds[plan][1:], seconds[baseline][1:]  # the first one warms up
            shares = sorted(one / of for one, of in zip(own, full, strict=True))
            click.echo(
                f"{label} {name} {plan}: {statistics.median(shares):.2f} ({shares[0]:.2f} to "
                f"{shares[-1]:.2f}) of the {1000 * statistics.median(full):.3g} ms of {baseline}"
            )


@click.command()
@click.option("--model", type=click.Choice(["digit-clip", "digit-llava", VIT]), default=VIT)
@click.option("--to", "target", default="openvino", help="Or onnx, 'onnx level 0', others, both.")
@click.option("--batch", default=1, show_default=True)
@click.option("--repeats", default=9, show_default=True)
def main(model: str, target: str, batch: int, repeats: int) -> None:
    """Measure a model in a runtime."""
    label = f"{model} {target} batch {batch}"
    with tempfile.TemporaryDirectory() as made:
        if target == "both":
            tell_ratios(both(Path(made), batch), label, repeats, [TORCH, "onnx full"])
            return
        if model == VIT:
            tell_ratios(shaped_calls(target, Path(made), batch), label, repeats, ["full"])
            return
        folders = built(model, target, Path(made))
        if target != "compressed-tensors":
            tell_ratios(calls(folders, target, batch), label, repeats, ["full"])


if __name__ == "__main__":
    main()

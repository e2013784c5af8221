"""What ONNX models of quantized plans cost and keep: parity, size, memory, time against float32.

    OMP_NUM_THREADS=1 python -m benchmarks.onnx_models --seed 0 --model bundled

The bundled CLIP is calibrated and verified as `bitfront build` does it; a CLIP of ViT-B/32's shape
has random weights and is only sized and timed. Times are the processor time of one thread, so that
other work on the machine counts little: medians of alternating repeats, as ratios to the
float32 model in the same process.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

import click
import numpy as np
import onnxruntime
import torch
from torch import Tensor

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.models import DualEncoderParts
from bitfront.artefact.onnx.products import OnnxRuntimeKernels
from bitfront.artefact.packed import tensors_nbytes
from bitfront.artefact.runtime.clip import Clip
from bitfront.layers import LayerKind
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import GROUP
from bitfront.quant.packing import packed_weight
from bitfront.spec import JobSpec, QuantizerSpec
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.onnx_models import write_onnx
from objectives.evaluation.verification import verify

PLANS = ("w8a8", "w4a8", "w8a16", "w4a16", "w4a16 level 0", "mixed")
MIXED = ("w2a16", "w3a8", "w4a8", "w4a16", "w6a8", "w8a8", "w8a16")
IN_GROUPS = "in groups"
"""How the name of a plan ends whose inputs are rounded in groups of columns."""
BATCHES = {"bundled": (1, 32), "ViT-B-32": (1, 8)}
_BLOCKS = {"eps": 1e-5, "activation": "gelu", "apart": False}
VIT_B_32: Mapping[str, object] = {
    "vision": {
        "width": 768,
        "heads": 12,
        "hidden": 3072,
        "layers": 12,
        "patch": 32,
        "positions": 50,
        "pool": "class",
        **_BLOCKS,
    },
    "text": {
        "width": 8,
        "heads": 1,
        "hidden": 8,
        "layers": 1,
        "vocabulary": 9,
        "positions": 8,
        "end": "largest",
        "causal": True,
        "projection_bias": False,
        **_BLOCKS,
    },
    "features": 512,
    "scalars": {"logit_scale": []},
    "preprocessing": {"size": [224, 224]},
}
"""The image tower alone is timed, so that the text tower is a small one."""


def level_of(plan: str) -> int:
    """The accuracy level that a plan's name asks for."""
    return 0 if plan.endswith("level 0") else 4


def precisions(plan: str, count: int, seed: int) -> list[Precision]:
    """A precision for each of so many layers."""
    if plan == "mixed":
        draw = Random(seed)
        return [Precision.parse(draw.choice(MIXED)) for _ in range(count)]
    return [Precision.parse(plan.partition(" ")[0])] * count


def bundled(scheme: str) -> Evaluator:
    """The bundled CLIP and its data, as the demo takes them."""
    content = {
        "study": "onnx",
        "model": {"source": "reference", "device": "cpu"},
        "data": {"source": "reference"},
        "quantizer": {"scheme": scheme},
    }
    return Evaluator.from_spec(JobSpec.model_validate(content))


def configuration(evaluator: Evaluator, plan: str, seed: int) -> Configuration:
    """A plan for every layer; an embedding's inputs are not rounded."""
    layers = evaluator.model.layers
    chosen = {}
    for layer, precision in zip(layers, precisions(plan, len(layers), seed), strict=True):
        is_embedding = layer.kind is LayerKind.EMBEDDING
        inputs = 16 if is_embedding else precision.activation_bits
        chosen[layer.name] = Precision(precision.weight_bits, inputs)
    return Configuration(Plan.of(chosen))


def shaped(plan: str, scheme: str, seed: int) -> DualEncoderParts:
    """A CLIP of ViT-B/32's shape with random weights under a plan; `full` for no plan."""
    torch.manual_seed(seed)
    module = Clip(dict(VIT_B_32))
    quantizer = QuantizerSpec.model_validate({"scheme": scheme, "scale_search": False})
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    matrices = {
        name: p
        for name, p in parameters.items()
        if p.ndim > 1 and name.endswith(".weight") and "ln_" not in name
    }
    wanted = [Precision(16)] * len(matrices)
    if plan != "full":
        wanted = precisions(plan, len(matrices), seed)
    layers: dict[str, PackedLayer] = {}
    for (name, weight), precision in zip(matrices.items(), wanted, strict=True):
        layers[name.removesuffix(".weight")] = _packed(
            name, weight, precision, quantizer, GROUP if plan.endswith(IN_GROUPS) else 0
        )
    kept = {name: p.half() for name, p in parameters.items() if name not in matrices}
    classes = torch.nn.functional.normalize(torch.randn(1000, 512), dim=-1)
    kernels = OnnxRuntimeKernels(level_of(plan))
    return DualEncoderParts(VIT_B_32, layers, kept, None, kernels, classes)


def _packed(
    name: str,
    weight: Tensor,
    precision: Precision,
    quantizer: QuantizerSpec,
    activation_group: int,
) -> PackedLayer:
    tensors = packed_weight(0.02 * torch.randn(weight.shape), precision, quantizer)
    if precision.quantizes_input and not activation_group:
        tensors["input_scale"] = torch.tensor(0.05, dtype=torch.float16)
        tensors["input_zero"] = torch.tensor(2 ** (precision.activation_bits - 1)).to(torch.uint8)
    bits, inputs = precision.weight_bits, precision.activation_bits
    shape = tuple(weight.shape)
    return PackedLayer(name, bits, inputs, precision.group, shape, tensors, activation_group)


def ratios(
    paths: Mapping[str, Path], side: int, batches: Sequence[int], repeats: int
) -> Iterator[tuple[int, str, float, list[float]]]:
    """Batch size, plan, median seconds, and each repeat's ratio to that of `full`, in order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for name, path in paths.items()
    }
    for batch in batches:
        pixels = np.random.default_rng(0).normal(size=(batch, 3, side, side)).astype(np.float32)
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(repeats + 1):
            for name, session in sessions.items():
                started = time.thread_time()
                session.run(["logits"], {"pixels": pixels})
                times[name].append(time.thread_time() - started)
        for name, found in times.items():
            own = found[1:]  # the first one warms up
            share = [one / full for one, full in zip(own, times["full"][1:], strict=True)]
            yield batch, name, statistics.median(own), sorted(share)


def bundled_rows(scheme: str, seed: int, folder: Path) -> dict[str, Path]:
    """Verifies every plan of the bundled CLIP, tells what was found, and gives the models."""
    evaluator = bundled(scheme)
    paths = {}
    for plan in ("full", *PLANS):
        chosen = Configuration(Plan(()))
        if plan != "full":
            chosen = configuration(evaluator, plan, seed)
        out = folder / f"{scheme} {plan}"
        out.mkdir()
        write_onnx(evaluator, chosen, out, {}, accuracy_level=level_of(plan))
        measured = evaluator.evaluate(chosen).values["error"]
        found = verify(evaluator, chosen, out, measured, "onnx")
        models = sum(path.stat().st_size for path in out.glob("*.onnx"))
        click.echo(
            f"{scheme} {plan}: largest {found.largest_difference:.2g} "
            f"mean {found.mean_difference:.2g} of a spread of {found.spread:.3g}, "
            f"same {100 * found.same_predictions:.1f} %, text cosine {found.text_cosine:.5f}, "
            f"error {100 * found.error:.2f} % ({100 * found.error_low:.2f} to "
            f"{100 * found.error_high:.2f}), measured {100 * measured:.2f} %, "
            f"nbytes {found.tensors_nbytes:,}, models {models:,} bytes, "
            f"resident {found.resident_nbytes:,}"
        )
        paths[plan] = out / "image.onnx"
    return paths


def shaped_rows(scheme: str, seed: int, folder: Path) -> dict[str, Path]:
    """Writes every plan of a ViT-B/32-shaped image tower, and tells the sizes."""
    paths = {}
    for plan in ("full", *PLANS):
        parts = shaped(plan, scheme, seed)
        path = folder / f"{scheme} {plan}.onnx"
        path.write_bytes(parts.image_model().SerializeToString())
        layers = [parts.layers[key] for key in parts.layers if key.startswith("visual")]
        stored = sum(tensors_nbytes(layer.tensors) for layer in layers)
        kept = {key: t for key, t in parts.tensors.items() if key.startswith("visual")}
        assert parts.class_features is not None
        stored += tensors_nbytes(kept) + parts.class_features.nbytes
        size = path.stat().st_size
        click.echo(f"ViT-B/32 {scheme} {plan}: tensors {stored:,}, file {size:,} bytes")
        paths[plan] = path
    return paths


@click.command()
@click.option("--seed", default=0, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--model", type=click.Choice(["bundled", "ViT-B-32"]), default="bundled")
@click.option("--scheme", type=click.Choice(["symmetric", "asymmetric"]), default="symmetric")
def main(seed: int, repeats: int, model: str, scheme: str) -> None:
    """Measure a model."""
    rows, side = (bundled_rows, 24) if model == "bundled" else (shaped_rows, 224)
    with tempfile.TemporaryDirectory() as made:
        paths = rows(scheme, seed, Path(made))
        for batch, plan, seconds, shares in ratios(paths, side, BATCHES[model], repeats):
            click.echo(
                f"{model} {scheme} {plan}, batch {batch}: {1000 * seconds:.3g} ms, "
                f"{statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f}) of "
                "float32's time"
            )


if __name__ == "__main__":
    main()

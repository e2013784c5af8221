"""What groups of 32 and of 128 columns of inputs cost in ONNX Runtime, in time and in accuracy.

    OMP_NUM_THREADS=1 python -m benchmarks.input_groups

Layers of a decoder of width 1536 are multiplied with one row, as for a token, and with 54, as for a
prompt, in turns, on one thread's processor time. The bundled models are evaluated at uniform plans
with the nearest codes, with inputs in groups of either size and with each token's own range, as it
is or around zero.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import click
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.products import ROUNDED, product
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.quant.packing import packed_weight
from bitfront.spec import REFERENCE_CLIP, REFERENCE_LLAVA, JobSpec, QuantizerSpec
from objectives.evaluation.evaluator import Evaluator

GROUPS = (32, 128)
SHAPES = ((1536, 1536), (4096, 1536), (1536, 4096))
PLANS = ("w8a8", "w4a8", "w4a4")
SAMPLES = {REFERENCE_CLIP: 1024, REFERENCE_LLAVA: 512}
PLAIN = {"scheme": "symmetric", "scale_search": False, "rounding": "nearest"}


def multiplier(
    bits: int, shape: tuple[int, int], group: int, seed: int
) -> Callable[[dict[str, NDArray[np.float32]]], object]:
    """A product of a layer of random weights with one scale a row."""
    rows, columns = shape
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    tensors = packed_weight(weight, Precision(bits, 8), QuantizerSpec.model_validate(PLAIN))
    layer = PackedLayer("layer", bits, 8, 0, shape, tensors, group)
    graph = Graph()
    inputs = graph.input("inputs", ("n", columns))
    graph.output(product(graph, layer, inputs, None, ROUNDED), "outputs", ("n", rows))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    opened = onnxruntime.InferenceSession(
        graph.model({}).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return partial(opened.run, None)


def time_layers(repeats: int, seed: int) -> None:
    """Says how much faster groups of 128 are, layer by layer."""
    for bits in (2, 4, 8):
        for shape in SHAPES:
            runs = {group: multiplier(bits, shape, group, seed) for group in GROUPS}
            for count in (1, 54):
                given = np.random.default_rng(seed).standard_normal((count, shape[1]), np.float32)
                seconds: dict[int, list[float]] = {group: [] for group in GROUPS}
                for _ in range(repeats + 1):  # the first one warms up
                    for group, run in runs.items():
                        started = time.thread_time()
                        for _ in range(60 if count == 1 else 6):
                            run({"inputs": given})
                        seconds[group].append(time.thread_time() - started)
                pairs = zip(*(seconds[group][1:] for group in GROUPS), strict=True)
                ratios = sorted(small / large for small, large in pairs)
                click.echo(
                    f"{bits} bits, {shape[0]} x {shape[1]}, {count} rows: groups of 128 are "
                    f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) times "
                    "as fast as groups of 32"
                )


def tell_errors(name: str) -> None:
    """Says the errors of uniform plans on the selection split."""
    whole = (("dynamic", 32), ("dynamic_symmetric", 32))
    for activations, group in (*whole, *(("grouped", group) for group in GROUPS)):
        job = {
            "study": "groups",
            "model": {"source": "reference", "name": name, "device": "cpu"},
            "data": {
                "source": "reference",
                "samples": {
                    "calibration": 64,
                    "tuning": 32,
                    "selection": SAMPLES[name],
                    "test": 32,
                },
            },
            "quantizer": {**PLAIN, "activations": activations, "activation_group": group},
        }
        kept = Evaluator.from_spec(JobSpec.model_validate(job))
        told = []
        for text in PLANS:
            chosen = Precision.parse(text)
            plan = {
                layer.name: Precision(
                    chosen.weight_bits,
                    chosen.activation_bits if kept.spec.quantizer.rounds(layer.kind) else 16,
                )
                for layer in kept.model.layers
            }
            error = kept.evaluate(Configuration(Plan.of(plan))).values["error"]
            told.append(f"{text} {100 * error:.2f} %")
        label = f"groups of {group}" if activations == "grouped" else activations
        click.echo(f"{name}, {label}: {', '.join(told)} of {SAMPLES[name]}")


@click.command()
@click.option("--repeats", default=15, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--errors-only", is_flag=True, help="Time no layers.")
def main(repeats: int, seed: int, *, errors_only: bool) -> None:
    """Time layers, and evaluate the bundled models."""
    if not errors_only:
        time_layers(repeats, seed)
    for name in SAMPLES:
        tell_errors(name)


if __name__ == "__main__":
    main()

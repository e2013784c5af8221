"""What OpenVINO does with a product on the CPU of this machine."""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.unpacking import BYTE
from bitfront.artefact.openvino.kernels import OpenVinoKernels, by_input
from bitfront.artefact.openvino.representation import write_representation
from bitfront.artefact.openvino.told import is_integer, rounds_itself
from bitfront.artefact.runtime.exported_model import int8_saturates, open_graph
from bitfront.quant.inputs import GROUP


@cache
def rounds_in_groups() -> bool:
    """Whether its kernels round inputs in groups where they are told to.

    They do on CPUs with VNNI or AMX; elsewhere they multiply the inputs as they are.
    """
    rows, columns = 16, 2 * GROUP
    tensors = {
        "codes": torch.full((rows * columns,), 9, dtype=torch.uint8),
        "scale": torch.ones(rows, 1).half(),
    }
    layer = PackedLayer("probe", 8, 8, 0, (rows, columns), tensors, GROUP)
    graph = Graph()
    given = graph.input("x", ("n", columns))
    graph.output(OpenVinoKernels().product(graph, layer, given, None), "y", ("n", rows))
    inputs = np.full((1, columns), 0.3 / 127, np.float32)  # 0 beside a 1 in the same group
    inputs[:, ::GROUP] = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.xml"
        write_representation(graph.model({}), by_input([layer]), path)
        run = open_graph(path.parent, path.stem, threads=1, activation_group=GROUP)
        found = run({"x": inputs})["y"]
    exact = float(inputs.sum()) * (9 - 128)
    return not np.allclose(found, exact, rtol=1e-3)


def cpu_changes(layers: Sequence[PackedLayer]) -> list[str]:
    """What this machine's CPU does in another way than the trial did, in sentences."""
    found = []
    grouped = sum(map(rounds_itself, layers))
    if grouped and not rounds_in_groups():
        found.append(
            f"the inputs of {grouped} layers stay as they are on this machine's CPU: OpenVINO "
            "rounds inputs in groups on CPUs with VNNI or AMX"
        )
    wide = sum(is_integer(layer) and layer.weight_bits == BYTE for layer in layers)
    if wide and int8_saturates():
        found.append(
            "OpenVINO's sums of 8-bit products overflow on this machine's CPU, which has no VNNI: "
            f"for {wide} layers of 8 bits the loader opens the models with LP_TRANSFORMS_MODE: NO, "
            "and products of codes are products of floats; weights of fewer bits avoid it"
        )
    return found

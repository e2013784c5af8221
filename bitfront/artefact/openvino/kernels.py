"""Products and look-ups for OpenVINO: a weight is an input of the graph, until it is put in place.

OpenVINO multiplies with packed weights where a constant of 2, 4 or 8 bits is converted, shifted
and scaled in exactly this order. Its reader of ONNX refuses codes that are unpacked by other nodes,
so that weights are made of OpenVINO's own nodes, and put in the place of an input.
"""

from collections.abc import Iterable

import numpy as np

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.inputs import rounded_input
from bitfront.artefact.onnx.kernels import TOKEN, Bias
from bitfront.artefact.onnx.unpacking import BYTE
from bitfront.artefact.openvino.told import container_bits, rounds_itself

PREFIX = "weight:"
"""What the name of an input that stands for a weight starts with."""


class OpenVinoKernels:
    """Weights as inputs `(rows, columns)` of a graph, float32; columns fill the last group."""

    def product(
        self,
        graph: Graph,
        layer: PackedLayer,
        inputs: str,
        bias: Bias | None,
        range_axes: tuple[int, ...] = TOKEN,
    ) -> str:
        """The layer's output; its input is rounded as a trial did."""
        rounded = inputs
        if not rounds_itself(layer):
            rounded = rounded_input(graph, layer, inputs, range_axes, split_float16)
        missing = padded_columns(layer) - layer.columns
        if missing:  # groups are whole in OpenVINO: zeros fill the last one up
            pads = [graph.constant(values, np.int64) for values in ([0, missing], [-1])]
            rounded = graph.add("Pad", rounded, pads[0], "", pads[1])
        turned = graph.add("Transpose", _weight(graph, layer), perm=[1, 0])
        output = graph.add("MatMul", rounded, turned)
        return output if bias is None else graph.add("Add", output, graph.floats(*bias))

    def rows(self, graph: Graph, layer: PackedLayer, places: str) -> str:
        """The rows of an embedding's weight."""
        found = graph.add("Gather", _weight(graph, layer), places, axis=0)
        if padded_columns(layer) == layer.columns:
            return found
        return graph.sliced(found, -1, 0, layer.columns)


def _weight(graph: Graph, layer: PackedLayer) -> str:
    return graph.input(f"{PREFIX}{layer.name}", (layer.rows, padded_columns(layer)))


def split_float16(graph: Graph, value: str) -> str:
    """The nearest float16 of a normal number, by arithmetic (Dekker and Veltkamp's splitting).

    OpenVINO leaves casts to float16 and back out.
    """
    multiple = graph.add("Mul", value, graph.number(2.0**13 + 1))
    return graph.add("Sub", multiple, graph.add("Sub", multiple, value))


def padded_columns(layer: PackedLayer) -> int:
    """Columns up to the end of the last group, and of the last byte of a row."""
    if layer.weight_bits > BYTE:
        return layer.columns
    unit = layer.group or BYTE // container_bits(layer)
    return layer.columns + -layer.columns % unit


def by_input(layers: Iterable[PackedLayer]) -> dict[str, PackedLayer]:
    """The layers by the name of the input that stands for their weight."""
    return {f"{PREFIX}{layer.name}": layer for layer in layers}

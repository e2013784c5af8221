"""Rounding a layer's input in a graph, exactly as a trial did: with standard operators."""

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from bitfront.artefact.onnx.codes import PackedLayer, stored
from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.unpacking import BYTE
from bitfront.quant.grid import LARGEST_SCALE, SMALLEST_SCALE

_HALF_STEP = 2.0**-11 * (1 + 2.0**-10)  # a little more than half of float16's spacing, relatively


Float16 = Callable[[Graph, str], str]
"""Rounds float32 to the nearest float16, and back."""


def cast_through_float16(graph: Graph, value: str) -> str:
    """The nearest float16, by casts."""
    return graph.cast(graph.cast(value, TensorProto.FLOAT16), TensorProto.FLOAT)


def rounded_input(
    graph: Graph,
    layer: PackedLayer,
    inputs: str,
    axes: tuple[int, ...],
    float16: Float16 = cast_through_float16,
) -> str:
    """The layer's input on its levels.

    Args:
        graph: Where to.
        layer: The layer.
        inputs: Its input.
        axes: The dimensions that share a dynamic range.
        float16: How the runtime rounds to float16.
    """
    if layer.activation_bits > BYTE:
        return inputs
    if layer.ranges == "static":
        return _static(graph, layer, inputs)
    if layer.ranges == "grouped":
        return _grouped(graph, layer, inputs)
    if layer.ranges == "dynamic_symmetric":
        return _by_token(graph, layer.activation_bits, inputs)
    return _dynamic(graph, layer.activation_bits, inputs, axes, float16)


def rounding_of(layer: PackedLayer) -> list[str]:
    """What `rounded_input` does, in words; nothing where the input stays as it is."""
    if layer.activation_bits > BYTE:
        return []
    if layer.ranges != "static":
        return [f"{layer.ranges.replace('_', ' ')} inputs"]
    return ["static inputs" if layer.activation_bits == BYTE else "static inputs, cut off"]


def _static(graph: Graph, layer: PackedLayer, inputs: str) -> str:
    """Codes in a byte, and back; below 8 bits, what is outside of the levels is cut off before."""
    top = 2**layer.activation_bits - 1
    scale = graph.floats(layer.key("input_scale"), layer.tensors["input_scale"])
    zero = stored(graph, layer, "input_zero")
    if layer.activation_bits < BYTE:
        known = float(layer.tensors["input_scale"].float()), int(layer.tensors["input_zero"])
        low, high = -known[1] * known[0], (top - known[1]) * known[0]
        inputs = graph.add("Clip", inputs, graph.number(low), graph.number(high))
    codes = graph.add("QuantizeLinear", inputs, scale, zero)
    return graph.add("DequantizeLinear", codes, scale, zero)


def _grouped(graph: Graph, layer: PackedLayer, inputs: str) -> str:
    """Groups of columns around zero, as `bitfront.quant.inputs.round_in_groups` has it."""
    size, top = layer.activation_group, graph.number(2 ** (layer.activation_bits - 1) - 1)
    missing = -layer.columns % size
    if missing:
        pads = [graph.constant(values, np.int64) for values in ([0, missing], [-1])]
        inputs = graph.add("Pad", inputs, pads[0], "", pads[1])
    groups = graph.shaped(inputs, -1, size)
    largest = graph.add("ReduceMax", graph.add("Abs", groups), graph.constant([-1], np.int64))
    nothing = graph.add("Equal", largest, graph.number(0))
    divisor = graph.add("Where", nothing, graph.number(1), largest)
    codes = graph.add("Round", graph.add("Mul", groups, graph.add("Div", top, divisor)))
    levels = graph.add("Mul", codes, graph.add("Div", largest, top))
    rounded = graph.add("Reshape", levels, graph.add("Shape", inputs))
    return graph.sliced(rounded, -1, 0, layer.columns) if missing else rounded


def _by_token(graph: Graph, bits: int, inputs: str) -> str:
    """Tokens around zero, as `bitfront.quant.inputs.round_by_token` has it."""
    top = 2 ** (bits - 1) - 1
    axis = graph.constant([-1], np.int64)
    largest = graph.add("ReduceMax", graph.add("Abs", inputs), axis)
    scale = graph.add("Div", largest, graph.number(top + 0.5))
    nothing = graph.add("Equal", scale, graph.number(0))
    scale = graph.add("Where", nothing, graph.number(float(np.finfo(np.float32).eps)), scale)
    multiples = graph.add("Div", inputs, scale)
    codes = graph.add("Clip", multiples, graph.number(-top - 1), graph.number(top))
    return graph.add("Mul", graph.add("Round", codes), scale)


def _dynamic(graph: Graph, bits: int, inputs: str, axes: tuple[int, ...], float16: Float16) -> str:
    """`scale * round(x / scale)` within the range, as `bitfront.quant.inputs` has it."""
    top = 2**bits - 1
    limit, nothing = LARGEST_SCALE * top, graph.number(0)
    chosen = graph.constant(axes, np.int64)
    low, high = (graph.add(f"Reduce{end}", inputs, chosen) for end in ("Min", "Max"))
    down = graph.add("Neg", graph.add("Clip", low, graph.number(-limit), nothing))
    up = graph.add("Clip", high, nothing, graph.number(limit))
    span = graph.add("Div", graph.add("Add", down, up), graph.number(top))
    scale = _covering_scale(graph, span, float16)
    zero = graph.add("Round", graph.add("Div", down, graph.add("Max", scale, span)))
    multiples = graph.add("Round", graph.add("Div", inputs, scale))
    multiples = graph.add("Max", multiples, graph.add("Neg", zero))
    multiples = graph.add("Min", multiples, graph.add("Sub", graph.number(top), zero))
    return graph.add("Mul", multiples, scale)


def _covering_scale(graph: Graph, span: str, float16: Float16) -> str:
    """The smallest float16 scale that is not below a span, as `covering_scale` finds it."""
    wanted = graph.add("Clip", span, graph.number(SMALLEST_SCALE), graph.number(LARGEST_SCALE))
    nearest = float16(graph, wanted)
    larger = graph.add("Mul", nearest, graph.number(1 + _HALF_STEP))
    following = graph.add(
        "Max",
        float16(graph, larger),
        graph.add("Add", nearest, graph.number(SMALLEST_SCALE)),
    )
    return graph.add("Where", graph.add("Less", nearest, wanted), following, nearest)

"""The product of an input with a packed layer, in the form that ONNX Runtime has a kernel for."""

from enum import StrEnum
from typing import Final

import numpy as np
from onnx import TensorProto
from torch import Tensor

from bitfront.artefact.onnx.codes import BYTE, PackedLayer, scales, stored, weight, widened_codes
from bitfront.artefact.onnx.graph import MICROSOFT, Graph
from bitfront.artefact.onnx.inputs import rounded_input
from bitfront.layers import LayerKind
from bitfront.precision import Precision
from bitfront.spec import QuantizerSpec
from bitfront.targets import ONNXRUNTIME

TOKEN: Final = (-1,)
_LARGEST_BLOCK: Final = 128
_SMALLEST_BLOCK: Final = 16
_QUICK_BITS: Final = 4
_HELD: Final = next(form for form in ONNXRUNTIME.formats if form.kernel == "MatMulNBits")
EXACT: Final = 0
ROUNDED: Final = 4


class Form(StrEnum):
    """How a product is computed.

    `BLOCKS`: codes stay packed; the input is in float32, or the kernel rounds it. `INTEGERS`: codes
    in a byte times input codes in a byte. `FLOATS`: the weight is unpacked to float32 when the
    model is loaded.
    """

    BLOCKS = "MatMulNBits"
    INTEGERS = "MatMulIntegerToFloat"
    FLOATS = "MatMul"


def form_of(layer: PackedLayer, accuracy_level: int) -> Form:
    """The fastest form that computes what was measured of a layer.

    Without rounded inputs (level 0), MatMulNBits is slow but for containers of 4 bits.
    """
    activations = "static" if "input_scale" in layer.tensors else "dynamic"
    quantizer = QuantizerSpec(scheme=layer.scheme, activations=activations)
    precision = Precision(layer.weight_bits, layer.activation_bits, layer.group)
    found = ONNXRUNTIME.native(LayerKind.LINEAR, precision, quantizer)
    if found is None:
        return Form.FLOATS
    form = Form(found.kernel)
    is_slow = accuracy_level == EXACT and found.held(layer.weight_bits, layer.scheme) != _QUICK_BITS
    return Form.FLOATS if form is Form.BLOCKS and is_slow else form


def product(
    graph: Graph,
    layer: PackedLayer,
    inputs: str,
    bias: tuple[str, Tensor] | None,
    accuracy_level: int,
    range_axes: tuple[int, ...] = TOKEN,
) -> str:
    """The layer's output.

    Args:
        graph: Where to.
        layer: The layer.
        inputs: `(..., columns)`, not rounded yet.
        bias: Name and values `(rows,)`; None for none.
        accuracy_level: Of MatMulNBits: `ROUNDED` lets the kernel round inputs to 8 bits, in
            groups of `block_size` columns; `EXACT` does not.
        range_axes: The dimensions that share a dynamic range of inputs.
    """
    rounded = rounded_input(graph, layer, inputs, range_axes)
    form = form_of(layer, accuracy_level)
    if form is Form.BLOCKS:
        output = _blocks(graph, layer, rounded, accuracy_level)
    elif form is Form.INTEGERS:
        output = graph.add("MatMul", rounded, _integers(graph, layer))
    else:
        matrix = graph.add("Transpose", weight(graph, layer), perm=[1, 0])
        output = graph.add("MatMul", rounded, matrix)
    return output if bias is None else graph.add("Add", output, graph.floats(*bias))


def _integers(graph: Graph, layer: PackedLayer) -> str:
    """`(columns, rows)` from int8 codes around zero, or uint8 codes with a zero point."""
    if layer.is_symmetric:
        middle = graph.constant(2 ** (layer.weight_bits - 1), np.int32)
        codes = graph.add("Sub", widened_codes(graph, layer, layer.weight_bits), middle)
        codes, scale = graph.cast(codes, TensorProto.INT8), scales(graph, layer, layer.weight_bits)
    else:
        codes = graph.cast(widened_codes(graph, layer, BYTE), TensorProto.UINT8)
        scale = scales(graph, layer, BYTE)
    parts = [graph.add("Transpose", codes, perm=[1, 0]), graph.shaped(scale, -1)]
    if not layer.is_symmetric:
        parts.append(graph.shaped(stored(graph, layer, "zero"), -1))
    return graph.add("DequantizeLinear", *parts, axis=1)


def block_size(layer: PackedLayer) -> int:
    """Columns that share a scale in MatMulNBits: a power of two from 16 on."""
    size = _LARGEST_BLOCK
    if layer.group:
        while layer.group % size:
            size //= 2
        return size
    while size > max(layer.columns, _SMALLEST_BLOCK):
        size //= 2
    return size


def _blocks(graph: Graph, layer: PackedLayer, inputs: str, accuracy_level: int) -> str:
    width, block = _HELD.held(layer.weight_bits, layer.scheme), block_size(layer)
    parts = [
        _block_codes(graph, layer, width, block),
        _over_blocks(graph, layer, scales(graph, layer, width), block),
    ]
    if not layer.is_symmetric:
        parts.append(_over_blocks(graph, layer, stored(graph, layer, "zero"), block))
    return graph.add(
        "MatMulNBits",
        inputs,
        *parts,
        domain=MICROSOFT,
        K=layer.columns,
        N=layer.rows,
        bits=width,
        block_size=block,
        accuracy_level=accuracy_level,
    )


def _block_codes(graph: Graph, layer: PackedLayer, width: int, block: int) -> str:
    """`(rows, blocks, bytes of a block)`, uint8, the first code in the lowest bits."""
    blocks = -(-layer.columns // block)
    missing = blocks * block - layer.columns
    shape = (layer.rows, blocks, block * width // BYTE)
    if width == layer.weight_bits and not missing:  # then the stream is laid out alike
        return graph.shaped(stored(graph, layer, "codes"), *shape)
    codes = widened_codes(graph, layer, width)
    if missing:
        ends = graph.constant([0, 0, 0, missing], np.int64)
        codes = graph.add("Pad", codes, ends, graph.constant(0, np.int32))
    if width < BYTE:
        together = BYTE // width
        places = graph.constant([2 ** (width * place) for place in range(together)], np.int32)
        placed = graph.add("Mul", graph.shaped(codes, -1, together), places)
        codes = graph.add("ReduceSum", placed, graph.constant([1], np.int64))
    return graph.shaped(graph.cast(codes, TensorProto.UINT8), *shape)


def _over_blocks(graph: Graph, layer: PackedLayer, grid: str, block: int) -> str:
    """`(rows, groups)` as `(rows, blocks)`: each block has the number of its group."""
    blocks = -(-layer.columns // block)
    groups = np.arange(blocks) * block // (layer.group or layer.columns)
    return graph.add("Gather", grid, graph.constant(groups, np.int64), axis=1)

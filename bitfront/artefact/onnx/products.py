"""The product of an input with a packed layer, in the form that ONNX Runtime has a kernel for."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from bitfront.artefact.onnx.codes import (
    PackedLayer,
    embedded_rows,
    padded_codes,
    scales,
    stored,
    transposed_weight,
)
from bitfront.artefact.onnx.graph import MICROSOFT, Graph
from bitfront.artefact.onnx.inputs import rounded_input, rounding_of
from bitfront.artefact.onnx.kernels import TOKEN, Bias
from bitfront.artefact.onnx.unpacking import BYTE, Container, contained
from bitfront.layers import LayerKind
from bitfront.precision import Precision
from bitfront.targets import ONNXRUNTIME

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
    precision = Precision(layer.weight_bits, layer.activation_bits, layer.group)
    found = ONNXRUNTIME.native(LayerKind.LINEAR, precision, layer.ranges, layer.activation_group)
    if found is None:
        return Form.FLOATS
    form = Form(found.kernel)
    is_exact = accuracy_level == EXACT and not layer.activation_group
    is_slow = is_exact and found.held(layer.weight_bits, layer.scheme) != _QUICK_BITS
    return Form.FLOATS if form is Form.BLOCKS and is_slow else form


def format_of(layer: PackedLayer, accuracy_level: int) -> str:
    """What decides the time of a product beside its shapes: the form, and how the weight lies."""
    form, rounding = form_of(layer, accuracy_level), rounding_of(layer)
    told: list[object] = [form.value]
    if form is Form.BLOCKS:
        width = _HELD.held(layer.weight_bits, layer.scheme)
        level = level_of(layer, accuracy_level)
        told += [f"{width} bits", f"blocks of {block_size(layer)}", f"level {level}"]
    if form is not Form.FLOATS:
        told.append(layer.scheme)
    by_kernel = form is Form.BLOCKS and layer.activation_group > 0
    return ", ".join(map(str, told if by_kernel else [*told, *rounding]))


def level_of(layer: PackedLayer, accuracy_level: int) -> int:
    """MatMulNBits' accuracy level for a layer: inputs in groups are its own way of rounding."""
    return ROUNDED if layer.activation_group else accuracy_level


def product(
    graph: Graph,
    layer: PackedLayer,
    inputs: str,
    bias: Bias | None,
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
    form = form_of(layer, accuracy_level)
    by_kernel = form is Form.BLOCKS and layer.activation_group > 0
    rounded = inputs if by_kernel else rounded_input(graph, layer, inputs, range_axes)
    if form is Form.BLOCKS:
        output = _blocks(graph, layer, rounded, level_of(layer, accuracy_level))
    elif form is Form.INTEGERS:
        output = graph.add("MatMul", rounded, _integers(graph, layer))
    else:
        output = graph.add("MatMul", rounded, transposed_weight(graph, layer))
    return output if bias is None else graph.add("Add", output, graph.floats(*bias))


@dataclass(frozen=True, slots=True)
class OnnxRuntimeKernels:
    """Products in the forms that ONNX Runtime has kernels for.

    Attributes:
        accuracy_level: Of MatMulNBits: `ROUNDED` or `EXACT`.
    """

    accuracy_level: int

    def product(
        self,
        graph: Graph,
        layer: PackedLayer,
        inputs: str,
        bias: Bias | None,
        range_axes: tuple[int, ...] = TOKEN,
    ) -> str:
        """The layer's output, as `product` gives it."""
        return product(graph, layer, inputs, bias, self.accuracy_level, range_axes)

    def rows(self, graph: Graph, layer: PackedLayer, places: str) -> str:
        """The rows of an embedding's weight; codes stay in a byte each."""
        return embedded_rows(graph, layer, places)


def _integers(graph: Graph, layer: PackedLayer) -> str:
    """`(columns, rows)` from int8 codes around zero, or uint8 codes with a zero point."""
    width = layer.weight_bits if layer.is_symmetric else BYTE
    container = Container(layer.weight_bits, BYTE, is_signed=layer.is_symmetric)
    shape = (layer.columns, layer.rows)
    parts = [
        contained(graph, layer.key("codes"), layer.codes.T, container, shape),
        graph.shaped(scales(graph, layer, width), -1),
    ]
    if not layer.is_symmetric:
        parts.append(graph.shaped(stored(graph, layer, "zero"), -1))
    return graph.add("DequantizeLinear", *parts, axis=1)


def block_size(layer: PackedLayer) -> int:
    """Columns that share a scale in MatMulNBits: a power of two from 16 on, whole in a group."""
    if layer.activation_group:
        return layer.activation_group
    size, run = _LARGEST_BLOCK, layer.group or layer.columns
    while run % size and size > _SMALLEST_BLOCK:
        size //= 2
    return size


def _blocks(graph: Graph, layer: PackedLayer, inputs: str, accuracy_level: int) -> str:
    width, block = _HELD.held(layer.weight_bits, layer.scheme), block_size(layer)
    codes = padded_codes(layer, block)
    shape = (layer.rows, codes.shape[1] // block, block * width // BYTE)
    container = Container(layer.weight_bits, width)
    parts = [
        contained(graph, layer.key("codes"), codes, container, shape),
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


def _over_blocks(graph: Graph, layer: PackedLayer, grid: str, block: int) -> str:
    """`(rows, groups)` as `(rows, blocks)`: each block has the number of its group."""
    blocks = -(-layer.columns // block)
    groups = np.arange(blocks) * block // (layer.group or layer.columns)
    return graph.add("Gather", grid, graph.constant(groups, np.int64), axis=1)

"""A packed layer in a graph: its codes in the order of a kernel, and what they stand for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.unpacking import BYTE, Container, contained
from bitfront.quant.packing import unpack_codes
from bitfront.targets import Ranges, Scheme


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayer:
    """A layer as a packed checkpoint has it; `scale * (code - zero * 2**(bits - 8))` is a weight.

    Attributes:
        name: Its name, which starts those of its tensors.
        weight_bits: Width of a weight's code; 16 for a weight in 16 bits.
        activation_bits: Width of an input's code; 16 where it stays as it is.
        group: Columns that share a scale; 0 is the whole row.
        shape: Of the weight.
        tensors: By part: `weight`, or `codes`, `scale` and perhaps `zero`; perhaps
            `input_scale` and `input_zero`.
        activation_group: Columns of a token that share a symmetric scale of their own, where inputs
            are rounded in groups; 0 elsewhere.
        activation_symmetric: Whether the range of each token of its inputs lies around zero.
    """

    name: str
    weight_bits: int
    activation_bits: int
    group: int
    shape: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    activation_group: int = 0
    activation_symmetric: bool = False

    @property
    def rows(self) -> int:
        """Outputs."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Inputs of one output."""
        return math.prod(self.shape[1:])

    @property
    def scheme(self) -> Scheme:
        """Whether it has zero points."""
        return "symmetric" if self.is_symmetric else "asymmetric"

    @property
    def ranges(self) -> Ranges:
        """What the ranges of its inputs are, where they are rounded."""
        if self.activation_group:
            return "grouped"
        if self.activation_symmetric:
            return "dynamic_symmetric"
        return "static" if "input_scale" in self.tensors else "dynamic"

    @property
    def is_symmetric(self) -> bool:
        """Whether the code of zero is the middle one."""
        return "zero" not in self.tensors

    @property
    def codes(self) -> Tensor:
        """The codes `(rows, columns)`, uint8."""
        count = self.rows * self.columns
        codes = unpack_codes(self.tensors["codes"], self.weight_bits, count)
        return codes.view(self.rows, self.columns)

    @property
    def has_whole_zeros(self) -> bool:
        """Whether every zero point is a code; a symmetric layer's is."""
        if self.is_symmetric:
            return True
        steps: int = 2 ** (BYTE - self.weight_bits)  # an integer power is Any to the type checker
        return not bool((self.tensors["zero"] % steps).any())

    def key(self, part: str) -> str:
        """The name of one of its tensors."""
        return f"{self.name}.{part}"


def stored(graph: Graph, layer: PackedLayer, part: str) -> str:
    """One of the layer's tensors, as it is."""
    return graph.store(layer.key(part), layer.tensors[part])


def scales(graph: Graph, layer: PackedLayer, width: int) -> str:
    """The scales `(rows, groups)` of codes in unsigned containers, float32: exact."""
    scale = graph.floats(layer.key("scale"), layer.tensors["scale"])
    factor: float = 2.0 ** (layer.weight_bits - width)
    return scale if factor == 1 else graph.add("Mul", scale, graph.number(factor))


def transposed_weight(graph: Graph, layer: PackedLayer) -> str:
    """The weight `(columns, rows)`, float32."""
    shape = (layer.columns, layer.rows)
    if layer.weight_bits > BYTE:
        matrix = layer.tensors["weight"].view(layer.rows, layer.columns).T
        return graph.floats(layer.key("weight"), matrix)
    container = Container(layer.weight_bits, BYTE)
    codes = contained(graph, layer.key("codes"), layer.codes.T, container, shape)
    grid = scales(graph, layer, BYTE), _zeros(graph, layer)
    scale, zero = (
        graph.add("Transpose", _over_columns(graph, layer, part), perm=[1, 0]) for part in grid
    )
    return graph.add("Mul", graph.add("Sub", graph.cast(codes, TensorProto.FLOAT), zero), scale)


def embedded_rows(graph: Graph, layer: PackedLayer, places: str) -> str:
    """The rows of an embedding's weight at `places`; codes stay in a byte each."""
    if layer.weight_bits > BYTE:
        weight = graph.store(layer.key("weight"), layer.tensors["weight"].view(layer.shape))
        return graph.cast(graph.add("Gather", weight, places, axis=0), TensorProto.FLOAT)
    container = Container(layer.weight_bits, BYTE)
    shape = (layer.rows, layer.columns)
    codes = contained(graph, layer.key("codes"), layer.codes, container, shape)
    rows = graph.cast(graph.add("Gather", codes, places, axis=0), TensorProto.FLOAT)
    scale, zero = (
        _over_columns(graph, layer, graph.add("Gather", grid, places, axis=0))
        for grid in (scales(graph, layer, BYTE), _zeros(graph, layer))
    )
    return graph.add("Mul", graph.add("Sub", rows, zero), scale)


def _zeros(graph: Graph, layer: PackedLayer) -> str:
    """The zero points `(rows, groups)` of codes in a byte, float32."""
    if layer.is_symmetric:
        return graph.constant(np.full(layer.tensors["scale"].shape, 2 ** (BYTE - 1)), np.float32)
    return graph.cast(stored(graph, layer, "zero"), TensorProto.FLOAT)


def _over_columns(graph: Graph, layer: PackedLayer, grid: str) -> str:
    """`(..., groups)` as something that broadcasts over the columns."""
    if not layer.group:
        return grid
    groups = graph.constant(np.arange(layer.columns) // layer.group, np.int64)
    return graph.add("Gather", grid, groups, axis=-1)


def padded_codes(layer: PackedLayer, block: int) -> Tensor:
    """The codes `(rows, columns)` with zeros at the end of each row, up to whole blocks."""
    return torch.nn.functional.pad(layer.codes, (0, -layer.columns % block))

"""A packed layer in a graph: its stream of codes, unpacked by nodes that fold when it is loaded.

The tensors are those of the packed checkpoint, byte for byte. Standard integer operators read
them: BitShift is left out, for OpenVINO 2026.4 folds it wrongly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto
from torch import Tensor

from bitfront.artefact.onnx.graph import Graph
from bitfront.targets import Scheme

BYTE = 8
_WORD = 8  # codes in one word of a stream


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
    """

    name: str
    weight_bits: int
    activation_bits: int
    group: int
    shape: tuple[int, ...]
    tensors: Mapping[str, Tensor]

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
    def is_symmetric(self) -> bool:
        """Whether the code of zero is the middle one."""
        return "zero" not in self.tensors

    def key(self, part: str) -> str:
        """The name of one of its tensors."""
        return f"{self.name}.{part}"


def stored(graph: Graph, layer: PackedLayer, part: str) -> str:
    """One of the layer's tensors, as it is."""
    return graph.store(layer.key(part), layer.tensors[part])


def unpacked_codes(graph: Graph, layer: PackedLayer) -> str:
    """The codes `(rows, columns)`, int32."""
    bits, count = layer.weight_bits, layer.rows * layer.columns
    stream = stored(graph, layer, "codes")
    if bits < BYTE:
        missing = -layer.tensors["codes"].numel() % bits
        if missing:
            zeros = graph.constant(np.zeros(missing), np.uint8)
            stream = graph.add("Concat", stream, zeros, axis=0)
        parts = graph.cast(graph.shaped(stream, -1, bits), TensorProto.INT64)
        places = graph.constant([256**byte for byte in range(bits)], np.int64)
        axis = graph.constant([1], np.int64)
        word = graph.add("ReduceSum", graph.add("Mul", parts, places), axis)
        shifts = graph.constant([2 ** (bits * place) for place in range(_WORD)], np.int64)
        codes = graph.add("Div", word, shifts)
        codes = graph.add("Mod", codes, graph.constant(2**bits, np.int64))
        stream = graph.sliced(graph.shaped(codes, -1), 0, 0, count)
    return graph.cast(graph.shaped(stream, layer.rows, layer.columns), TensorProto.INT32)


def widened_codes(graph: Graph, layer: PackedLayer, width: int) -> str:
    """The codes `(rows, columns)`, int32, as multiples of `2**(width - bits)`."""
    codes = unpacked_codes(graph, layer)
    factor = 2 ** (width - layer.weight_bits)
    return codes if factor == 1 else graph.add("Mul", codes, graph.constant(factor, np.int32))


def scales(graph: Graph, layer: PackedLayer, width: int) -> str:
    """The scales `(rows, groups)` of codes that were widened, float32: exact."""
    scale = graph.floats(layer.key("scale"), layer.tensors["scale"])
    factor: float = 2.0 ** (layer.weight_bits - width)
    return scale if factor == 1 else graph.add("Mul", scale, graph.number(factor))


def weight(graph: Graph, layer: PackedLayer) -> str:
    """The weight `(rows, columns)`, float32."""
    if layer.weight_bits > BYTE:
        kept = graph.floats(layer.key("weight"), layer.tensors["weight"])
        return graph.shaped(kept, layer.rows, layer.columns)
    codes = graph.cast(unpacked_codes(graph, layer), TensorProto.FLOAT)
    return _levels(graph, layer, codes, None)


def embedded_rows(graph: Graph, layer: PackedLayer, places: str) -> str:
    """The rows of an embedding's weight at `places`; codes stay in a byte each."""
    if layer.weight_bits > BYTE:
        rows = graph.add("Gather", stored(graph, layer, "weight"), places, axis=0)
        return graph.cast(rows, TensorProto.FLOAT)
    codes = graph.cast(unpacked_codes(graph, layer), TensorProto.UINT8)
    rows = graph.add("Gather", codes, places, axis=0)
    return _levels(graph, layer, graph.cast(rows, TensorProto.FLOAT), places)


def _levels(graph: Graph, layer: PackedLayer, codes: str, places: str | None) -> str:
    """`scale * (code - zero)`; `places` are the rows, None for all."""
    scale = graph.floats(layer.key("scale"), layer.tensors["scale"])
    zero = graph.number(2 ** (layer.weight_bits - 1))
    if not layer.is_symmetric:
        zero = graph.cast(stored(graph, layer, "zero"), TensorProto.FLOAT)
        zero = graph.add("Mul", zero, graph.number(2.0 ** (layer.weight_bits - BYTE)))
        zero = _over_columns(graph, layer, zero, places)
    return graph.add(
        "Mul", graph.add("Sub", codes, zero), _over_columns(graph, layer, scale, places)
    )


def _over_columns(graph: Graph, layer: PackedLayer, grid: str, places: str | None) -> str:
    """`(rows, groups)` as something that broadcasts over the columns."""
    if places is not None:
        grid = graph.add("Gather", grid, places, axis=0)
    if not layer.group:
        return grid
    groups = graph.constant(np.arange(layer.columns) // layer.group, np.int64)
    return graph.add("Gather", grid, groups, axis=-1)

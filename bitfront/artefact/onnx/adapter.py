"""The adapter of P4Q as a part of a graph: a low-bit bottleneck after the image features."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph, normalised
from bitfront.artefact.onnx.kernels import Kernels
from bitfront.artefact.onnx.unpacking import BYTE


class Adapter:
    """Its two layers, and how they are put together.

    Args:
        tensors: A recovery's, by name.
        settings: What a card says of the adapter.
        kernels: The runtime's.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], kernels: Kernels
    ) -> None:
        self._blend: float = settings["blend"]
        self._is_residual: bool = settings["residual"]
        self._tensors = tensors
        self._kernels = kernels
        self.layers = {
            part: _layer(f"adapter.{part}", tensors, settings, tuple(shape))
            for part, shape in settings["shapes"].items()
        }

    def features(self, graph: Graph, features: str) -> str:
        """The image features `(..., d)` after the adapter, not normalised."""
        root = math.sqrt(self.layers["down"].columns)
        unit = graph.add("Mul", normalised(graph, features), graph.number(root))
        hidden = graph.add("Relu", self._product(graph, "down", unit))
        changed = graph.add("Mul", self._product(graph, "up", hidden), graph.number(self._blend))
        if not self._is_residual:
            return graph.add("Add", changed, graph.add("Mul", unit, graph.number(1 - self._blend)))
        length = graph.add("ReduceL2", features, graph.constant([-1], np.int64))
        scaled = graph.add("Mul", graph.add("Mul", length, graph.number(1 / root)), changed)
        return graph.add("Add", features, scaled)

    def _product(self, graph: Graph, part: str, inputs: str) -> str:
        layer = self.layers[part]
        bias = layer.key("bias")
        return self._kernels.product(graph, layer, inputs, (bias, self._tensors[bias]))


def _layer(
    name: str,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    shape: tuple[int, ...],
) -> PackedLayer:
    prefix = f"{name}."
    own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    bits = settings["bits"]
    if bits > BYTE:
        return PackedLayer(name, bits, bits, 0, shape, own)
    ranges = settings["activation_group"], settings["activation_symmetric"]
    return PackedLayer(name, bits, bits, 0, shape, own, *ranges)

"""What a graph needs of a runtime: products with packed layers, and look-ups in them."""

from typing import Final, Protocol

from torch import Tensor

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph

TOKEN: Final = (-1,)
"""The dimensions of a token, which share a dynamic range of inputs."""

Bias = tuple[str, Tensor]
"""The name and the values `(rows,)` of a bias."""


class Kernels(Protocol):
    """How a runtime is told to compute with the codes, scales and zero points of a layer."""

    def product(
        self,
        graph: Graph,
        layer: PackedLayer,
        inputs: str,
        bias: Bias | None,
        range_axes: tuple[int, ...] = TOKEN,
    ) -> str:
        """The layer's output.

        Args:
            graph: Where to.
            layer: The layer.
            inputs: `(..., columns)`, not rounded yet.
            bias: What is added; None for none.
            range_axes: The dimensions that share a dynamic range of inputs.
        """

    def rows(self, graph: Graph, layer: PackedLayer, places: str) -> str:
        """The rows of an embedding's weight at `places`, float32."""

"""CLIP's towers as graphs: what `runtime/clip.py` computes, operator by operator."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.kernels import TOKEN, Kernels

_EPSILON = 1e-5


class Towers:
    """Both towers, of which one or the other becomes a graph.

    Args:
        graph: Where to.
        config: What `runtime/clip.py` is built with.
        layers: By the path of the module that holds their weight.
        kept: What no plan changes, by name.
        kernels: The runtime's.
    """

    def __init__(
        self,
        graph: Graph,
        config: Mapping[str, Any],
        layers: Mapping[str, PackedLayer],
        kept: Mapping[str, Tensor],
        kernels: Kernels,
    ) -> None:
        self._graph = graph
        self._config = config
        self._layers = layers
        self._kept = kept
        self._kernels = kernels

    def image_features(self, pixels: str) -> str:
        """`(n, 3, h, w)` to `(n, d)`, not normalised."""
        graph, width = self._graph, self._config["vision"]["width"]
        count = graph.sliced(graph.add("Shape", pixels), 0, 0, 1)
        shape = graph.add("Concat", count, graph.constant([1, width], np.int64), axis=0)
        token = graph.add("Expand", self._floats("visual.class_embedding"), shape)
        x = graph.add("Concat", token, self._patches(pixels), axis=1)
        x = graph.add("Add", x, self._floats("visual.positional_embedding"))
        x = self._norm("visual.ln_pre", x)
        x = self._transformer("visual.transformer", self._config["vision"], x, None)
        first = graph.add("Gather", x, graph.constant(0, np.int64), axis=1)
        return self._product("visual.proj", self._norm("visual.ln_post", first))

    def text_features(self, tokens: str) -> str:
        """`(n, length)` to `(n, d)`, not normalised; the largest code is the end of a text."""
        graph, length = self._graph, self._config["text"]["positions"]
        x = self._kernels.rows(graph, self._layers["token_embedding"], tokens)
        x = graph.add("Add", x, self._floats("positional_embedding"))
        mask = np.triu(np.full((length, length), -np.inf), k=1)
        x = self._transformer(
            "transformer", self._config["text"], x, graph.constant(mask, np.float32)
        )
        end = graph.add("ArgMax", tokens, axis=1, keepdims=1)
        return self._product(
            "text_projection",
            graph.add("GatherND", self._norm("ln_final", x), end, batch_dims=1),
        )

    def _patches(self, pixels: str) -> str:
        """The pixels of each patch times the convolution's weight: `(n, patches, width)`."""
        graph, patch = self._graph, self._config["vision"]["patch"]
        height, width = (side // patch for side in self._config["preprocessing"]["size"])
        pixels = graph.sliced(graph.sliced(pixels, 2, 0, height * patch), 3, 0, width * patch)
        x = graph.shaped(pixels, -1, 3, height, patch, width, patch)
        x = graph.add("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
        x = graph.shaped(x, -1, height * width, 3 * patch * patch)
        return self._product("visual.conv1", x, range_axes=(1, 2))

    def _transformer(self, path: str, settings: Mapping[str, Any], x: str, mask: str | None) -> str:
        for number in range(settings["layers"]):
            x = self._block(f"{path}.resblocks.{number}", settings["heads"], x, mask)
        return x

    def _block(self, path: str, heads: int, x: str, mask: str | None) -> str:
        graph = self._graph
        attended = self._attention(f"{path}.attn", heads, self._norm(f"{path}.ln_1", x), mask)
        x = graph.add("Add", x, attended)
        hidden = self._product(f"{path}.mlp.c_fc", self._norm(f"{path}.ln_2", x))
        return graph.add("Add", x, self._product(f"{path}.mlp.c_proj", self._activation(hidden)))

    def _attention(self, path: str, heads: int, x: str, mask: str | None) -> str:
        graph, width = self._graph, self._layers[f"{path}.out_proj"].columns
        packed = graph.shaped(self._product(f"{path}.in_proj", x), 0, 0, 3, heads, width // heads)
        query, key, value = (
            graph.add("Gather", packed, graph.constant(part, np.int64), axis=2) for part in range(3)
        )
        query, value = (graph.add("Transpose", part, perm=[0, 2, 1, 3]) for part in (query, value))
        key = graph.add("Transpose", key, perm=[0, 2, 3, 1])
        factor = graph.number(1 / math.sqrt(width // heads))
        scores = graph.add("MatMul", graph.add("Mul", query, factor), key)
        if mask is not None:
            scores = graph.add("Add", scores, mask)
        mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
        mixed = graph.shaped(graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, width)
        return self._product(f"{path}.out_proj", mixed)

    def _activation(self, x: str) -> str:
        graph = self._graph
        if not self._config["quick_gelu"]:
            return graph.add("Gelu", x)
        return graph.add("Mul", x, graph.add("Sigmoid", graph.add("Mul", x, graph.number(1.702))))

    def _product(self, path: str, x: str, range_axes: tuple[int, ...] = TOKEN) -> str:
        bias = f"{path}.bias"
        return self._kernels.product(
            self._graph,
            self._layers[path],
            x,
            (bias, self._kept[bias]) if bias in self._kept else None,
            range_axes,
        )

    def _norm(self, path: str, x: str) -> str:
        parts = (self._floats(f"{path}.{part}") for part in ("weight", "bias"))
        return self._graph.add("LayerNormalization", x, *parts, epsilon=_EPSILON)

    def _floats(self, name: str) -> str:
        return self._graph.floats(name, self._kept[name])

"""The towers of CLIP and SigLIP as graphs: what `runtime/clip.py` computes, node by node."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto
from torch import Tensor

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.kernels import TOKEN, Kernels


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
        graph, settings = self._graph, self._config["vision"]
        x, positions = self._patches(pixels), self._floats("visual.positional_embedding")
        if settings["pool"] == "attention":
            x = self._transformer("visual.transformer", settings, graph.add("Add", x, positions))
            return self._pooled("visual.pool", settings, self._norm("visual.ln_post", x, settings))
        x = self._behind("visual.class_embedding", x, settings["width"])
        x = self._norm("visual.ln_pre", graph.add("Add", x, positions), settings)
        x = self._transformer("visual.transformer", settings, x)
        first = self._norm("visual.ln_post", self._token(x, 0), settings)
        return self._product("visual.proj", first)

    def text_features(self, tokens: str) -> str:
        """`(n, length)` to `(n, d)`, not normalised."""
        graph, settings = self._graph, self._config["text"]
        x = self._kernels.rows(graph, self._layers["token_embedding"], tokens)
        x = graph.add("Add", x, self._floats("positional_embedding"))
        mask = None
        if settings["causal"]:
            square = (settings["positions"], settings["positions"])
            mask = graph.constant(np.triu(np.full(square, -np.inf), k=1), np.float32)
        x = self._transformer("transformer", settings, x, mask)
        x = self._norm("ln_final", x, settings)
        return self._product("text_projection", self._last(tokens, x, settings))

    def _last(self, tokens: str, x: str, settings: Mapping[str, Any]) -> str:
        """The token of each row that is the text's feature, `(n, width)`."""
        graph, end = self._graph, settings["end"]
        if end == "last":
            return self._token(x, settings["positions"] - 1)
        if end != "largest":
            tokens = graph.cast(
                graph.add("Equal", tokens, graph.constant(end, np.int64)), TensorProto.INT64
            )
        place = graph.add("ArgMax", tokens, axis=1, keepdims=1)
        return graph.add("GatherND", x, place, batch_dims=1)

    def _token(self, x: str, place: int) -> str:
        graph = self._graph
        return graph.add("Gather", x, graph.constant(place, np.int64), axis=1)

    def _behind(self, name: str, x: str, width: int) -> str:
        """The tokens behind one that is learned."""
        graph = self._graph
        count = graph.sliced(graph.add("Shape", x), 0, 0, 1)
        shape = graph.add("Concat", count, graph.constant([1, width], np.int64), axis=0)
        return graph.add("Concat", graph.add("Expand", self._floats(name), shape), x, axis=1)

    def _pooled(self, path: str, settings: Mapping[str, Any], x: str) -> str:
        """What a learned token asks the others for, and a perceptron."""
        tokens = self._behind(f"{path}.probe", x, settings["width"])
        asked = self._attention(f"{path}.attn", settings, tokens, queries=1)
        found = self._token(asked, 0)
        hidden = self._norm(f"{path}.ln", found, settings)
        return self._graph.add("Add", found, self._perceptron(f"{path}.mlp", settings, hidden))

    def _patches(self, pixels: str) -> str:
        """The pixels of each patch times the convolution's weight: `(n, patches, width)`."""
        graph, patch = self._graph, self._config["vision"]["patch"]
        height, width = (side // patch for side in self._config["preprocessing"]["size"])
        pixels = graph.sliced(graph.sliced(pixels, 2, 0, height * patch), 3, 0, width * patch)
        x = graph.shaped(pixels, -1, 3, height, patch, width, patch)
        x = graph.add("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
        x = graph.shaped(x, -1, height * width, 3 * patch * patch)
        return self._product("visual.conv1", x, range_axes=(1, 2))

    def _transformer(
        self, path: str, settings: Mapping[str, Any], x: str, mask: str | None = None
    ) -> str:
        graph = self._graph
        for number in range(settings["layers"]):
            block = f"{path}.resblocks.{number}"
            normed = self._norm(f"{block}.ln_1", x, settings)
            x = graph.add("Add", x, self._attention(f"{block}.attn", settings, normed, mask))
            normed = self._norm(f"{block}.ln_2", x, settings)
            x = graph.add("Add", x, self._perceptron(f"{block}.mlp", settings, normed))
        return x

    def _perceptron(self, path: str, settings: Mapping[str, Any], x: str) -> str:
        hidden = self._activation(settings["activation"], self._product(f"{path}.c_fc", x))
        return self._product(f"{path}.c_proj", hidden)

    def _attention(
        self,
        path: str,
        settings: Mapping[str, Any],
        x: str,
        mask: str | None = None,
        queries: int | None = None,
    ) -> str:
        """Attention over all tokens, or what the first `queries` ask the others for."""
        graph, width, heads = self._graph, settings["width"], settings["heads"]
        query, key, value = self._projected(path, heads, width, x)
        if queries is not None:
            many = np.iinfo(np.int64).max
            query = graph.sliced(query, 1, 0, queries)
            key, value = (graph.sliced(part, 1, queries, many) for part in (key, value))
        query, value = (graph.add("Transpose", part, perm=[0, 2, 1, 3]) for part in (query, value))
        key = graph.add("Transpose", key, perm=[0, 2, 3, 1])
        factor = graph.number(1 / math.sqrt(width // heads))
        scores = graph.add("MatMul", graph.add("Mul", query, factor), key)
        if mask is not None:
            scores = graph.add("Add", scores, mask)
        mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
        mixed = graph.shaped(graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, width)
        return self._product(f"{path}.out_proj", mixed)

    def _projected(self, path: str, heads: int, width: int, x: str) -> list[str]:
        """Query, key and value `(n, m, heads, width / heads)`."""
        graph = self._graph
        if f"{path}.in_proj" not in self._layers:
            parts = (self._product(f"{path}.{part}_proj", x) for part in "qkv")
            return [graph.shaped(part, 0, 0, heads, width // heads) for part in parts]
        packed = graph.shaped(self._product(f"{path}.in_proj", x), 0, 0, 3, heads, width // heads)
        places = (graph.constant(part, np.int64) for part in range(3))
        return [graph.add("Gather", packed, place, axis=2) for place in places]

    def _activation(self, kind: str, x: str) -> str:
        graph = self._graph
        if kind == "quick_gelu":
            share = graph.add("Sigmoid", graph.add("Mul", x, graph.number(1.702)))
            return graph.add("Mul", x, share)
        return graph.add("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def _product(self, path: str, x: str, range_axes: tuple[int, ...] = TOKEN) -> str:
        bias = f"{path}.bias"
        return self._kernels.product(
            self._graph,
            self._layers[path],
            x,
            (bias, self._kept[bias]) if bias in self._kept else None,
            range_axes,
        )

    def _norm(self, path: str, x: str, settings: Mapping[str, Any]) -> str:
        parts = (self._floats(f"{path}.{part}") for part in ("weight", "bias"))
        return self._graph.add("LayerNormalization", x, *parts, epsilon=settings["eps"])

    def _floats(self, name: str) -> str:
        return self._graph.floats(name, self._kept[name])

"""LLaVA's parts as graphs: what `runtime/llava.py` computes, operator by operator."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.kernels import TOKEN, Kernels

EMBEDDING = "model.language_model.embed_tokens"
_VISION, _DECODER = "model.vision_tower", "model.language_model"
_LOWEST = float(np.finfo(np.float32).min)

State = list[tuple[str, str]]
"""Keys and values `(n, groups, positions, size)` of each layer."""


class Parts:
    """The vision tower with its projector, the embedding and the decoder: each becomes a graph.

    Args:
        graph: Where to.
        config: What `runtime/llava.py` is built with.
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
        """`(n, 3, h, w)` to what the projector gives, `(n, tokens, d)`."""
        graph, settings = self._graph, self._config["vision"]
        count = graph.sliced(graph.add("Shape", pixels), 0, 0, 1)
        shape = graph.add("Concat", count, graph.constant([1, settings["width"]], np.int64), axis=0)
        embeddings = f"{_VISION}.embeddings"
        token = graph.add("Expand", self._floats(f"{embeddings}.class_embedding"), shape)
        x = graph.add("Concat", token, self._patches(pixels), axis=1)
        x = graph.add("Add", x, self._floats(f"{embeddings}.position_embedding.weight"))
        x = self._norm(f"{_VISION}.pre_layrnorm", x)
        for number in range(settings["layers"]):
            x = self._vision_layer(f"{_VISION}.encoder.layers.{number}", x)
        if self._config["drops_first"]:
            x = graph.sliced(x, 1, 1, settings["positions"])
        projector = "model.multi_modal_projector"
        hidden = graph.add("Gelu", self._product(f"{projector}.linear_1", x))
        return self._product(f"{projector}.linear_2", hidden)

    def embedded(self, tokens: str) -> str:
        """`(n, m)` to `(n, m, d)`."""
        return self._kernels.rows(self._graph, self._layers[EMBEDDING], tokens)

    def logits(
        self, embedded: str, mask: str, places: str, past: Sequence[tuple[str, str]]
    ) -> tuple[str, State]:
        """The decoder.

        Args:
            embedded: `(n, m, d)`.
            mask: `(n, past + m)` int64: 1 where there is something to see.
            places: `(n, m)` int64: the positions of the embedded tokens.
            past: Keys and values of each layer until now.

        Returns:
            `(n, m, vocabulary)`, and the keys and values until then.
        """
        bias = self._mask(embedded, mask)
        angles = self._angles(places)
        x, state = embedded, []
        for number, known in enumerate(past):
            x, kept = self._decoder_layer(f"{_DECODER}.layers.{number}", x, bias, angles, known)
            state.append(kept)
        return self._product("lm_head", self._root_norm(f"{_DECODER}.norm", x)), state

    def _patches(self, pixels: str) -> str:
        """The pixels of each patch times the convolution's weight: `(n, patches, width)`."""
        graph, patch = self._graph, self._config["vision"]["patch"]
        height, width = (side // patch for side in self._config["preprocessing"]["size"])
        pixels = graph.sliced(graph.sliced(pixels, 2, 0, height * patch), 3, 0, width * patch)
        x = graph.shaped(pixels, -1, 3, height, patch, width, patch)
        x = graph.add("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
        x = graph.shaped(x, -1, height * width, 3 * patch * patch)
        return self._product(f"{_VISION}.embeddings.patch_embedding", x, range_axes=(1, 2))

    def _vision_layer(self, path: str, x: str) -> str:
        graph, heads = self._graph, self._config["vision"]["heads"]
        width = self._config["vision"]["width"]
        normed = self._norm(f"{path}.layer_norm1", x)
        query, key, value = (
            self._heads(self._product(f"{path}.self_attn.{part}_proj", normed), heads, width)
            for part in "qkv"
        )
        key = graph.add("Transpose", key, perm=[0, 1, 3, 2])
        mixed = self._attended(query, key, value, width // heads, None)
        mixed = graph.shaped(graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, width)
        x = graph.add("Add", x, self._product(f"{path}.self_attn.out_proj", mixed))
        hidden = self._product(f"{path}.mlp.fc1", self._norm(f"{path}.layer_norm2", x))
        share = graph.add("Sigmoid", graph.add("Mul", hidden, graph.number(1.702)))
        hidden = graph.add("Mul", hidden, share)
        return graph.add("Add", x, self._product(f"{path}.mlp.fc2", hidden))

    def _decoder_layer(
        self, path: str, x: str, bias: str, angles: tuple[str, str], past: tuple[str, str]
    ) -> tuple[str, tuple[str, str]]:
        graph = self._graph
        normed = self._root_norm(f"{path}.input_layernorm", x)
        mixed, kept = self._decoder_attention(f"{path}.self_attn", normed, bias, angles, past)
        x = graph.add("Add", x, mixed)
        normed = self._root_norm(f"{path}.post_attention_layernorm", x)
        gate = self._product(f"{path}.mlp.gate_proj", normed)
        gate = graph.add("Mul", gate, graph.add("Sigmoid", gate))
        hidden = graph.add("Mul", gate, self._product(f"{path}.mlp.up_proj", normed))
        return graph.add("Add", x, self._product(f"{path}.mlp.down_proj", hidden)), kept

    def _decoder_attention(
        self, path: str, x: str, bias: str, angles: tuple[str, str], past: tuple[str, str]
    ) -> tuple[str, tuple[str, str]]:
        graph, text = self._graph, self._config["text"]
        heads, groups, size = text["heads"], text["groups"], text["head_width"]
        counts = {"q": heads, "k": groups, "v": groups}
        query, key, value = (
            self._heads(self._product(f"{path}.{part}_proj", x), count, count * size)
            for part, count in counts.items()
        )
        query, key = (self._turned(part, angles) for part in (query, key))
        key, value = (
            graph.add("Concat", old, new, axis=2)
            for old, new in zip(past, (key, value), strict=True)
        )
        kept = (key, value)
        key = graph.add("Transpose", key, perm=[0, 1, 3, 2])
        if heads != groups:  # the queries that share a key stand in a dimension of their own
            query = graph.shaped(query, 0, groups, heads // groups, -1, size)
            axis = graph.constant([2], np.int64)
            key, value = (graph.add("Unsqueeze", part, axis) for part in (key, value))
            bias = graph.add("Unsqueeze", bias, graph.constant([1], np.int64))
        mixed = self._attended(query, key, value, size, bias)
        mixed = graph.shaped(mixed, 0, heads, -1, size) if heads != groups else mixed
        mixed = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
        return self._product(f"{path}.o_proj", graph.shaped(mixed, 0, 0, heads * size)), kept

    def _heads(self, x: str, heads: int, width: int) -> str:
        """`(n, m, width)` to `(n, heads, m, width / heads)`."""
        split = self._graph.shaped(x, 0, 0, heads, width // heads)
        return self._graph.add("Transpose", split, perm=[0, 2, 1, 3])

    def _attended(self, query: str, key: str, value: str, size: int, bias: str | None) -> str:
        """Attention over the last two dimensions, which `key` has swapped."""
        graph = self._graph
        query = graph.add("Mul", query, graph.number(1 / math.sqrt(size)))
        scores = graph.add("MatMul", query, key)
        if bias is not None:
            scores = graph.add("Add", scores, bias)
        return graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)

    def _angles(self, places: str) -> tuple[str, str]:
        """Cosines and sines `(n, 1, m, size)` of the rotary embedding at the positions."""
        graph, text = self._graph, self._config["text"]
        even = torch.arange(0, text["head_width"], 2, dtype=torch.float32) / text["head_width"]
        frequencies = (1.0 / text["theta"] ** even).numpy()
        axes = graph.constant([1, 3], np.int64)
        wide = graph.add("Unsqueeze", graph.cast(places, TensorProto.FLOAT), axes)
        turns = graph.add("Mul", wide, graph.constant(frequencies, np.float32))
        turns = graph.add("Concat", turns, turns, axis=-1)
        return graph.add("Cos", turns), graph.add("Sin", turns)

    def _turned(self, x: str, angles: tuple[str, str]) -> str:
        """`(n, heads, m, size)`, each pair of its halves turned by an angle."""
        graph, size = self._graph, self._config["text"]["head_width"]
        first = graph.sliced(x, 3, 0, size // 2)
        second = graph.sliced(x, 3, size // 2, size)
        swapped = graph.add("Concat", graph.add("Neg", second), first, axis=-1)
        cos, sin = angles
        return graph.add("Add", graph.add("Mul", x, cos), graph.add("Mul", swapped, sin))

    def _mask(self, embedded: str, mask: str) -> str:
        """`(n, 1, m, past + m)`: 0 where a token may look, float32's lowest number elsewhere."""
        graph = self._graph
        axis = graph.constant(1, np.int64)
        total = graph.add("Gather", graph.add("Shape", mask), axis)
        length = graph.add("Gather", graph.add("Shape", embedded), axis)
        zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
        columns = graph.add("Range", zero, total, one)
        rows = graph.add("Range", graph.add("Sub", total, length), total, one)
        before = graph.add(
            "LessOrEqual", columns, graph.add("Unsqueeze", rows, graph.constant([1], np.int64))
        )
        there = graph.add("Unsqueeze", mask, graph.constant([1, 2], np.int64))
        seen = graph.add("And", before, graph.cast(there, TensorProto.BOOL))
        return graph.add("Where", seen, graph.number(0), graph.number(_LOWEST))

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
        epsilon = self._config["vision"]["eps"]
        return self._graph.add("LayerNormalization", x, *parts, epsilon=epsilon)

    def _root_norm(self, path: str, x: str) -> str:
        """The root-mean-square norm of Llama."""
        graph = self._graph
        squares = graph.add("Pow", x, graph.number(2))
        mean = graph.add("ReduceMean", squares, graph.constant([-1], np.int64))
        root = graph.add("Sqrt", graph.add("Add", mean, graph.number(self._config["text"]["eps"])))
        return graph.add("Mul", graph.add("Div", x, root), self._floats(f"{path}.weight"))

    def _floats(self, name: str) -> str:
        return self._graph.floats(name, self._kept[name])

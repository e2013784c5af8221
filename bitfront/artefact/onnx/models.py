"""The models that a configuration becomes, one for each part that runs apart from the others."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto
from torch import Tensor

from bitfront.artefact.onnx import llava
from bitfront.artefact.onnx.adapter import Adapter
from bitfront.artefact.onnx.clip import Towers
from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph, normalised
from bitfront.artefact.onnx.kernels import Kernels
from bitfront.artefact.onnx.products import ROUNDED, Form, block_size, form_of
from bitfront.artefact.onnx.unpacking import BYTE

IMAGE: Final = "image"
TEXT: Final = "text"
VISION_ENCODER: Final = "vision_encoder"
EMBED_TOKENS: Final = "embed_tokens"
DECODER: Final = "decoder_model_merged"
"""The names of a generative model's parts are those of Optimum."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts(ABC):
    """What the models are made of.

    Attributes:
        config: What the file of `runtime` is built with.
        layers: By the path of the module that holds their weight.
        tensors: What no plan changes, and a recovery's adapter, by name.
        adapter: What a card says of the adapter; None without one.
        kernels: The runtime's.
    """

    config: Mapping[str, Any]
    layers: Mapping[str, PackedLayer]
    tensors: Mapping[str, Tensor]
    adapter: Mapping[str, Any] | None
    kernels: Kernels

    @property
    @abstractmethod
    def embedding(self) -> str:
        """The path of the token embedding."""

    @abstractmethod
    def models(self) -> dict[str, onnx.ModelProto]:
        """The models by name."""

    def image_adapter(self) -> Adapter | None:
        """What comes after the image tower."""
        if self.adapter is None:
            return None
        return Adapter(self.tensors, self.adapter, self.kernels)

    def adapted(self, graph: Graph, features: str) -> str:
        """The image features after the adapter, if there is one."""
        adapter = self.image_adapter()
        return features if adapter is None else adapter.features(graph, features)

    @property
    def weights(self) -> list[PackedLayer]:
        """Every layer, once: the products and the embedding."""
        known = {layer.name: layer for layer in (*self.layers.values(), *self.products)}
        return list(known.values())

    @property
    def products(self) -> list[PackedLayer]:
        """Every layer that multiplies an input."""
        adapter = self.image_adapter()
        multiplying = {
            layer.name: layer for path, layer in self.layers.items() if path != self.embedding
        }
        own = list(multiplying.values())
        return own if adapter is None else [*own, *adapter.layers.values()]


@dataclass(frozen=True, slots=True, eq=False)
class DualEncoderParts(Parts):
    """Those of a dual encoder: its image tower, with classes where it has some, and its text tower.

    Attributes:
        class_features: `(classes, d)`, of length 1; None for a model without classes.
    """

    class_features: Tensor | None

    @property
    def embedding(self) -> str:
        """The path of the token embedding."""
        return "token_embedding"

    def models(self) -> dict[str, onnx.ModelProto]:
        """Both models."""
        return {IMAGE: self.image_model(), TEXT: self.text_model()}

    def image_model(self) -> onnx.ModelProto:
        """`pixels` `(n, 3, h, w)` to `features` `(n, d)` of length 1.

        Where there are classes, their `logits` `(n, classes)` come first.
        """
        graph, classes = Graph(), self.class_features
        pixels = graph.input("pixels", ("n", 3, *self.config["preprocessing"]["size"]))
        features = self.adapted(graph, self._towers(graph).image_features(pixels))
        unit = normalised(graph, features)
        if classes is not None:
            cosines = graph.add("MatMul", unit, graph.store("classes", classes.T))
            scale = graph.add("Exp", graph.floats("logit_scale", self.tensors["logit_scale"]))
            graph.output(graph.add("Mul", cosines, scale), "logits", ("n", len(classes)))
        graph.output(unit, "features", ("n", self.config["features"]))
        return graph.model({})

    def text_model(self) -> onnx.ModelProto:
        """`tokens` `(n, length)`, int64, to `features` `(n, d)` of length 1."""
        graph = Graph()
        shape = ("n", self.config["text"]["positions"])
        tokens = graph.input("tokens", shape, TensorProto.INT64)
        unit = normalised(graph, self._towers(graph).text_features(tokens))
        graph.output(unit, "features", ("n", self.config["features"]))
        return graph.model({})

    def _towers(self, graph: Graph) -> Towers:
        return Towers(graph, self.config, self.layers, self.tensors, self.kernels)


class GenerativeParts(Parts):
    """Those of a LLaVA: vision tower with projector, embedding, and decoder with its cache."""

    __slots__ = ()

    @property
    def embedding(self) -> str:
        """The path of the token embedding."""
        return llava.EMBEDDING

    def models(self) -> dict[str, onnx.ModelProto]:
        """All models; their inputs and outputs have Optimum's names."""
        return {
            VISION_ENCODER: self._vision_encoder(),
            EMBED_TOKENS: self._embed_tokens(),
            DECODER: self._decoder(),
        }

    def _vision_encoder(self) -> onnx.ModelProto:
        """`pixel_values` `(n, 3, h, w)` to `image_features` `(n, tokens, d)`."""
        graph = Graph()
        pixels = graph.input("pixel_values", ("n", 3, *self.config["preprocessing"]["size"]))
        features = self.adapted(graph, self._parts(graph).image_features(pixels))
        settings = self.config["vision"]
        count = settings["positions"] - self.config["drops_first"]
        graph.output(features, "image_features", ("n", count, self.config["text"]["width"]))
        return graph.model({})

    def _embed_tokens(self) -> onnx.ModelProto:
        """`input_ids` `(n, m)` int64 to `inputs_embeds` `(n, m, d)`."""
        graph = Graph()
        tokens = graph.input("input_ids", ("n", "m"), TensorProto.INT64)
        embedded = self._parts(graph).embedded(tokens)
        graph.output(embedded, "inputs_embeds", ("n", "m", self.config["text"]["width"]))
        return graph.model({})

    def embedding_model(self) -> onnx.ModelProto:
        """The prompt's embedding as ONNX Runtime GenAI's runner of several models asks for it.

        `input_ids` `(n, m)` int64 and `image_features` `(..., d)`, with one row for each token of
        an image, to `inputs_embeds` `(n, m, d)`: the rows in turn at the image's places.
        """
        graph, width = Graph(), self.config["text"]["width"]
        tokens = graph.input("input_ids", ("n", "m"), TensorProto.INT64)
        features = graph.input("image_features", None)
        embedded = self._parts(graph).embedded(tokens)
        is_image = graph.add("Equal", tokens, graph.constant(self.config["image_code"], np.int64))
        ones = graph.shaped(graph.cast(is_image, TensorProto.INT64), -1)
        numbers = graph.add("Mul", graph.add("CumSum", ones, graph.constant(0, np.int64)), ones)
        # Row 0 stands for the other tokens, so that there is one where no image is.
        first = graph.constant(np.zeros((1, width)), np.float32)
        rows = graph.add("Concat", first, graph.shaped(features, -1, width), axis=0)
        chosen = graph.add(
            "Reshape", graph.add("Gather", rows, numbers, axis=0), graph.add("Shape", embedded)
        )
        axis = graph.constant([2], np.int64)
        found = graph.add("Where", graph.add("Unsqueeze", is_image, axis), chosen, embedded)
        graph.output(found, "inputs_embeds", ("n", "m", width))
        return graph.model({})

    def _decoder(self) -> onnx.ModelProto:
        """The decoder.

        `inputs_embeds` `(n, m, d)`, `attention_mask` `(n, past + m)` int64, `position_ids` `(n, m)`
        int64, and `past_key_values.N.key` and `.value` `(n, groups, past, size)` of each layer N,
        to `logits` `(n, m, vocabulary)` and the `present.N.key` and `.value` that come next.
        """
        graph, text = Graph(), self.config["text"]
        shapes = {
            past: ("n", text["groups"], past, text["head_width"]) for past in ("past", "past + m")
        }
        embedded = graph.input("inputs_embeds", ("n", "m", text["width"]))
        mask = graph.input("attention_mask", ("n", "past + m"), TensorProto.INT64)
        places = graph.input("position_ids", ("n", "m"), TensorProto.INT64)
        past = [
            (
                graph.input(f"past_key_values.{number}.key", shapes["past"]),
                graph.input(f"past_key_values.{number}.value", shapes["past"]),
            )
            for number in range(text["layers"])
        ]
        logits, state = self._parts(graph).logits(embedded, mask, places, past)
        graph.output(logits, "logits", ("n", "m", text["vocabulary"]))
        for number, kept in enumerate(state):
            for part, value in zip(("key", "value"), kept, strict=True):
                graph.output(value, f"present.{number}.{part}", shapes["past + m"])
        return graph.model({})

    def _parts(self, graph: Graph) -> llava.Parts:
        return llava.Parts(graph, self.config, self.layers, self.tensors, self.kernels)


def cache_form(text: Mapping[str, int]) -> dict[str, int]:
    """A decoder's cache, as `exported_model.py` takes it, from the settings of its architecture."""
    return {
        "layers": text["layers"],
        "groups": text["groups"],
        "size": text["head_width"],
    }


def read_layers(
    entries: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> dict[str, PackedLayer]:
    """The layers of a checkpoint, by the path of the module that holds their weight."""
    layers: dict[str, PackedLayer] = {}
    for name, entry in entries.items():
        own = {key.removeprefix(f"{name}."): tensors[key] for key in entry["tensors"]}
        layer = PackedLayer(
            name,
            entry["weight_bits"],
            entry["activation_bits"],
            entry["group"],
            tuple(entry["shape"]),
            own,
            entry["activation_group"],
            entry["activation_symmetric"],
        )
        layers |= dict.fromkeys(entry["modules"], layer)
    return layers


def forms(layers: Iterable[PackedLayer], accuracy_level: int) -> dict[str, str]:
    """How ONNX Runtime computes the product of each layer, by its name."""
    return {layer.name: form_of(layer, accuracy_level).value for layer in layers}


def changes(layers: Iterable[PackedLayer], accuracy_level: int) -> list[str]:
    """What the models do in another way than the trial did, in sentences; nothing else differs."""
    found = []
    by_form: dict[Form, list[PackedLayer]] = {form: [] for form in Form}
    for layer in layers:
        by_form[form_of(layer, accuracy_level)].append(layer)
    blocks = by_form[Form.BLOCKS]
    changed = [layer for layer in blocks if not layer.activation_group]
    if changed and accuracy_level == ROUNDED:
        sizes = {block_size(layer) for layer in changed}
        ends = sorted({min(sizes), max(sizes)})
        found.append(
            f"MatMulNBits rounds the inputs of {len(changed)} layers to 8 bits, in groups of "
            f"{' to '.join(map(str, ends))} columns, which the trial left as they are: "
            "--accuracy-level 0 leaves them too, and is slower; quantizer.activations: grouped "
            "searches with inputs of 8 bits that are rounded so"
        )
    unpacked = [layer for layer in by_form[Form.FLOATS] if layer.weight_bits <= BYTE]
    if unpacked:
        found.append(
            f"{len(unpacked)} layers, such as {unpacked[0].name}, have no fast kernel that "
            "computes what was measured: they are as small in the file, but take the memory and "
            "time of float32 when loaded; 'bitfront targets' says which precisions have one"
        )
    return found

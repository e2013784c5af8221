"""The ONNX models of a dual encoder: its image tower with the classes, and its text tower."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import onnx
from onnx import TensorProto
from torch import Tensor

from bitfront.artefact.onnx.adapter import Adapter
from bitfront.artefact.onnx.clip import Towers
from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph, normalised
from bitfront.artefact.onnx.products import ROUNDED, Form, block_size, form_of
from bitfront.artefact.onnx.unpacking import BYTE

IMAGE, TEXT = "image.onnx", "text.onnx"
EMBEDDING: Final = "token_embedding"


@dataclass(frozen=True, slots=True, eq=False)
class DualEncoderParts:
    """What both models are made of.

    Attributes:
        config: What `runtime/clip.py` is built with.
        layers: By the path of the module that holds their weight.
        tensors: What no plan changes, and a recovery's adapter, by name.
        adapter: What a card says of the adapter; None without one.
        class_features: `(classes, d)`, of length 1.
        accuracy_level: Of MatMulNBits: `ROUNDED` or `EXACT`.
    """

    config: Mapping[str, Any]
    layers: Mapping[str, PackedLayer]
    tensors: Mapping[str, Tensor]
    adapter: Mapping[str, Any] | None
    class_features: Tensor
    accuracy_level: int

    def image_adapter(self) -> Adapter | None:
        """What comes after the image tower."""
        if self.adapter is None:
            return None
        return Adapter(self.tensors, self.adapter, self.accuracy_level)

    @property
    def products(self) -> list[PackedLayer]:
        """Every layer that multiplies an input."""
        adapter = self.image_adapter()
        own = [layer for path, layer in self.layers.items() if path != EMBEDDING]
        return own if adapter is None else [*own, *adapter.layers.values()]


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
        )
        layers |= dict.fromkeys(entry["modules"], layer)
    return layers


def image_model(parts: DualEncoderParts) -> onnx.ModelProto:
    """`pixels` `(n, 3, h, w)` to `logits` `(n, classes)` and `features` `(n, d)` of length 1."""
    graph, classes = Graph(), parts.class_features
    pixels = graph.input("pixels", ("n", 3, *parts.config["preprocessing"]["size"]))
    features = _towers(graph, parts).image_features(pixels)
    adapter = parts.image_adapter()
    if adapter is not None:
        features = adapter.features(graph, features)
    unit = normalised(graph, features)
    cosines = graph.add("MatMul", unit, graph.store("classes", classes.T))
    scale = graph.add("Exp", graph.floats("logit_scale", parts.tensors["logit_scale"]))
    graph.output(graph.add("Mul", cosines, scale), "logits", ("n", len(classes)))
    graph.output(unit, "features", ("n", classes.shape[1]))
    return graph.model({})


def text_model(parts: DualEncoderParts) -> onnx.ModelProto:
    """`tokens` `(n, length)`, int64, to `features` `(n, d)` of length 1."""
    graph = Graph()
    shape = ("n", parts.config["text"]["positions"])
    tokens = graph.input("tokens", shape, TensorProto.INT64)
    unit = normalised(graph, _towers(graph, parts).text_features(tokens))
    graph.output(unit, "features", ("n", parts.config["features"]))
    return graph.model({})


def _towers(graph: Graph, parts: DualEncoderParts) -> Towers:
    return Towers(graph, parts.config, parts.layers, parts.tensors, parts.accuracy_level)


def forms(parts: DualEncoderParts) -> dict[str, str]:
    """How the product of each layer is computed, by its name."""
    return {layer.name: form_of(layer, parts.accuracy_level).value for layer in parts.products}


def changes(parts: DualEncoderParts) -> list[str]:
    """What the models do in another way than the trial did, in sentences; nothing else differs."""
    found = []
    by_form = {form: list(_of_form(parts, form)) for form in Form}
    blocks = by_form[Form.BLOCKS]
    if blocks and parts.accuracy_level == ROUNDED:
        sizes = {block_size(layer) for layer in blocks}
        ends = sorted({min(sizes), max(sizes)})
        found.append(
            f"MatMulNBits rounds the inputs of {len(blocks)} layers to 8 bits, in groups of "
            f"{' to '.join(map(str, ends))} columns, which the trial left as they are: "
            "--accuracy-level 0 leaves them too, and is slower"
        )
    unpacked = [layer for layer in by_form[Form.FLOATS] if layer.weight_bits <= BYTE]
    if unpacked:
        found.append(
            f"{len(unpacked)} layers, such as {unpacked[0].name}, have no fast kernel that computes"
            "what was measured: they are as small in the file, but take the memory and time of "
            "float32 when loaded; 'bitfront targets' says which precisions have one"
        )
    return found


def _of_form(parts: DualEncoderParts, form: Form) -> Iterable[PackedLayer]:
    return (layer for layer in parts.products if form_of(layer, parts.accuracy_level) is form)

"""Runtimes that artefacts are built for: what the export writes is what is timed.

A layer is a model of its own, with the nodes that the export writes for it, and a stage in full
precision is the exported model. Both are opened by the module that travels with an artefact, so
with the same options.
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitfront.artefact.architectures import describe
from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.kernels import TOKEN, Kernels
from bitfront.artefact.onnx.models import (
    DECODER,
    EMBED_TOKENS,
    VISION_ENCODER,
    DualEncoderParts,
    GenerativeParts,
    cache_form,
    read_layers,
)
from bitfront.artefact.packed import kept_tensors, packed_layers
from bitfront.artefact.runtime.exported_model import Decoder, open_graph
from bitfront.layers import Layer, LayerKind
from bitfront.objective import Objective
from bitfront.plan import Plan
from bitfront.precision import FULL, Precision
from bitfront.quant.inputs import input_group
from bitfront.quant.packing import packed_weight
from bitfront.spec import QuantizerSpec, Rounding
from bitfront.targets import Target
from bitfront.vlm import DualEncoder, GenerativeModel, PlanSwitch
from objectives.cost.runtimes.runtime import STANDARD, Timed, Timing, describe_cpu
from objectives.cost.runtimes.stages import prompt_length

T = TypeVar("T")

_NAME: Final = "timed"
_ANSWER: Final = 8
"""Tokens of an answer whose writing is timed: each has a longer cache than the one before."""
_PATCH: Final = (1, 2)
_FLOAT_NBYTES: Final = 4
_LINE: Final = 64  # bytes that a processor reads at once
_LARGEST_FLUSH: Final = 64 << 20


class ExportedRuntime(ABC):
    """Times single layers and whole stages in full precision as they are exported.

    Between two runs of a layer, as much memory is read as the model's weights take, so that
    a layer's own are no more in the caches than they are when the whole model runs.

    Args:
        model: The model; it is left as it is.
        switch: The model's switch.
        quantizer: How weights and inputs get their codes.
        classes: How many classes an image is compared with; 0 for a task without classes.
        threads: Of the runtime; 0 leaves it to the runtime, as an artefact does.
        timing: How often each is run.
    """

    target: ClassVar[Target]
    kernels: ClassVar[Kernels]

    def __init__(
        self,
        model: DualEncoder | GenerativeModel,
        switch: PlanSwitch,
        quantizer: QuantizerSpec,
        classes: int = 0,
        threads: int = 0,
        timing: Timing = STANDARD,
    ) -> None:
        self._model = model
        self._switch = switch
        # How codes are chosen does not change what multiplies them.
        plain = {"scale_search": False, "rounding": Rounding.NEAREST}
        self._quantizer = quantizer.model_copy(update=plain)
        self._classes = classes
        self._timing = timing
        self._threads = threads
        self._names = frozenset(layer.name for layer in model.layers)
        weights = sum(layer.weights for layer in model.layers if layer.tower.sees_images)
        self._elsewhere = np.ones(min(_FLOAT_NBYTES * weights, _LARGEST_FLUSH), np.uint8)

    @property
    def is_target(self) -> bool:
        """Yes."""
        return True

    @property
    def name(self) -> str:
        """The runtime with its version."""
        (package,) = self.target.packages
        return f"{package} {version(package)}"

    @property
    def device(self) -> str:
        """The processor, and the threads or all that there could be."""
        if self._threads:
            return describe_cpu(f"{self._threads} threads")
        return describe_cpu(f"{os.cpu_count()} processors")

    @abstractmethod
    def format(self, layer: PackedLayer) -> str:
        """What decides the time of a layer's product beside its shapes."""

    @abstractmethod
    def write(
        self, model: onnx.ModelProto, layers: Sequence[PackedLayer], folder: Path, name: str
    ) -> None:
        """Writes a model as the export does."""

    def products(self, layer: Layer, precision: Precision) -> list[Timed]:
        """The one product that the export writes."""
        name = self.format(_packed(layer, precision, self._quantizer))
        if self._has_bias(layer):
            name += ", bias"
        return [Timed(name, partial(self._layer_seconds, layer, precision))]

    def own_product(self, layer: Layer) -> Timed:
        """The product of the exported full-precision model."""
        (product,) = self.products(layer, FULL)
        return product

    def whole(self, figure: Objective) -> Timed:
        """An exported image model, which ends with a cosine for each class if there are some.

        Of a LLaVA it is a stage.

        Those are the vision encoder with the decoder that reads a prompt, and a step that
        writes a token more.
        """
        model = self._model
        if isinstance(model, DualEncoder):
            name = f"image model {model.identity}, {self._classes} classes"
            return Timed(name, partial(self._image_seconds, model.image_shape))
        length = prompt_length(model)
        name = f"{length} positions, {model.identity}"
        if figure is Objective.LATENCY_S:
            return Timed(f"prompt of {name}", partial(self._prompt_seconds, length))
        return Timed(f"step after {name}", partial(self._token_seconds, length))

    def image_model(self, plan: Plan) -> tuple[onnx.ModelProto, list[PackedLayer]]:
        """The image model of a plan, with features of no class in particular; and its layers."""
        model = self._model
        assert isinstance(model, DualEncoder)
        classes = torch.zeros(self._classes, model.feature_width) if self._classes else None
        parts = DualEncoderParts(*self._known(plan), None, self.kernels, classes)
        return parts.image_model(), parts.weights

    def _known(
        self, plan: Plan
    ) -> tuple[Mapping[str, object], dict[str, PackedLayer], dict[str, Tensor]]:
        """What exported models are made of: architecture, layers, and what no plan changes."""
        tensors, entries = packed_layers(self._model, self._switch, plan)
        architecture = describe(self._model)
        layers = read_layers(architecture.placed(entries), tensors)
        return architecture.config, layers, architecture.renamed(kept_tensors(self._model))

    def _image_seconds(self, shape: Sequence[int], batch_size: int) -> float:
        inputs = {"pixels": _normal(batch_size, *shape)}
        return self._median(*self.image_model(Plan(())), inputs)

    def _prompt_seconds(self, length: int, batch_size: int) -> float:
        parts = GenerativeParts(*self._known(Plan(())), None, self.kernels)
        models, size = parts.models(), parts.config["preprocessing"]["size"]
        pixels = {"pixel_values": _normal(batch_size, 3, *size)}
        seconds = self._median(models[VISION_ENCODER], parts.weights, pixels)
        inputs = _decoder_inputs(parts.config["text"], batch_size, length, 0)
        return seconds + self._median(models[DECODER], parts.weights, inputs)

    def _token_seconds(self, length: int, batch_size: int) -> float:
        """A step as `exported_model.py` makes it: a look-up, the decoder, and the cache handed on.

        What comes before and after the decoder is the same at any precision of its layers.
        """
        parts = GenerativeParts(*self._known(Plan(())), None, self.kernels)
        models = parts.models()
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            for name in (EMBED_TOKENS, DECODER):
                self.write(models[name], parts.weights, folder, name)
            group = input_group(self._quantizer)
            decoder = Decoder(folder, cache_form(parts.config["text"]), self._threads, group)
            tokens = np.zeros((batch_size, 1), np.int64)
            _, prompt = decoder.after(
                decoder.embedded(tokens), decoder.empty(batch_size, length - 1)
            )
            states = [prompt]

            def step() -> object:
                """A token of an answer, which starts anew when it is long enough."""
                logits, state = decoder.after(decoder.embedded(tokens), states[-1])
                states[:] = [prompt] if len(states) == _ANSWER else [*states, state]
                return logits, state

            return self._timing.median(step)

    def _layer_seconds(self, layer: Layer, precision: Precision, batch_size: int) -> float:
        """The time of a layer's product for a batch, less that of calling a model."""
        model, packed = self.layer_model(layer, precision)
        nothing = _model_of_nothing(layer)
        inputs = {"inputs": _normal(*_shape(layer, batch_size))}
        whole, call = (
            self._median(one, [packed], inputs, self._forget) for one in (model, nothing)
        )
        return max(0.0, whole - call)

    def layer_model(
        self, layer: Layer, precision: Precision
    ) -> tuple[onnx.ModelProto, PackedLayer]:
        """A model of the layer alone, with a random weight.

        It gives the outputs of one sample, so that copying them takes no time.
        """
        packed = _packed(layer, precision, self._quantizer, with_codes=True)
        graph = Graph()
        inputs = graph.input("inputs", _shape(layer, "n"))
        bias = None
        if self._has_bias(layer):
            bias = (f"{layer.name}.bias", torch.zeros(layer.rows, dtype=torch.float16))
        axes = _PATCH if layer.kind is LayerKind.CONVOLUTION else TOKEN
        output = self.kernels.product(graph, packed, inputs, bias, axes)
        graph.output(
            graph.sliced(output, 0, 0, 1), "outputs", (1, *_shape(layer, 1)[1:-1], layer.rows)
        )
        return graph.model({}), packed

    def _has_bias(self, layer: Layer) -> bool:
        if layer.name not in self._names:  # both layers of an adapter have one
            return True
        return self._model.multiplying(layer.name)[0].bias is not None

    def _median(
        self,
        model: onnx.ModelProto,
        layers: Sequence[PackedLayer],
        inputs: dict[str, NDArray[Any]],
        before: Callable[[], object] = lambda: None,
    ) -> float:
        with tempfile.TemporaryDirectory() as folder:
            self.write(model, layers, Path(folder), _NAME)
            run = open_graph(Path(folder), _NAME, self._threads, input_group(self._quantizer))
            return self._timing.median(lambda: run(inputs), before)

    def _forget(self) -> None:
        """Reads as much memory as the whole model's weights take."""
        self._elsewhere[::_LINE].sum()


def _packed(
    layer: Layer, precision: Precision, quantizer: QuantizerSpec, *, with_codes: bool = False
) -> PackedLayer:
    """A layer with a random weight; without codes it only shows what tensors it has."""
    weight = torch.tensor([[-0.3, 1.0]])  # whose zero point lies between two codes where it may
    if not with_codes:
        quantizer = quantizer.model_copy(update={"scale_search": False})
    else:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(layer.rows, layer.columns, generator=generator)
    tensors = packed_weight(weight, precision, quantizer)
    if precision.quantizes_input and quantizer.activations == "static":
        middle = 2 ** (precision.activation_bits - 1)
        tensors["input_scale"] = torch.tensor(4 / middle, dtype=torch.float16)
        tensors["input_zero"] = torch.tensor(middle, dtype=torch.uint8)
    return PackedLayer(
        layer.name,
        precision.weight_bits,
        precision.activation_bits,
        precision.group,
        (layer.rows, layer.columns),
        tensors,
        input_group(quantizer) if precision.quantizes_input else 0,
        precision.quantizes_input and quantizer.activations == "dynamic_symmetric",
    )


def _decoder_inputs(
    text: Mapping[str, int], batch_size: int, length: int, past: int
) -> dict[str, NDArray[Any]]:
    """What a decoder takes for so many positions after those that it knows."""
    kept = _normal(batch_size, text["groups"], past, text["head_width"])
    names = [f"{number}.{part}" for number in range(text["layers"]) for part in ("key", "value")]
    places = np.arange(past, past + length, dtype=np.int64)
    return {
        "inputs_embeds": _normal(batch_size, length, text["width"]),
        "attention_mask": np.ones((batch_size, past + length), np.int64),
        "position_ids": np.tile(places, (batch_size, 1)),
        **{f"past_key_values.{name}": kept for name in names},
    }


def _model_of_nothing(layer: Layer) -> onnx.ModelProto:
    """What takes a layer's inputs and multiplies nothing."""
    graph, shape = Graph(), _shape(layer, "n")
    inputs = graph.input("inputs", shape)
    graph.output(graph.sliced(inputs, 0, 0, 1), "outputs", (1, *shape[1:]))
    return graph.model({})


def _shape(layer: Layer, batch: T) -> tuple[T | int, ...]:
    """The shape of a layer's inputs: a class token's have no dimension of their own."""
    tokens = () if layer.positions == 1 else (layer.positions,)
    return (batch, *tokens, layer.columns)


def _normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)

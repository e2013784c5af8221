"""Brings a model from one plan to another by touching only the layers that differ."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bitfront.errors import SpecError
from bitfront.kv_cache import KvFormat
from bitfront.layers import LayerKind
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.blocks import block_rounding
from bitfront.quant.inputs import (
    InputQuantizer,
    InputRange,
    LearnedBounds,
    input_grid,
    own_range_quantizer,
)
from bitfront.quant.packing import packed_codes
from bitfront.quant.rounding.methods import rounded_weight
from bitfront.quant.weights import (
    QuantizedWeight,
    fake_quantize_weight,
    read_back,
    round_weight,
)
from bitfront.spec import QuantizerSpec, Rounding
from bitfront.vlm.kv_rounding import FittedPlace, rounded_cache
from bitfront.vlm.models.layered import LayeredModel

# A layer's name and its activation bits to the range that was searched for its input; None
# where it was seen to have none.
SearchedRanges = Callable[[str, int], InputRange | None]


class InputRounding(Protocol):
    """What an input goes through: an `InputQuantizer`, or one in training."""

    @property
    def is_grouped(self) -> bool:
        """Whether groups of a token's columns have ranges of their own."""

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """The input on its levels."""


@dataclass(frozen=True, slots=True)
class LayerForm:
    """What decides a layer's weight and input range under a plan.

    Attributes:
        precision: The layer's own.
        prefix: A hash of the plan of the layers before it, where these matter; else empty.
        trained: The hash of the distilled plan that it was trained in; else empty.
    """

    precision: Precision
    prefix: str = ""
    trained: str = ""


@dataclass(frozen=True, slots=True)
class ShownLayer:
    """What a layer has under a plan.

    Attributes:
        weight: `(rows, columns)`, as a packed checkpoint gives it back.
        quantize: What its input goes through; None where that stays as it is.
    """

    weight: Float[Tensor, "rows columns"]
    quantize: InputQuantizer | None


@dataclass(frozen=True, slots=True, eq=False)
class CodedLayer:
    """What a checkpoint holds of a layer that a plan names.

    Attributes:
        codes: Its weight; None where that is stored in float16.
        quantize: What its input goes through; None where that stays as it is.
    """

    codes: QuantizedWeight | None
    quantize: InputQuantizer | None


@dataclass(frozen=True, slots=True, eq=False)
class TrainedPlan:
    """What a distilled plan puts onto a model.

    Attributes:
        layers: Every layer that the plan names.
        vectors: The model's `vectors` that were trained, as a checkpoint holds them.
    """

    layers: Mapping[str, CodedLayer]
    vectors: Mapping[str, Tensor]


class PlanSwitch:
    """Puts plans onto a model and takes them off again.

    A model shows the plan of one switch: what another one put on is taken off first.

    A layer that a plan does not name keeps its own weight; at 16 bits a named one is rounded
    to float16, as a checkpoint would hold it. With dynamic activations a convolution's range
    is that of a whole sample, a linear layer's that of a token.

    Args:
        model: The model.
        quantizer: How weights and inputs get their codes.
        ranges: Layer name and clip to the static range of the layer's input.
        cache_nbytes: How much quantized weight to keep; the least recently used goes first.
            Of a model that is read block by block none is kept.
        bounds: What static ranges are scaled by, by layer and activation bits.
        moments: Layer name to the second moment of its inputs, `X^T X / n`, which `gptq` and
            `descent` need; under `auto` a layer without one has its nearest codes.
        searched: Finds the ranges that the quantizer asks to be searched.
        is_blocked: Whether inputs are rounded block by block, as llama.cpp does it.

    Attributes:
        quantizer: The same as the argument.
        ranges: The same as the argument.
        bounds: The same as the argument.
        distil: Finds what a distilled plan puts onto the model; it may train it first.
        cache: Fits a format to a place of the KV cache; it may run samples first.
    """

    distil: Callable[[Plan], TrainedPlan]
    cache: Callable[[str, KvFormat], FittedPlace]

    def __init__(
        self,
        model: LayeredModel,
        quantizer: QuantizerSpec,
        ranges: Mapping[str, Mapping[float, InputRange]],
        cache_nbytes: int = 2 << 30,
        bounds: LearnedBounds = MappingProxyType({}),
        moments: Mapping[str, Tensor] = MappingProxyType({}),
        searched: SearchedRanges = lambda _layer, _bits: None,
        *,
        is_blocked: bool = False,
    ) -> None:
        self._model = model
        self._is_blocked = is_blocked
        self._layers = {layer.name: layer for layer in model.layers}
        self.bounds = bounds
        self.quantizer = quantizer
        self._moments = moments
        self.ranges = ranges
        self._searched = searched
        self._cache_nbytes = cache_nbytes if model.residency is None else 0
        self._cached_nbytes = 0
        self._weights: OrderedDict[tuple[str, int, int, str], Tensor] = OrderedDict()
        self._trained: TrainedPlan | None = None
        self._vectors: Mapping[str, Tensor] = {}
        self._applied: dict[str, LayerForm] = {}
        self._hooks: dict[str, list[RemovableHandle]] = {}
        self._kept: tuple[tuple[str, KvFormat], ...] = ()
        self._kept_hooks = ExitStack()

    def to(self, plan: Plan) -> int:
        """Brings the model to the plan.

        Returns:
            How many layers changed.

        Raises:
            SpecError: The plan names an unknown layer, or one whose input range is not known.
        """
        trained = None if plan.distil is None else self.distil(plan)
        self.fitted(plan)
        self._take_over()
        for layer, precision in plan:
            self.input_quantizer(layer, precision)
        self._trained = trained
        wanted = self._forms(plan)
        self._prepare(plan, wanted)
        names = [layer.name for layer in self._model.layers]
        changed = [name for name in names if self._applied.get(name) != wanted.get(name)]
        for name in changed:
            self._set(name, wanted.get(name))
        self._put_vectors({} if trained is None else trained.vectors)
        self._put_cache(plan)
        return len(changed)

    def shown(self, plan: Plan) -> dict[str, ShownLayer]:
        """What each layer that a plan names has under it; the plan is put on.

        Raises:
            SpecError: As for `to`.
        """
        self.to(plan)
        return {
            name: ShownLayer(self._weight(name, form), self._input_quantizer(name, form))
            for name, form in self._applied.items()
        }

    def packed(self, plan: Plan) -> dict[str, dict[str, Tensor]]:
        """What a packed checkpoint stores for each layer under a plan: what the model has then.

        Returns:
            For each layer what `packed_weight` gives (float16 where the plan does not name it)
            and, where its input has a static range, `input_scale`, a float16, and `input_zero`, a
            uint8: the code of zero.

        Raises:
            SpecError: As for `to`.
        """
        coded, found = self.coded(plan), {}
        for layer in self._model.layers:
            own = coded.get(layer.name, CodedLayer(None, None))
            if own.codes is None:
                found[layer.name] = {"weight": round_weight(self._model.weight(layer.name))}
            else:
                found[layer.name] = packed_codes(own.codes)
            quantize = own.quantize
            if quantize is not None and quantize.range is not None:
                low, high = torch.tensor(quantize.range.low), torch.tensor(quantize.range.high)
                scale, zero = input_grid(low, high, quantize.bits)
                found[layer.name]["input_scale"] = scale.to(torch.float16)
                found[layer.name]["input_zero"] = zero.to(torch.uint8)
        return found

    def coded(self, plan: Plan) -> dict[str, CodedLayer]:
        """What a checkpoint holds of each layer that a plan names; a distilled plan is put on.

        Raises:
            SpecError: As for `to`.
        """
        if plan.distil is not None:
            self.to(plan)
        return {
            layer: CodedLayer(
                self._codes(layer, form) if form.precision.quantizes_weight else None,
                self._input_quantizer(layer, form),
            )
            for layer, form in self._forms(plan).items()
        }

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The values that the plan on the model gives to the model's `vectors`, by name."""
        return dict(self._vectors)

    def _forms(self, plan: Plan) -> dict[str, LayerForm]:
        """What decides each layer of a plan."""
        trained = "" if plan.distil is None else plan.digest
        return {layer: LayerForm(precision, trained=trained) for layer, precision in plan}

    def _prepare(self, plan: Plan, forms: Mapping[str, LayerForm]) -> None:
        """Makes the weights of a plan known that depend on each other; here none do."""

    def _take_over(self) -> None:
        other = self._model.switch
        if other is not self:
            self._model.switch = self
            if isinstance(other, PlanSwitch):
                other.take_off()

    def take_off(self) -> None:
        """Takes this switch's plan off the model; another one's stays."""
        for name in list(self._applied):
            self._set(name, None)
        self._put_vectors({})
        self._put_cache(Plan(()))

    def fitted(self, plan: Plan) -> dict[str, FittedPlace]:
        """What a plan makes of the KV cache, by the names of its places; samples may run first.

        Raises:
            SpecError: The model has no such place.
        """
        return {place: self.cache(place, form) for place, form in plan.cache}

    def _put_cache(self, plan: Plan) -> None:
        """Lets keys and values pass through a plan's codes."""
        if plan.cache == self._kept:
            return
        self._kept_hooks.close()
        self._kept = ()
        if plan.cache:
            fitted = self.fitted(plan)
            self._kept_hooks.enter_context(rounded_cache(self._model.module, fitted))
        self._kept = plan.cache

    def _put_vectors(self, vectors: Mapping[str, Tensor]) -> None:
        if vectors is not self._vectors:
            for name in self._vectors.keys() | vectors.keys():
                self._model.put_vector(name, vectors.get(name))
            self._vectors = vectors

    def clear(self) -> int:
        """Brings the model back to full precision, bit for bit; returns how many changed."""
        return self.to(Plan(()))

    def _set(self, layer: str, form: LayerForm | None) -> None:
        self._model.put_weight(layer, None if form is None else partial(self._weight, layer, form))
        for hook in self._hooks.pop(layer, []):
            hook.remove()
        if form is None:
            self._applied.pop(layer, None)
            return
        quantize = self._input_quantizer(layer, form)
        if quantize is not None:
            self._hooks[layer] = [
                module.register_forward_pre_hook(input_hook(quantize, module), prepend=True)
                for module in self._model.multiplying(layer)
            ]
        self._applied[layer] = form

    def _weight(self, layer: str, form: LayerForm) -> Float[Tensor, "rows columns"]:
        precision = form.precision
        if form.trained and precision.quantizes_weight:
            return read_back(self._codes(layer, form), self._model.weight(layer))
        key = (layer, precision.weight_bits, precision.group, precision.format)
        weight = self._weights.pop(key, None)
        if weight is None:
            weight = self.fake_quantized_weight(layer, precision)
            self._cached_nbytes += weight.nbytes
        self._weights[key] = weight
        while self._cached_nbytes > self._cache_nbytes:
            _, oldest = self._weights.popitem(last=False)
            self._cached_nbytes -= oldest.nbytes
        return weight

    def fake_quantized_weight(self, layer: str, precision: Precision) -> Float[Tensor, "*shape"]:
        """The layer's weight as a packed checkpoint gives it back; nothing is put on the model.

        Where weights depend on the layers before, it is the one on the inputs of the full model.

        Raises:
            SpecError: The rounding method needs the second moment of the layer's inputs, and
                it is not known.
        """
        weight = self._model.weight(layer)
        if not precision.quantizes_weight:
            return fake_quantize_weight(weight, precision, self.quantizer)
        return read_back(PlanSwitch._codes(self, layer, LayerForm(precision)), weight)

    def _codes(self, layer: str, form: LayerForm) -> QuantizedWeight:
        if form.trained:
            assert self._trained is not None
            codes = self._trained.layers[layer].codes
            assert codes is not None
            return codes
        weight, moment = self._model.weight(layer), self._moments.get(layer)
        needs_moment = self.quantizer.rounding not in (Rounding.NEAREST, Rounding.AUTO)
        if needs_moment and moment is None and self._model.multiplying(layer):
            raise SpecError(
                f"the second moment of the inputs of {layer} is not known, and the rounding method "
                f"{self.quantizer.rounding.value} needs it: calibrate the model for it first"
            )
        return rounded_weight(weight, form.precision, self.quantizer, moment)

    def _input_quantizer(self, layer: str, form: LayerForm) -> InputQuantizer | None:
        if form.trained:
            assert self._trained is not None
            return self._trained.layers[layer].quantize
        return self.input_quantizer(layer, form.precision)

    def input_quantizer(self, layer: str, precision: Precision) -> InputQuantizer | None:
        """What the layer's input goes through; None where it stays as it is.

        Where ranges depend on the layers before, it is the one on the inputs of the full model.

        Raises:
            SpecError: There is no such layer, or its range is not known.
        """
        if not self._model.multiplying(layer):
            return None
        if not precision.quantizes_input:
            return block_rounding(self._layers[layer], precision) if self._is_blocked else None
        bits = precision.activation_bits
        if self.quantizer.activations != "static":
            self._refuse_convolution(layer)
            return own_range_quantizer(bits, self.quantizer)
        known = self.ranges.get(layer, {}).get(precision.clip)
        if known is None:
            raise SpecError(
                f"the input range of {layer} at clip {precision.clip} is not known: "
                "calibrate the model for it first"
            )
        scale = self.bounds.get(layer, {}).get(bits)
        if scale is not None:
            return InputQuantizer(bits, scale.of(known))
        searched = self._searched(layer, bits) if self._searches(layer, precision) else None
        return InputQuantizer(bits, searched or known)

    def _refuse_convolution(self, layer: str) -> None:
        """Refuses a convolution whose input cannot be rounded as the job asks."""
        ranges = self.quantizer.activations
        for module in self._model.multiplying(layer):
            if not isinstance(module, nn.Conv2d):
                continue
            if ranges == "grouped" and not has_patches(module):
                raise SpecError(
                    f"quantizer.activations: grouped rounds the columns of a product, and the "
                    f"patches of {layer} overlap: write static or dynamic"
                )
            if not self.quantizer.rounds(LayerKind.CONVOLUTION):
                raise SpecError(
                    f"quantizer.activations: {ranges} rounds the inputs of linear layers, and "
                    f"{layer} is a convolution: give it inputs of 16 bits"
                )

    def _searches(self, layer: str, precision: Precision) -> bool:
        """Whether the layer's range is searched: no clip and no learned bound gives it."""
        bits = precision.activation_bits
        given = precision.clip < 1 or bits in self.bounds.get(layer, {})
        return self.quantizer.searches_range(bits) and not given


def quantized_input(
    quantize: InputRounding, module: nn.Module, inputs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """A module's input on its levels.

    A convolution's dynamic range is that of a whole sample; in groups, the columns are those of
    its patches.
    """
    if not isinstance(module, nn.Conv2d):
        return quantize(inputs)
    if not quantize.is_grouped:
        return quantize(inputs.flatten(1)).view_as(inputs)
    (height, width), channels = module.kernel_size, inputs.shape[1]
    rows, columns = inputs.shape[2] // height, inputs.shape[3] // width
    seen = inputs[:, :, : rows * height, : columns * width]
    patches = seen.reshape(-1, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
    rounded = quantize(patches.flatten(3)).view_as(patches).permute(0, 3, 1, 4, 2, 5)
    # What lies beside the last whole patches is not multiplied.
    beside = [0, inputs.shape[3] - columns * width, 0, inputs.shape[2] - rows * height]
    return nn.functional.pad(rounded.reshape(seen.shape), beside)


def has_patches(module: nn.Conv2d) -> bool:
    """Whether a convolution multiplies patches that lie beside each other."""
    plain = module.padding in ((0, 0), "valid") and module.dilation == (1, 1)
    return plain and module.stride == module.kernel_size and module.groups == 1


def input_hook(
    quantize: InputRounding, module: nn.Module
) -> Callable[[nn.Module, tuple[object, ...]], tuple[object, ...]]:
    """A forward pre-hook that passes the first argument through the quantizer."""

    def hook(_module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        given, *rest = args
        assert isinstance(given, Tensor)
        return quantized_input(quantize, module, given), *rest

    return hook

"""The image adapter of P4Q: a low-bit bottleneck after the image features."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from bitfront.errors import InvalidModel
from bitfront.plan import Recovery
from bitfront.precision import Precision
from bitfront.quant.inputs import (
    InputQuantizer,
    InputRange,
    input_grid,
    input_nbytes,
    own_range_quantizer,
)
from bitfront.quant.packing import packed_weight, unpacked_weight, weight_nbytes
from bitfront.quant.weights import fake_quantize_weight
from bitfront.spec import QuantizerSpec

LINEARS = ("down", "up")

PREFIX = "adapter."

InputTransform = Callable[[Tensor], Tensor]
Matmul = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """The sizes and the numeric format of an adapter.

    Attributes:
        width: Width of an image feature.
        hidden: Width of the bottleneck.
        precision: Format of both weights and of their inputs.
        blend: Share of the adapter's output in the result.
        quantizer: How weights and inputs are mapped to codes.
        is_residual: Whether the output is added to the feature, which keeps its length: a
            decoder sees lengths, but cosine logits do not.
    """

    width: int
    hidden: int
    precision: Precision
    blend: float
    quantizer: QuantizerSpec
    is_residual: bool = False

    @classmethod
    def of(
        cls,
        recovery: Recovery,
        width: int,
        quantizer: QuantizerSpec,
        *,
        is_residual: bool = False,
    ) -> "AdapterShape":
        """The adapter that a recovery asks for; its `reduction` must not be 0."""
        precision = Precision(recovery.adapter_bits, recovery.adapter_bits)
        hidden = max(1, width // recovery.reduction)
        return cls(width, hidden, precision, recovery.blend, quantizer, is_residual)

    def matrix(self, linear: str) -> tuple[int, int]:
        """Rows and columns of the weight of `down` or `up`."""
        return (self.hidden, self.width) if linear == "down" else (self.width, self.hidden)

    @property
    def has_input_format(self) -> bool:
        """Whether inputs have a stored format: they are quantized, and not per sample."""
        return self.precision.quantizes_input and self.quantizer.activations == "static"

    def input_quantizer(self, form: "InputFormat | None") -> InputTransform:
        """What an input goes through: nothing at 16 bits; without a format, per sample."""
        if not self.precision.quantizes_input:
            return nn.Identity()
        bits = self.precision.activation_bits
        if form is not None:
            return form.quantizer(bits)
        return own_range_quantizer(bits, self.quantizer)

    @property
    def nbytes(self) -> int:
        """The bytes that a checkpoint holds: packed weights, float16 biases, input formats."""
        matrices = [self.matrix(linear) for linear in LINEARS]
        weights = sum(
            weight_nbytes(rows, columns, self.precision, self.quantizer)
            for rows, columns in matrices
        )
        biases = sum(2 * rows for rows, _ in matrices)
        return weights + biases + len(LINEARS) * input_nbytes(self.precision, self.quantizer)


def scaled(features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """The features at length sqrt(d), so that an element is 1 in the mean square.

    Weights, learning rate and input range then fit every model. A feature of length 0 stays 0.
    """
    return functional.normalize(features, dim=-1) * math.sqrt(features.shape[-1])


def _adapted(features: Tensor, shape: AdapterShape, matmul: Matmul) -> Tensor:
    unit = scaled(features)
    changed = shape.blend * matmul("up", functional.relu(matmul("down", unit)))
    if not shape.is_residual:
        return changed + (1 - shape.blend) * unit
    length: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features + length / math.sqrt(features.shape[-1]) * changed


@dataclass(frozen=True, slots=True)
class InputFormat:
    """A static input format as a checkpoint holds it: a float16 scale and a zero point."""

    scale: Float[Tensor, ""]
    zero: UInt8[Tensor, ""]

    @classmethod
    def observed(cls, inputs: Tensor, bits: int) -> "InputFormat":
        """The format that spans the inputs from their minimum to their maximum, and 0."""
        scale, zero = input_grid(inputs.min(), inputs.max(), bits)
        return cls(scale.to(torch.float16), zero.to(torch.uint8))

    def quantizer(self, bits: int) -> InputQuantizer:
        """The quantizer of this format; from the range of its levels it finds the same scale."""
        scale, zero = float(self.scale), int(self.zero)
        return InputQuantizer(bits, InputRange(-zero * scale, (2**bits - 1 - zero) * scale))


class Adapter(nn.Module):
    """The adapter in training: full precision first, fake-quantized once `quantize` was called.

    A residual one changes nothing at first.
    """

    def __init__(self, shape: AdapterShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.down = _first_linear(*shape.matrix("down"), generator)
        self.up = _first_linear(*shape.matrix("up"), generator)
        if shape.is_residual:
            nn.init.zeros_(self.up.weight)
        self._formats: dict[str, InputFormat] = {}
        self._quantizes = False

    def forward(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The adapted features, not normalised.

        `blend * A(z) + (1 - blend) * z` with z the features at length sqrt(d) and A the two
        products; where it is residual, `x + blend * A(z)` times the length of x over sqrt(d).
        """
        return _adapted(features, self.shape, self._product)

    def quantize(self, features: Float[Tensor, "*n d"]) -> None:
        """Fake-quantize from now on, with the input formats that these features need.

        The formats hold for the rest of training and are the ones that are stored.
        """
        self._quantizes = True
        with torch.no_grad():
            _adapted(features, self.shape, self._observe)

    def formats(self) -> dict[str, Tensor]:
        """The input formats, once there are some; `take_formats` puts them back."""
        return {
            f"{name}.{part}": tensor
            for name, form in self._formats.items()
            for part, tensor in (("scale", form.scale), ("zero", form.zero))
        }

    def take_formats(self, formats: Mapping[str, Tensor]) -> None:
        """Fake-quantize from now on, with formats that are known; none take each row's own."""
        self._quantizes = True
        self._formats = {
            name: InputFormat(formats[f"{name}.scale"], formats[f"{name}.zero"])
            for name in LINEARS
            if f"{name}.scale" in formats
        }

    def stored(self) -> dict[str, Tensor]:
        """What a checkpoint holds; `StoredAdapter` computes with exactly these tensors."""
        tensors: dict[str, Tensor] = {}
        for name in LINEARS:
            linear = self._linear(name)
            weight = linear.weight.detach()
            packed = packed_weight(weight, self.shape.precision, self.shape.quantizer)
            tensors |= {f"{PREFIX}{name}.{key}": tensor for key, tensor in packed.items()}
            tensors[f"{PREFIX}{name}.bias"] = linear.bias.detach().to(torch.float16)
        for name, form in self._formats.items():
            tensors[f"{PREFIX}{name}.input_scale"] = form.scale
            tensors[f"{PREFIX}{name}.input_zero"] = form.zero
        return tensors

    def _linear(self, name: str) -> nn.Linear:
        return self.down if name == "down" else self.up

    def _product(self, name: str, inputs: Tensor) -> Tensor:
        linear = self._linear(name)
        weight = linear.weight
        if self._quantizes:
            shape = self.shape
            inputs = shape.input_quantizer(self._formats.get(name))(inputs)
            rounded = fake_quantize_weight(weight.detach(), shape.precision, shape.quantizer)
            # Straight through: the value is `rounded` to the bit, the gradient is the weight's.
            weight = rounded + (weight - weight.detach())
        return functional.linear(inputs, weight, linear.bias)

    def _observe(self, name: str, inputs: Tensor) -> Tensor:
        if self.shape.has_input_format:
            bits = self.shape.precision.activation_bits
            self._formats[name] = InputFormat.observed(inputs, bits)
        return self._product(name, inputs)


def _first_linear(rows: int, columns: int, generator: torch.Generator) -> nn.Linear:
    """A Linear with random weights of a generator, not of torch's global one."""
    linear = nn.Linear(columns, rows, device="meta")
    bound = 1 / math.sqrt(columns)
    weight = bound * (2 * torch.rand(rows, columns, generator=generator) - 1)
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(rows))
    return linear


class StoredAdapter:
    """The adapter that a checkpoint holds: packed weights, float16 biases, input formats.

    Raises:
        InvalidModel: A tensor is missing, or does not fit the shape.
    """

    def __init__(self, tensors: Mapping[str, Tensor], shape: AdapterShape) -> None:
        self._shape = shape
        self._weights: dict[str, Tensor] = {}
        self._biases: dict[str, Tensor] = {}
        self._quantizers: dict[str, InputTransform] = {}
        for name in LINEARS:
            prefix = f"{PREFIX}{name}."
            own = {
                key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)
            }
            rows, columns = shape.matrix(name)
            if "bias" not in own:
                raise InvalidModel(f"the stored adapter has no bias for its product {name}")
            self._biases[name] = own.pop("bias").float()
            scale, zero = own.pop("input_scale", None), own.pop("input_zero", None)
            form = None if scale is None or zero is None else InputFormat(scale, zero)
            self._quantizers[name] = shape.input_quantizer(form)
            self._weights[name] = unpacked_weight(
                own, rows, columns, shape.precision, shape.quantizer
            )

    def __call__(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The adapted features, not normalised."""
        return _adapted(features, self._shape, self._product)

    def _product(self, name: str, inputs: Tensor) -> Tensor:
        quantized = self._quantizers[name](inputs)
        return functional.linear(quantized, self._weights[name], self._biases[name])


def stored_adapter(
    tensors: Mapping[str, Tensor],
    recovery: Recovery,
    width: int,
    quantizer: QuantizerSpec,
    *,
    is_residual: bool = False,
) -> StoredAdapter | None:
    """The adapter that a checkpoint holds; None where the recovery has none.

    Raises:
        InvalidModel: A tensor is missing, or does not fit the recovery.
    """
    if not recovery.reduction:
        return None
    shape = AdapterShape.of(recovery, width, quantizer, is_residual=is_residual)
    return StoredAdapter(tensors, shape)

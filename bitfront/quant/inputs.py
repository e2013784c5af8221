"""Inputs: rounding what flows into a layer, with a gradient straight through the rounding."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitfront.errors import InvalidModel, SpecError
from bitfront.precision import ACTIVATION_BITS, Precision
from bitfront.quant.grid import covering_range, saturated
from bitfront.spec import QuantizerSpec

GROUP: Final = 32
"""Columns of a token that share a scale where inputs are rounded in groups and no job says more.

It is the block of gguf's `Q8_0`, what OpenVINO's dynamic quantization takes by default, and a block
size of ONNX Runtime's `MatMulNBits`.
"""


@dataclass(frozen=True, slots=True)
class InputRange:
    """The measured range of a layer's input, in the input's unit."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise InvalidModel(
                f"a layer's input ranges from {self.low} to {self.high}: "
                "both must be finite and in this order"
            )


@dataclass(frozen=True, slots=True)
class RangeScale:
    """Factors on the two ends of a measured range, as visual-encoder optimisation learns them."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise InvalidModel(f"a range is scaled by {self.low} and {self.high}: not finite")
        if self.low < 0 or self.high < 0:
            raise InvalidModel(f"a range is scaled by {self.low} and {self.high}: below zero")

    def of(self, measured: InputRange) -> InputRange:
        """The range with its ends scaled."""
        low, high = measured.low * self.low, measured.high * self.high
        return InputRange(min(low, high), max(low, high))


# Layer name to activation bits to what its range is scaled by.
LearnedBounds = Mapping[str, Mapping[int, RangeScale]]


def bounds_to_json(bounds: LearnedBounds) -> dict[str, object]:
    """Plain JSON content; `bounds_from_json` reads it back."""
    return {
        layer: {str(bits): [scale.low, scale.high] for bits, scale in sorted(scales.items())}
        for layer, scales in sorted(bounds.items())
    }


def bounds_from_json(content: Mapping[str, object]) -> LearnedBounds:
    """The bounds that `bounds_to_json` wrote.

    Raises:
        InvalidModel: The content is not a set of bounds.
    """
    try:
        return {
            layer: {int(bits): RangeScale(*ends) for bits, ends in dict(scales).items()}  # type: ignore[call-overload]  # what is none raises
            for layer, scales in content.items()
        }
    except (TypeError, ValueError) as error:
        raise InvalidModel(f"these are not learned bounds: {error}") from error


class InputQuantizer:
    """Rounds an input to its levels, and back to the input's dtype.

    The codes are unsigned and asymmetric, with the scale in float16 and a whole zero point;
    the range is widened to hold zero, so zero stays zero. A range of zero width makes every
    input (almost) zero. In groups they are as `round_in_groups` has them, symmetric ones of whole
    tokens as `round_by_token` does.

    Attributes:
        bits: Width of a code: 4, 6 or 8.
        range: The static range; None takes each token's own (over the last dimension).
        group: Columns of a token that have a range of their own; 0 where all share one.
        is_symmetric: Whether a token's own range lies around zero.
    """

    def __init__(
        self, bits: int, range: InputRange | None, *, group: int = 0, is_symmetric: bool = False
    ) -> None:
        if bits not in ACTIVATION_BITS or bits == 16:
            raise SpecError(f"an input's codes have 4, 6 or 8 bits, got {bits}")
        self.bits = bits
        self.range = range
        self.group = group
        self.is_symmetric = is_symmetric
        self._bounds = (
            None if range is None else (torch.tensor(range.low), torch.tensor(range.high))
        )

    @property
    def is_grouped(self) -> bool:
        """Whether groups of a token's columns have ranges of their own."""
        return self.group > 0

    @property
    def levels(self) -> tuple[object, ...]:
        """What two quantizers share that round alike."""
        return (self.bits, self.range)

    def __call__(self, inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The input on its levels; see `fake_quantize_input` and the other functions here."""
        if self.group:
            return round_in_groups(inputs, self.bits, self.group)
        if self.is_symmetric:
            return round_by_token(inputs, self.bits)
        if self._bounds is not None:
            return fake_quantize_input(inputs, *self._bounds, self.bits)
        low, high = torch.aminmax(inputs.detach().float(), dim=-1, keepdim=True)
        return fake_quantize_input(inputs, low, high, self.bits)


def round_in_groups(
    inputs: Float[Tensor, "*n columns"], bits: int, size: int = GROUP, *, halves_scale: bool = False
) -> Float[Tensor, "*n columns"]:
    """The input rounded in groups of columns, each with a scale of its own around zero.

    `round(x * (top / m)) * (m / top)` with `m` the largest magnitude of the group and
    `top = 2**(bits - 1) - 1`: what ONNX Runtime's `MatMulNBits` does with its input at accuracy
    level 4, and OpenVINO's dynamic quantization with that group size, at 8 bits. The scale
    is in float32 and ties go to the even code. The last group may have fewer columns. A group of
    zeros stays zero; the gradient passes unchanged, as nothing is cut off.

    Args:
        inputs: Of any floating dtype, which the result has too.
        bits: Width of a code, with its sign.
        size: Columns of a group.
        halves_scale: Whether the scale is stored in float16, after the codes are chosen.
    """
    columns, top = inputs.shape[-1], float(2 ** (bits - 1) - 1)
    with torch.no_grad():
        filled = nn.functional.pad(inputs.float(), (0, -columns % size))
        groups = filled.view(*filled.shape[:-1], -1, size)
        largest = groups.abs().amax(dim=-1, keepdim=True)
        multiple = torch.where(largest > 0, top / largest, 0.0)
        scale = largest / top
        if halves_scale:
            scale = scale.half().float()
        rounded = (groups * multiple).round_().mul_(scale)
        levels = saturated(rounded.flatten(-2)[..., :columns], inputs.dtype)
    return inputs + (levels - inputs).detach() if inputs.requires_grad else levels


def round_by_token(inputs: Float[Tensor, "*n columns"], bits: int) -> Float[Tensor, "*n columns"]:
    """The input rounded token by token, each with one scale around zero.

    `s * clip(round(x / s), -2**(bits - 1), 2**(bits - 1) - 1)` with `s = m / (2**(bits - 1) - 1/2)`
    and `m` the token's largest magnitude: what compressed-tensors does with `input_activations` of
    strategy `token` that are dynamic and symmetric. So a token's largest value, if positive, is
    half a step off. The arithmetic is in float32 and ties go to the even code. A token of zeros
    stays zero; the gradient passes unchanged, as nothing is further off than half a step.

    Args:
        inputs: Of any floating dtype, which the result has too.
        bits: Width of a code, with its sign.
    """
    lowest, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    with torch.no_grad():
        values = inputs.float()
        scale = token_scale(values, bits)
        codes = (values / scale).clamp_(lowest, top).round_()
        levels = saturated(codes.mul_(scale), inputs.dtype)
    return inputs + (levels - inputs).detach() if inputs.requires_grad else levels


def token_scale(inputs: Float32[Tensor, "*n columns"], bits: int) -> Float32[Tensor, "*n 1"]:
    """The scale of each token around zero, as `round_by_token` has it; positive."""
    scale = inputs.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 0.5)
    return torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)


def fake_quantize_input(
    inputs: Float[Tensor, "*shape"],
    low: Float32[Tensor, "*#shape"],
    high: Float32[Tensor, "*#shape"],
    bits: int,
) -> Float[Tensor, "*shape"]:
    """The input rounded to the nearest of `2**bits` levels between two bounds.

    Ties go to the even multiple of the scale, as `torch.round` does. The arithmetic is in
    float32, the result in the dtype of `inputs`. An infinity saturates, NaN stays NaN, and a
    NaN bound makes everything NaN.

    The gradient for `inputs` passes unchanged where a value has a level (up to half a step
    outside of the bounds) and is zero elsewhere, as for `torch.fake_quantize_*`. The gradients
    for `low` and `high` are those of LSQ+ (https://arxiv.org/abs/2004.09576): the whole
    gradient where a value is clipped at that bound, and the rounding error's share of a
    change in scale elsewhere.

    Args:
        inputs: Any shape and floating dtype.
        low: The lower bound, of a shape that broadcasts to `inputs`; above zero it counts
            as zero.
        high: The upper bound, of the same shape; below zero it counts as zero.
        bits: Width of a code.
    """
    result: Tensor = _FakeQuantize.apply(inputs, low.clamp(max=0), high.clamp(min=0), bits)
    return result


def input_levels(range: InputRange, bits: int) -> Float32[Tensor, " levels"]:
    """The `2**bits` values that an input of a static range is rounded to, in rising order."""
    scale, zero = input_grid(torch.tensor(range.low), torch.tensor(range.high), bits)
    return scale * (torch.arange(2**bits) - zero)


def input_nbytes(precision: Precision, quantizer: QuantizerSpec) -> int:
    """The bytes a packed checkpoint holds for a layer's input: a static scale and zero point."""
    static = precision.quantizes_input and quantizer.activations == "static"
    return 3 if static else 0


def input_group(quantizer: QuantizerSpec) -> int:
    """Columns of a quantized input that share a scale of their own; 0 where they do not."""
    return quantizer.activation_group if quantizer.activations == "grouped" else 0


def own_range_quantizer(bits: int, quantizer: QuantizerSpec) -> InputQuantizer:
    """What rounds an input whose ranges are not static, as the job asks."""
    is_symmetric = quantizer.activations == "dynamic_symmetric"
    return InputQuantizer(bits, None, group=input_group(quantizer), is_symmetric=is_symmetric)


def input_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The scale, and the code of zero."""
    scale, zero = covering_range(low, high, bits)
    return scale, zero.round()


class _Context(Protocol):
    """What autograd hands from forward to backward, and our `top`."""

    top: int
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _FakeQuantize(torch.autograd.Function):
    """Rounding in one pass, with its gradients; see `fake_quantize_input`."""

    @staticmethod
    def forward(ctx: _Context, inputs: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
        scale, zero = input_grid(low, high, bits)
        ctx.save_for_backward(inputs, scale, zero)
        ctx.top = top = 2**bits - 1
        multiples = (inputs.float() / scale).round_().clamp_(-zero, top - zero)
        return saturated(multiples.mul_(scale), inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: _Context, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        inputs, scale, zero = ctx.saved_tensors
        exact = inputs.float() / scale
        multiples = exact.round()
        below, above = multiples < -zero, multiples > ctx.top - zero
        inside = ~(below | above)
        for_inputs = gradient * inside
        if not any(ctx.needs_input_grad[1:3]):
            return for_inputs, None, None, None
        incoming = gradient.float()
        share = incoming * torch.where(inside, multiples - exact, 0) / ctx.top
        for_low = (incoming * below - share).sum_to_size(scale.shape).to(scale.device)
        for_high = (incoming * above + share).sum_to_size(scale.shape).to(scale.device)
        return for_inputs, for_low, for_high, None

"""Weights: codes with a float16 scale for every row or group of columns, and back."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, Float32, Shaped, UInt8
from torch import Tensor

from bitfront.errors import InvalidModel, SpecError
from bitfront.formats import WeightFormat
from bitfront.precision import WEIGHT_BITS, Precision
from bitfront.quant.floats import (
    codes_of,
    fitted_scale,
    levels_of_codes,
    nearest_levels,
    stored_scale,
    tensor_scale,
)
from bitfront.quant.grid import covering_grid, saturated, searched_grid
from bitfront.spec import QuantizerSpec

_CHUNK = 2**18  # weights handled at a time: the temporaries of the search stay in the cache
_CUDA_CHUNK = 2**24


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """A weight matrix as codes.

    An integer weight is `scale * (code - zero * 2**(bits - 8))`, exactly, in float32. In another
    number format it is the code's level times the scale. Compared by identity, as tensors are.

    Attributes:
        codes: `(rows, columns)`, from 0 to `2**bits - 1`.
        scale: `(rows, groups)`; positive; float16, or the type that the format stores.
        zero: `(rows, groups)`, the code that stands for zero, in steps of `2**(bits - 8)`;
            None if symmetric, where it is the code `2**(bits - 1)`.
        bits: Width of a code.
        group: Columns that share a scale; the last group may be short; 0 is the whole row.
        form: The number format; None for integers.
        tensor_scale: What multiplies every scale; None where the format has no such scale.
    """

    codes: UInt8[Tensor, "rows columns"]
    scale: Shaped[Tensor, "rows groups"]
    zero: UInt8[Tensor, "rows groups"] | None
    bits: int
    group: int
    form: WeightFormat | None = None
    tensor_scale: Float32[Tensor, ""] | None = None

    @property
    def scales(self) -> Float32[Tensor, "rows groups"]:
        """What each group's levels are multiplied with."""
        scale = self.scale.float()
        return scale if self.tensor_scale is None else scale * self.tensor_scale

    @property
    def points(self) -> Float32[Tensor, "rows columns"]:
        """What each code stands for before scale and zero point."""
        return self.codes.float() if self.form is None else levels_of_codes(self.codes, self.form)

    @property
    def zero_codes(self) -> Float32[Tensor, "rows groups"]:
        """The zero points in codes, exactly; the middle code if symmetric; 0 beside levels."""
        if self.form is not None:
            return torch.zeros(self.scale.shape, device=self.scale.device)
        if self.zero is None:
            return torch.full_like(self.scale.float(), 2 ** (self.bits - 1))
        steps: int = 2 ** (8 - self.bits)  # an integer power is Any to the type checker
        return self.zero.float() / steps


def group_count(columns: int, group: int) -> int:
    """How many scales a row of `columns` weights has; the last group may be short."""
    return -(-columns // group) if group else 1


def quantize_weight(
    weight: Float[Tensor, "*shape"],
    bits: int,
    *,
    group: int = 0,
    symmetric: bool = False,
    whole: bool = False,
    search: bool = True,
) -> QuantizedWeight:
    """The codes of a weight matrix.

    Each weight gets the nearest level, ties go to the even code. The arithmetic is in float32, and
    the same input on the same kind of device gives the same codes. Scales are kept within
    float16's finite positive numbers: larger weights saturate, much smaller ones become zero.

    Args:
        weight: `(rows, columns)`, in any floating dtype; all dimensions but the first of a
            convolution's weight count as columns. Not changed, and no gradient flows.
        bits: 2, 3, 4, 5, 6 or 8.
        group: Columns that share a scale; the last group may be short; 0 is the whole row.
        symmetric: Codes are signed numbers around zero, with no zero point.
        whole: Zero points are codes.
        search: Choose each scale (and zero point) by squared error; otherwise the levels
            reach from the smallest to the largest weight.

    Raises:
        InvalidModel: The weight has one dimension, is empty, or holds NaN or infinity.
        SpecError: `bits` or `group` is out of range.
    """
    if bits not in WEIGHT_BITS or bits == 16:
        raise SpecError(f"a weight's codes have 2, 3, 4, 5, 6 or 8 bits, got {bits}")
    if group < 0:
        raise SpecError(f"a weight group must not be negative, got {group}")
    matrix = _finite_matrix(weight)
    parts = [
        _quantize_groups(part, bits, symmetric=symmetric, whole=whole, search=search)
        for part in _groups(matrix, group)
    ]
    codes, scale, zero = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
    return QuantizedWeight(codes, scale, None if symmetric else zero, bits, group)


def quantize_floats(
    weight: Float[Tensor, "*shape"], form: WeightFormat, *, group: int = 0, search: bool = True
) -> QuantizedWeight:
    """The codes of a weight matrix in a number format of `bitfront.formats`.

    Each weight gets the nearest level, ties go to the even code, and what is beyond the levels
    saturates.

    Args:
        weight: As for `quantize_weight`.
        form: The format.
        group: Columns that share a scale; the last group may be short; 0 is the whole row.
        search: Choose each scale by squared error; otherwise as the format's standard does.

    Raises:
        InvalidModel: The weight has one dimension, is empty, or holds NaN or infinity.
        SpecError: `group` is not the size of the format's blocks, or negative.
    """
    if group < 0 or (form.block and group != form.block):
        raise SpecError(f"blocks of {form.name} have {form.block} columns, not {group}")
    matrix = _finite_matrix(weight)
    whole = tensor_scale(matrix, form)
    parts = [_quantize_levels(part, form, whole, search=search) for part in _groups(matrix, group)]
    codes, scales = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
    shared = whole if form.scales_tensor else None
    stored = stored_scale(scales, form, whole)
    return QuantizedWeight(codes, stored, None, form.bits, group, form, shared)


def dequantize_weight(quantized: QuantizedWeight) -> Float32[Tensor, "rows columns"]:
    """The weights that the codes stand for: `(rows, columns)`, float32, without rounding."""
    zero = quantized.zero_codes
    weight, scales = quantized.points, quantized.scales
    first = 0
    for part in _groups(weight, quantized.group):  # views of `weight`
        groups = slice(first, first + part.shape[1])
        part.sub_(zero[:, groups, None]).mul_(scales[:, groups, None])
        first = groups.stop
    return weight


def fake_quantize_weight(
    weight: Float[Tensor, "*shape"], precision: Precision, quantizer: QuantizerSpec
) -> Float[Tensor, "*shape"]:
    """The weight that a packed checkpoint gives back, in the shape and dtype of `weight`.

    At 16 bits it is what `round_weight` gives; below, it is quantized as `quantize_weight`
    does and read back. No gradient flows.

    Raises:
        InvalidModel: The weight has one dimension, is empty, or holds NaN or infinity.
    """
    if precision.quantizes_weight:
        return read_back(quantize_for(weight, precision, quantizer), weight)
    return saturated(round_weight(weight).float().reshape(weight.shape), weight.dtype)


def read_back(
    quantized: QuantizedWeight, weight: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The weights that the codes stand for, in the shape and dtype of the original `weight`."""
    return saturated(dequantize_weight(quantized).reshape(weight.shape), weight.dtype)


def quantize_for(
    weight: Float[Tensor, "*shape"], precision: Precision, quantizer: QuantizerSpec
) -> QuantizedWeight:
    """The codes of a weight as its layer's precision and the job's quantizer ask."""
    if precision.form is not None:
        return quantize_floats(
            weight, precision.form, group=precision.group, search=quantizer.scale_search
        )
    return quantize_weight(
        weight,
        precision.weight_bits,
        group=precision.group,
        symmetric=quantizer.scheme == "symmetric",
        whole=quantizer.has_whole_zeros,
        search=quantizer.scale_search,
    )


def round_weight(weight: Float[Tensor, "*shape"]) -> Float16[Tensor, "rows columns"]:
    """The weight in float16, nearest, saturating at float16's largest finite number.

    Raises:
        InvalidModel: The weight has one dimension, is empty, or holds NaN or infinity.
    """
    return saturated(_finite_matrix(weight), torch.float16)


def _finite_matrix(weight: Tensor) -> Float32[Tensor, "rows columns"]:
    if weight.ndim < 2 or weight.numel() == 0:
        raise InvalidModel(
            f"a weight needs two dimensions and an element, its shape is {tuple(weight.shape)}"
        )
    values = weight.detach().float().flatten(1)
    bad = int(values.numel() - values.isfinite().sum())
    if bad:
        raise InvalidModel(
            f"{bad} of {values.numel()} values of a weight are NaN or infinite: "
            "the checkpoint is damaged, or its training diverged"
        )
    return values


def _groups(matrix: Tensor, group: int) -> Iterator[Tensor]:
    """Views of the full groups, `(rows, groups, group)`, and the short last, `(rows, 1, rest)`."""
    rows, columns = matrix.shape
    width = min(group or columns, columns)
    full = columns // width
    yield matrix[:, : full * width].view(rows, full, width)
    if columns % width:
        yield matrix[:, full * width :].unsqueeze(1)


def _chunks(groups: Tensor) -> tuple[Tensor, ...]:
    """The runs of equally long groups, `(runs, width)`, a few at a time."""
    chunk = _CUDA_CHUNK if groups.is_cuda else _CHUNK
    return torch.split(groups.reshape(-1, groups.shape[-1]), max(1, chunk // groups.shape[-1]))


def _quantize_groups(
    groups: Tensor, bits: int, *, symmetric: bool, whole: bool, search: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes `(rows, columns)`, scales and zero bytes `(rows, groups)` of equally long groups."""
    rows, count, _ = groups.shape
    fit = searched_grid if search else covering_grid
    codes, grids = [], []
    for runs in _chunks(groups):
        grid = fit(runs, bits, symmetric=symmetric, whole=whole)
        codes.append(grid.encode(runs).to(torch.uint8))
        grids.append(grid)
    scale = torch.cat([grid.scale for grid in grids]).half()
    zero = (torch.cat([grid.zero for grid in grids]) * 2 ** (8 - bits)).to(torch.uint8)
    shape = (rows, count)
    return torch.cat(codes).reshape(rows, -1), scale.reshape(shape), zero.reshape(shape)


def _quantize_levels(
    groups: Tensor, form: WeightFormat, whole: Tensor, *, search: bool
) -> tuple[Tensor, Tensor]:
    """Codes `(rows, columns)` and scales `(rows, groups)` of equally long groups."""
    codes, scales = [], []
    for runs in _chunks(groups):
        scale = fitted_scale(runs, form, whole, search=search)
        codes.append(codes_of(nearest_levels(runs / scale, form), form))
        scales.append(scale)
    rows, count, _ = groups.shape
    return torch.cat(codes).reshape(rows, -1), torch.cat(scales).reshape(rows, count)

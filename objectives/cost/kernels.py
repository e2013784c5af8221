"""The real kernels of this torch: products that compute in the precision they are named for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional

from bitfront.precision import Precision
from bitfront.quant.inputs import InputRange, input_grid, token_scale
from bitfront.quant.weights import group_count, quantize_for
from bitfront.spec import QuantizerSpec

INT4_GROUPS = (32, 64, 128, 256)
"""Columns that share a scale in torch's int4 product."""

_INT4_ROWS = 16
_MIDDLE = 128

Product = Callable[[Float[Tensor, "n columns"]], Float[Tensor, "n rows"]]


@dataclass(frozen=True)
class Kernel:
    """One way to multiply float32 inputs with a stored weight.

    Attributes:
        name: What a latency is filed under.
        prepare: The product with a weight `(rows, columns)` of a static input range; None
            takes each input row's own. Packing the weight is not part of the product, rounding
            the inputs is.
    """

    name: str
    prepare: Callable[[Float[Tensor, "rows columns"], InputRange | None], Product]


def find_kernels(
    precision: Precision, columns: int, device: torch.device, quantizer: QuantizerSpec
) -> list[Kernel]:
    """The kernels that multiply in a precision on a kind of device; none is a valid answer.

    There are `w16a16` in float32 and, on CUDA, in float16; `w8a8` with one scale a row in
    int8; and, on the CPU, `w4a16` in groups of 32, 64, 128 or 256 columns with bfloat16
    inputs.
    """
    return list(_kernels(precision, columns, device, quantizer))


def _kernels(
    precision: Precision, columns: int, device: torch.device, quantizer: QuantizerSpec
) -> Iterator[Kernel]:
    if precision.format:
        return
    match precision.weight_bits, precision.activation_bits:
        case 16, 16:
            yield FLOAT32
            if device.type == "cuda":  # torch has no fast float16 product for a CPU
                yield Kernel("float16", lambda weight, _range: float_product(weight, torch.float16))
        case 8, 8 if (
            quantizer.activations != "grouped" and group_count(columns, precision.group) == 1
        ):
            yield Kernel(
                f"int8-{quantizer.activations}",
                lambda weight, range_: int8_product(weight, quantizer, range_),
            )
        case 4, 16 if device.type == "cpu" and (group := _int4_group(precision, columns)):
            yield Kernel(
                f"int4-g{group}",
                lambda weight, _range: int4_product(weight, precision, quantizer),
            )


def float_product(weight: Float[Tensor, "rows columns"], dtype: torch.dtype) -> Product:
    """The product in a floating dtype, with the weight rounded through float16."""
    stored = weight.half().to(dtype)
    return lambda inputs: functional.linear(inputs.to(dtype), stored).float()


FLOAT32 = Kernel("float32", lambda weight, _range: float_product(weight, torch.float32))
"""What a model runs with that is loaded as it is."""


def int8_product(
    weight: Float[Tensor, "rows columns"], quantizer: QuantizerSpec, range_: InputRange | None
) -> Product:
    """The product of 8-bit codes with 32-bit integer sums, rescaled to float32.

    Equal to the product of the fake-quantized input and weight up to float32 rounding.
    """
    stored = quantize_for(weight, Precision(8, 8), quantizer)
    codes = _signed(stored.codes)
    scale = stored.scale.float().T
    zero = torch.zeros_like(scale) if stored.zero is None else stored.zero.float().T - _MIDDLE
    # (x - zx)(w - zw) = xw - zx sum(w) - zw (sum(x) - columns zx): two rank-1 corrections.
    corrections = torch.cat([codes.sum(dim=1, dtype=torch.int32).float()[None], zero]) * scale
    columns = weight.shape[1]
    static = None if range_ is None else _static_grid(range_, weight.device)
    is_symmetric = quantizer.activations == "dynamic_symmetric"

    def product(inputs: Tensor) -> Tensor:
        step, middle = _own_grids(inputs, is_symmetric=is_symmetric) if static is None else static
        rounded = torch.div(inputs, step).add_(middle).round_().clamp_(0, 255)
        rounded = rounded.sub_(_MIDDLE).to(torch.int8)
        total = rounded.sum(dim=1, keepdim=True, dtype=torch.int32).float()
        shift = (middle - _MIDDLE).expand_as(total)
        factors = torch.cat([shift, total - columns * shift], dim=1)
        sums = torch._int_mm(rounded, codes.T).float()  # noqa: SLF001  # torch's only int8 product
        return sums.mul_(scale).addmm_(factors, corrections, alpha=-1).mul_(step)

    return product


def int4_product(
    weight: Float[Tensor, "rows columns"], precision: Precision, quantizer: QuantizerSpec
) -> Product:
    """The product of 4-bit weights with bfloat16 inputs, on the CPU.

    Scales and zero points are rounded to bfloat16 too, which is what the kernel takes.
    """
    group = _int4_group(precision, weight.shape[1])
    stored = quantize_for(weight, precision, quantizer)
    rows, columns = stored.codes.shape
    more_rows, more_columns = -rows % _INT4_ROWS, -columns % group
    codes = functional.pad(stored.codes.int(), (0, more_columns, 0, more_rows))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)  # noqa: SLF001
    scale = stored.scale.float()
    zero = torch.full_like(scale, 8) if stored.zero is None else stored.zero.float() / 16
    # The kernel reads scale * (code - 8) + offset.
    grid = torch.stack([scale, (8 - zero) * scale], dim=2)
    grid = grid.repeat_interleave(codes.shape[1] // group // scale.shape[1], dim=1)
    grid = functional.pad(grid, (0, 0, 0, 0, 0, more_rows))
    grid = grid.transpose(0, 1).contiguous().bfloat16()

    def product(inputs: Tensor) -> Tensor:
        given = functional.pad(inputs.bfloat16(), (0, more_columns))
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu  # noqa: SLF001
        output: Tensor = multiply(given, packed, group, grid)
        return output[:, :rows].float()

    return product


def _signed(codes: Tensor) -> Int8[Tensor, "rows columns"]:
    return (codes.int() - _MIDDLE).to(torch.int8)


def _own_grids(inputs: Tensor, *, is_symmetric: bool) -> tuple[Tensor, Tensor]:
    """The scale and the code of zero of each input row, `(n, 1)`."""
    if is_symmetric:
        step = token_scale(inputs, 8)
        return step, torch.full_like(step, _MIDDLE)
    return input_grid(*torch.aminmax(inputs, dim=1, keepdim=True), 8)


def _static_grid(range_: InputRange, device: torch.device) -> tuple[Tensor, Tensor]:
    """The scale and the code of zero of a range, `(1, 1)`."""
    low, high = torch.tensor([[range_.low]]), torch.tensor([[range_.high]])
    scale, zero = input_grid(low, high, 8)
    return scale.to(device), zero.to(device)


def _int4_group(precision: Precision, columns: int) -> int:
    """Columns that share a scale for the int4 kernel, or 0 where it has no such groups.

    One scale a row is repeated for the groups that need the least padding.
    """
    if group_count(columns, precision.group) > 1:
        return precision.group if precision.group in INT4_GROUPS else 0
    return min(INT4_GROUPS, key=lambda group: (-columns % group, -group))

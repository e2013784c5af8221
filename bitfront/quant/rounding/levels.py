"""Codes with their scales and zero points in float64, as the solvers change them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from bitfront.quant.weights import QuantizedWeight


@dataclass(slots=True, eq=False)
class Levels:
    """A quantized weight in float64: `scale * (codes - zero)`, column by column.

    Attributes:
        codes: `(rows, columns)`, whole numbers.
        scale: `(rows, groups)`, what float16 holds.
        zero: `(rows, groups)`, multiples of `2**(bits - 8)`.
        group_of: For each column, its group.
    """

    codes: Float64[Tensor, "rows columns"]
    scale: Float64[Tensor, "rows groups"]
    zero: Float64[Tensor, "rows groups"]
    group_of: list[int]
    bits: int

    def encode(self, column: int, values: Tensor) -> Tensor:
        """The codes of the levels nearest to `values`, `(rows,)`, in one column."""
        group = self.group_of[column]
        codes = values / self.scale[:, group] + self.zero[:, group]
        return codes.round_().clamp_(0, 2**self.bits - 1)

    def decode(self, column: int, codes: Tensor) -> Tensor:
        """The levels of codes, `(rows,)`, in one column."""
        group = self.group_of[column]
        return self.scale[:, group] * (codes - self.zero[:, group])

    def values(self) -> Float64[Tensor, "rows columns"]:
        """The weight."""
        return self.scale[:, self.group_of] * (self.codes - self.zero[:, self.group_of])


def levels_of(quantized: QuantizedWeight) -> Levels:
    """The levels of a stored weight; nothing is shared with it."""
    columns = quantized.codes.shape[1]
    scale, zero = quantized.scale.double(), quantized.zero_codes.double()
    group_of = [column // (quantized.group or columns) for column in range(columns)]
    return Levels(quantized.codes.double(), scale, zero, group_of, quantized.bits)


def stored(levels: Levels, like: QuantizedWeight) -> QuantizedWeight:
    """The levels in the format of `like`."""
    steps = 2 ** (8 - levels.bits)
    zero = None if like.zero is None else (levels.zero * steps).to(torch.uint8)
    codes = levels.codes.to(torch.uint8)
    return QuantizedWeight(codes, levels.scale.half(), zero, like.bits, like.group)

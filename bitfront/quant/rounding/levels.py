"""Codes with their scales and zero points in float64, as the solvers change them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from bitfront.formats import WeightFormat
from bitfront.quant.floats import codes_of, nearest_levels, storable, stored_scale
from bitfront.quant.grid import storable_scale
from bitfront.quant.weights import QuantizedWeight


@dataclass(slots=True, eq=False)
class Levels:
    """A quantized weight in float64: `scale * (points - zero)`, column by column.

    Attributes:
        points: `(rows, columns)`: an integer format's codes, another one's levels.
        scale: `(rows, groups)`, what the format stores.
        zero: `(rows, groups)`, multiples of `2**(bits - 8)`; 0 beside levels.
        group_of: For each column, its group.
        bits: Width of a code.
        form: The number format; None for integers.
        tensor_scale: The part of every scale that the whole tensor shares, a scalar.
    """

    points: Float64[Tensor, "rows columns"]
    scale: Float64[Tensor, "rows groups"]
    zero: Float64[Tensor, "rows groups"]
    group_of: list[int]
    bits: int
    form: WeightFormat | None
    tensor_scale: Tensor

    def nearest(self, column: int, values: Tensor) -> Tensor:
        """The points of the levels nearest to `values`, `(rows,)`, in one column."""
        group = self.group_of[column]
        return self.rounded(values / self.scale[:, group] + self.zero[:, group])

    def rounded(self, places: Tensor) -> Tensor:
        """The points nearest to where values lie among them; `places` may change."""
        if self.form is not None:
            return nearest_levels(places, self.form)
        return places.round_().clamp_(0, 2**self.bits - 1)

    def ordered(self) -> NDArray[np.float64]:
        """All points of the format in order; empty for integers, whose points are whole numbers."""
        return np.array([] if self.form is None else list(self.form.finite), np.float64)

    def decode(self, column: int, points: Tensor) -> Tensor:
        """The weights of points, `(rows,)`, in one column."""
        group = self.group_of[column]
        return self.scale[:, group] * (points - self.zero[:, group])

    def values(self) -> Float64[Tensor, "rows columns"]:
        """The weight."""
        return self.scale[:, self.group_of] * (self.points - self.zero[:, self.group_of])

    def storable(self, scale: Tensor) -> Tensor:
        """The nearest scales that the format stores."""
        if self.form is None:
            return storable_scale(scale).double()
        return storable(scale, self.form, self.tensor_scale).double()


def levels_of(quantized: QuantizedWeight) -> Levels:
    """The levels of a stored weight; nothing is shared with it."""
    columns = quantized.codes.shape[1]
    whole = quantized.tensor_scale
    return Levels(
        quantized.points.double(),
        quantized.scales.double(),
        quantized.zero_codes.double(),
        [column // (quantized.group or columns) for column in range(columns)],
        quantized.bits,
        quantized.form,
        quantized.scale.new_ones((), dtype=torch.float32) if whole is None else whole,
    )


def stored(levels: Levels, like: QuantizedWeight) -> QuantizedWeight:
    """The levels in the format of `like`."""
    if levels.form is not None:
        scale = stored_scale(levels.scale.float(), levels.form, levels.tensor_scale)
        return replace(like, codes=codes_of(levels.points, levels.form), scale=scale)
    steps = 2 ** (8 - levels.bits)
    zero = None if like.zero is None else (levels.zero * steps).to(torch.uint8)
    codes = levels.points.to(torch.uint8)
    return replace(like, codes=codes, scale=levels.scale.half(), zero=zero)

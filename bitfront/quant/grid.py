"""The levels that a run of weights is rounded to: one scale and one zero point for each run."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_SCALE = 2.0**-24  # the smallest float16 above zero
LARGEST_SCALE = 65504.0  # the largest finite float16

_SHRINKS = 8  # factors of the range that are tried, each with three zero points
_SYMMETRIC_SHRINKS = 20  # as above, where the zero point is fixed
_LOWEST_FACTORS = {2: 0.2, 3: 0.4}  # fewer levels leave more of the tails outside; else 0.5
_REFINEMENTS = 4  # least-squares fits of the grid to its own codes


def storable_scale(scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The nearest scale that float16 holds, in float32.

    Never zero and never infinite: what float16 cannot hold becomes the smallest or largest
    scale. NaN stays NaN.
    """
    return scale.clamp(SMALLEST_SCALE, LARGEST_SCALE).half().float()


def covering_scale(scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The smallest scale that float16 holds and that is not below `scale`, in float32.

    Rounding up keeps the ends of a range within half a step. Limits and NaN as in
    `storable_scale`.
    """
    wanted = scale.clamp(SMALLEST_SCALE, LARGEST_SCALE)
    half = wanted.half()
    following = (half.view(torch.int16) + 1).view(torch.float16)  # positive: bits are in order
    return torch.where(half.float() < wanted, following, half).float()


def saturated(values: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """The values in another floating dtype, at most its largest finite number. NaN stays."""
    limits = torch.finfo(dtype)
    if limits.max < torch.finfo(values.dtype).max:
        values = values.clamp(limits.min, limits.max)
    return values.to(dtype)


def covering_range(
    low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], bits: int
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The covering scale for `2**bits` levels from `low` to `high`, and zero's place in it.

    The range is widened to hold zero. Zero's place is in `[0, 2**bits - 1]`, and not rounded.
    What no float16 scale reaches is cut off at both ends alike.
    """
    top = 2**bits - 1
    limit = LARGEST_SCALE * top
    reach_down, reach_up = -low.clamp(-limit, 0), high.clamp(0, limit)
    span = (reach_down + reach_up) / top
    scale = covering_scale(span)
    return scale, reach_down / torch.maximum(scale, span)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The levels `scale * (code - zero)` of each run, for codes from 0 to `2**bits - 1`.

    Attributes:
        scale: `(runs, 1)`, float32 that float16 holds; positive.
        zero: `(runs, 1)`, float32; a multiple of `2**(bits - 8)` in `[0, 2**bits - 1]`, so
            that one byte holds it.
        bits: Width of a code.
    """

    scale: Float[Tensor, "runs 1"]
    zero: Float[Tensor, "runs 1"]
    bits: int

    def encode(self, runs: Float[Tensor, "runs size"]) -> Float[Tensor, "runs size"]:
        """The codes of the nearest levels, ties to the even code, as float32."""
        return (runs / self.scale).add_(self.zero).round_().clamp_(0, 2**self.bits - 1)

    def error(self, runs: Float[Tensor, "runs size"]) -> Float[Tensor, "runs 1"]:
        """The norm of the rounding error of each run."""
        exact = (runs / self.scale).add_(self.zero)
        error = exact.round().clamp_(0, 2**self.bits - 1).sub_(exact)
        norm: Tensor = torch.linalg.vector_norm(error, dim=-1, keepdim=True)
        return norm * self.scale

    def where(self, chosen: Tensor, other: "Grid") -> "Grid":
        """This grid for the runs that are `chosen`, and `other` for the rest."""
        scale = torch.where(chosen, self.scale, other.scale)
        return Grid(scale, torch.where(chosen, self.zero, other.zero), self.bits)


def covering_grid(
    runs: Float[Tensor, "runs size"], bits: int, *, symmetric: bool, whole: bool = False
) -> Grid:
    """The finest grid that reaches from the smallest weight of each run to the largest.

    A grid always reaches zero too. Where all weights of a run are the same, that value,
    rounded to float16, is itself a level.

    Args:
        runs: `(runs, size)`, float32, finite.
        bits: Width of a code.
        symmetric: The zero point is the middle code, `2**(bits - 1)`, so that codes are
            signed numbers; there is one more level below zero than above.
        whole: An asymmetric zero point is a code.
    """
    low, high = torch.aminmax(runs, dim=-1, keepdim=True)
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = covering_scale(torch.maximum(-low / middle, high / (middle - 1)))
        zero = constant_zero = torch.full_like(scale, middle)
    else:
        scale, place = covering_range(low, high, bits)
        zero, constant_zero = storable_zero(place, bits, whole=whole), (low < 0).float()
    size = low.abs()
    constant = Grid(storable_scale(size), constant_zero, bits)
    return constant.where((low == high) & (size <= LARGEST_SCALE), Grid(scale, zero, bits))


def searched_grid(
    runs: Float[Tensor, "runs size"], bits: int, *, symmetric: bool, whole: bool = False
) -> Grid:
    """A grid with a small squared error for each run, never worse than `covering_grid`.

    The range is shrunk step by step, with several zero points each time, or with the best of all
    codes where it is to be whole; the best grid is then fitted by least squares to the codes it
    gives, several times. Every candidate is judged with the scale and zero point as they are
    stored. Arguments as in `covering_grid`.
    """
    best = covering_grid(runs, bits, symmetric=symmetric, whole=whole)
    error = best.error(runs)
    if symmetric:
        shrunk = _shrunk_symmetric(best)
    else:
        shrunk = _shrunk_whole(runs, best) if whole else _shrunk_asymmetric(runs, best)
    fitted = _fitted_scale if symmetric else _fitted_whole if whole else _fitted
    for candidate in shrunk:
        best, error = _better(runs, candidate, best, error)
    for _ in range(_REFINEMENTS):
        best, error = _better(runs, fitted(runs, best), best, error)
    return best


def _better(runs: Tensor, candidate: Grid, best: Grid, error: Tensor) -> tuple[Grid, Tensor]:
    candidate_error = candidate.error(runs)
    chosen = candidate_error < error  # false for NaN: a fit to a single code divides by zero
    return candidate.where(chosen, best), torch.where(chosen, candidate_error, error)


def _shrunk_symmetric(grid: Grid) -> Iterator[Grid]:
    for factor in _factors(grid.bits, _SYMMETRIC_SHRINKS):
        yield Grid(storable_scale(grid.scale * factor), grid.zero, grid.bits)


def _shrunk_asymmetric(runs: Tensor, grid: Grid) -> Iterator[Grid]:
    """Shrunk ranges with the same zero point, with a level at zero, and around the mean.

    A level at zero suits weights that crowd there; levels around the mean suit the others.
    """
    mean = runs.mean(dim=-1, keepdim=True)
    for factor in _factors(grid.bits, _SHRINKS):
        scale = storable_scale(grid.scale * factor)
        around_mean = storable_zero((2**grid.bits - 1) / 2 - mean / scale, grid.bits)
        for zero in (grid.zero, grid.zero.round(), around_mean):
            yield Grid(scale, zero, grid.bits)


def _shrunk_whole(runs: Tensor, grid: Grid) -> Iterator[Grid]:
    """Shrunk ranges, each with the code at zero that has the least error."""
    for factor in _factors(grid.bits, _SHRINKS):
        scale = storable_scale(grid.scale * factor)
        yield Grid(scale, best_whole_zero(runs, scale, grid.bits), grid.bits)


def best_whole_zero(
    runs: Float[Tensor, "runs size"], scale: Float[Tensor, "runs 1"], bits: int
) -> Float[Tensor, "runs 1"]:
    """The code at zero with the least squared error of each run, for a scale; the lowest of equals.

    A whole zero point moves the window of levels along the multiples of the scale. What a weight
    loses beyond the window's ends is convex in its place, and what it loses within is the same for
    all, so the place where the error stops falling is found by halving.
    """
    multiples = runs / scale
    nearest = multiples.round()
    top = 2**bits - 1
    low, high = torch.zeros_like(scale), torch.full_like(scale, top)
    for _ in range(bits):
        middle = ((low + high) / 2).floor()
        # One code up: the level -middle - 1 comes, and the level top - middle goes.
        gained = torch.where(nearest < -middle, -2 * (multiples + middle) - 1, 0)
        lost = torch.where(nearest >= top - middle, 2 * (multiples - top + middle) + 1, 0)
        falls = gained.sum(-1, keepdim=True) > lost.sum(-1, keepdim=True)
        low = torch.where(falls & (middle < high), middle + 1, low)
        high = torch.where(falls, high, middle)
    return low


def _factors(bits: int, count: int) -> Iterator[float]:
    """Factors from 1 down, evenly spaced in their logarithm."""
    lowest = _LOWEST_FACTORS.get(bits, 0.5)
    return (lowest ** (step / (count - 1)) for step in range(count))


def _fitted(runs: Tensor, grid: Grid) -> Grid:
    """The grid nearest to the weights if each keeps its code; NaN where all share one code."""
    codes = grid.encode(runs)
    center = codes.mean(dim=-1, keepdim=True)
    scale = _slope(runs, codes.sub_(center))
    zero = storable_zero(center - runs.mean(dim=-1, keepdim=True) / scale, grid.bits)
    return Grid(scale, zero, grid.bits)


def _fitted_scale(runs: Tensor, grid: Grid) -> Grid:
    """As `_fitted`, with the zero point that there is."""
    return Grid(_slope(runs, grid.encode(runs).sub_(grid.zero)), grid.zero, grid.bits)


def _fitted_whole(runs: Tensor, grid: Grid) -> Grid:
    """As `_fitted`, with the nearest whole zero point, and the scale that is best beside it."""
    zero = storable_zero(_fitted(runs, grid).zero, grid.bits, whole=True)
    return Grid(_slope(runs, grid.encode(runs).sub_(zero)), zero, grid.bits)


def _slope(runs: Tensor, codes: Tensor) -> Tensor:
    """The storable scale that brings centred codes nearest to the weights."""
    slope = (codes * runs).sum(-1, keepdim=True) / codes.square().sum(-1, keepdim=True)
    return storable_scale(slope)


def storable_zero(zero: Tensor, bits: int, *, whole: bool = False) -> Tensor:
    """The nearest zero point that one byte holds: a multiple of `2**(bits - 8)`. NaN stays.

    A whole one is a code.
    """
    steps: int = 1 if whole else 2 ** (8 - bits)  # an integer power is Any to the type checker
    return (zero * steps).round().clamp(0, (2**bits - 1) * steps).div(steps)

"""Weights in the number formats of `bitfront.formats`: the nearest codes, with searched scales."""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from bitfront.formats import FORMATS, ScaleType, WeightFormat
from bitfront.quant.grid import LARGEST_SCALE, SMALLEST_SCALE, covering_scale, storable_scale

_E4M3_LARGEST = FORMATS["fp8_e4m3"].largest
_E4M3_SMALLEST = 2.0**-9
_E8M0_EXPONENTS = (-127, 127)

_SHRINKS = tuple(0.97**step for step in range(1, 20))  # of a float16 scale
_EXPONENTS = (-1, 1)  # beside the exponent that the standard asks for
_NEIGHBOURS = tuple(place for place in range(-8, 7) if place)  # E4M3 codes, eight an octave


def nearest_levels(values: Float[Tensor, "*shape"], form: WeightFormat) -> Float[Tensor, "*shape"]:
    """The nearest levels of a format, ties to the even code, saturating; in the dtype given."""
    levels, middles, ties_up = _tables(form, values.dtype, values.device)
    below = torch.bucketize(values, middles)
    is_tie = middles[below.clamp(max=len(middles) - 1)] == values
    return levels[below + (is_tie & ties_up[below])]


def codes_of(levels: Float[Tensor, "*shape"], form: WeightFormat) -> UInt8[Tensor, "*shape"]:
    """The codes of values that are levels of a format."""
    known = torch.tensor(list(form.finite), dtype=levels.dtype, device=levels.device)
    codes = torch.tensor(list(form.finite.values()), dtype=torch.uint8, device=levels.device)
    return codes[torch.searchsorted(known, levels.contiguous())]


def levels_of_codes(
    codes: UInt8[Tensor, "*shape"], form: WeightFormat
) -> Float32[Tensor, "*shape"]:
    """What codes stand for, exactly."""
    levels = torch.tensor(form.levels, dtype=torch.float32, device=codes.device)
    return levels[codes.int()]


def tensor_scale(matrix: Float[Tensor, "rows columns"], form: WeightFormat) -> Float32[Tensor, ""]:
    """The float32 scale of a whole tensor: the power of two that keeps every scale within E4M3.

    With a power of two each weight is exact in bfloat16 too, in which some runtimes unpack. 1 where
    the format has none, or every weight is zero.
    """
    largest = matrix.abs().amax().float()
    one = torch.ones_like(largest)
    if not form.scales_tensor:
        return one
    # A scale of float16's size keeps what is stored, and its product, normal float32 numbers.
    wanted = (largest / (form.largest * _E4M3_LARGEST)).clamp(SMALLEST_SCALE, LARGEST_SCALE)
    return torch.where(largest > 0, wanted.log2().ceil().exp2(), one)


def storable(
    scale: Float[Tensor, "*shape"], form: WeightFormat, whole: Float32[Tensor, ""]
) -> Float[Tensor, "*shape"]:
    """The nearest scale that the format stores, positive and finite, in float32. NaN stays.

    Args:
        scale: Of a run, the tensor's in it.
        form: The format.
        whole: The tensor's.
    """
    if form.scale is ScaleType.FLOAT16:
        return storable_scale(scale.float())
    if form.scale is ScaleType.E8M0:
        exponent = scale.float().log2().round().clamp(*_E8M0_EXPONENTS)
        return torch.exp2(exponent)
    within = (scale.float() / whole).clamp(_E4M3_SMALLEST, _E4M3_LARGEST)
    return within.to(torch.float8_e4m3fn).float() * whole


def stored_scale(
    scale: Float32[Tensor, "*shape"], form: WeightFormat, whole: Float32[Tensor, ""]
) -> Tensor:
    """A scale that `storable` gave, in the type that is stored."""
    within = scale.float() / whole if form.scales_tensor else scale.float()
    return within.to(getattr(torch, form.scale.value))


def fitted_scale(
    runs: Float[Tensor, "runs size"],
    form: WeightFormat,
    whole: Float32[Tensor, ""],
    *,
    search: bool,
) -> Float32[Tensor, "runs 1"]:
    """A scale for each run.

    Args:
        runs: Weights that share a scale, float32, finite.
        form: The format.
        whole: The tensor's scale.
        search: Take the one of the least squared error among neighbours; otherwise the standard's:
            for E8M0 the power of two below the largest weight over the power of two below the
            largest level (OCP MX 1.0, section 6.3), else the one that reaches the largest weight.
    """
    reach = runs.abs().amax(dim=-1, keepdim=True)
    best = _standard_scale(reach, form, whole)
    if not search:
        return best
    error = _error(runs, best, form)
    for candidate in _candidates(best, form, whole):
        own = _error(runs, candidate, form)
        best, error = torch.where(own < error, candidate, best), torch.minimum(own, error)
    return best


def _standard_scale(reach: Tensor, form: WeightFormat, whole: Tensor) -> Tensor:
    if form.scale is ScaleType.FLOAT16:
        return covering_scale(reach / form.largest)
    if form.scale is ScaleType.E8M0:
        exponent = torch.frexp(reach).exponent - 1 - math.floor(math.log2(form.largest))
        held = exponent.float().clamp(*_E8M0_EXPONENTS)
        return torch.where(reach > 0, torch.exp2(held), 1.0)
    return storable(reach / form.largest, form, whole)


def _candidates(scale: Tensor, form: WeightFormat, whole: Tensor) -> Iterator[Tensor]:
    if form.scale is ScaleType.FLOAT16:
        yield from (storable_scale(scale * shrink) for shrink in _SHRINKS)
    elif form.scale is ScaleType.E8M0:
        exponent = scale.log2()
        for change in _EXPONENTS:
            yield torch.exp2((exponent + change).clamp(*_E8M0_EXPONENTS))
    else:
        code = stored_scale(scale, form, whole).view(torch.uint8).int()
        for change in _NEIGHBOURS:  # positive: codes are in order
            other = (code + change).clamp(1, 126).to(torch.uint8)
            yield other.view(torch.float8_e4m3fn).float() * whole


def _error(runs: Tensor, scale: Tensor, form: WeightFormat) -> Tensor:
    exact = runs / scale
    norm: Tensor = torch.linalg.vector_norm(nearest_levels(exact, form) - exact, dim=-1)
    return norm.unsqueeze(-1) * scale


@lru_cache(maxsize=64)
def _tables(
    form: WeightFormat, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The levels in order, what lies midway between neighbours, and which of these rounds up."""
    found = form.finite
    levels = torch.tensor(list(found), dtype=torch.float64)
    middles = (levels[1:] + levels[:-1]) / 2
    is_odd = torch.tensor([code % 2 == 1 for code in found.values()])
    # Beyond the last middle no tie is possible: the place is there for the index alone.
    return levels.to(device, dtype), middles.to(device, dtype), is_odd.to(device)

"""Coordinate descent over codes, as QuantEase (https://arxiv.org/abs/2309.01885), with a refit."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bitfront.quant.grid import storable_zero
from bitfront.quant.rounding.gptq import gptq_on
from bitfront.quant.rounding.levels import Levels, levels_of, stored
from bitfront.quant.rounding.nearest import nearest
from bitfront.quant.rounding.problem import RoundingProblem, column_groups, rounding_error
from bitfront.quant.weights import QuantizedWeight


def descent(problem: RoundingProblem, rounds: int = 6) -> QuantizedWeight:
    """For each row the better end of a descent from `gptq` and from `nearest`.

    A round fits scales and zero points to the codes by least squares under `H`, group by
    group, keeping a fit only where the stored scale and zero point lower the row's objective;
    then it gives each code, in order of falling `diag(H)`, its best value with the others
    fixed. No row's objective is above that of either start. Both descents run as one, as twice
    as many rows.
    """
    near = nearest(problem)
    starts = (near, gptq_on(problem, near))
    levels = _stacked([levels_of(start) for start in starts])
    targets = problem.target.double().repeat(2, 1)
    gradient = (targets - levels.values()) @ problem.hessian  # minus half of it
    sweep = _sweep_compiled if gradient.device.type == "cpu" else _sweep
    for _ in range(rounds):
        _refit(problem, gradient, levels)
        if not sweep(problem, gradient, levels):
            break
    best = starts[0]
    for candidate in (starts[1], *(stored(part, near) for part in _halves(levels))):
        best = _better(problem, candidate, best)
    return best


def _stacked(parts: list[Levels]) -> Levels:
    points, scale, zero = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("points", "scale", "zero")
    )
    return replace(parts[0], points=points, scale=scale, zero=zero)


def _halves(levels: Levels) -> list[Levels]:
    parts = zip(levels.points.chunk(2), levels.scale.chunk(2), levels.zero.chunk(2), strict=True)
    return [replace(levels, points=own, scale=scale, zero=zero) for own, scale, zero in parts]


def _better(
    problem: RoundingProblem, candidate: QuantizedWeight, best: QuantizedWeight
) -> QuantizedWeight:
    """Row by row what has the lower objective; `best` where they are equal."""
    lower = rounding_error(problem, candidate) < rounding_error(problem, best)
    chosen = lower[:, None]
    codes = torch.where(chosen, candidate.codes, best.codes)
    scale = torch.where(chosen, candidate.scale, best.scale)
    zero = best.zero
    if candidate.zero is not None and best.zero is not None:
        zero = torch.where(chosen, candidate.zero, best.zero)
    return replace(best, codes=codes, scale=scale, zero=zero)


def _refit(problem: RoundingProblem, gradient: Tensor, levels: Levels) -> None:
    """Fits each group's scale and zero point to its codes; gradient and levels change in place."""
    for group, columns in enumerate(column_groups(gradient.shape[1], problem.group)):
        hessian, slope = problem.hessian[columns, columns], gradient[:, columns]
        scale, zero = levels.scale[:, group], levels.zero[:, group]
        points = levels.points[:, columns]
        fitted, fitted_zero = _fit(levels, group, columns, hessian, slope, problem)
        old = scale[:, None] * (points - zero[:, None])
        change = fitted[:, None] * (points - fitted_zero[:, None]) - old
        pull = change @ problem.hessian[columns]
        gain = 2 * (change * slope).sum(1) - (pull[:, columns] * change).sum(1)
        chosen = gain > 0  # false for NaN: where all codes are the same there is no fit
        levels.scale[:, group] = torch.where(chosen, fitted, scale)
        levels.zero[:, group] = torch.where(chosen, fitted_zero, zero)
        gradient -= torch.where(chosen[:, None], pull, 0)


def _fit(
    levels: Levels,
    group: int,
    columns: slice,
    hessian: Tensor,
    slope: Tensor,
    problem: RoundingProblem,
) -> tuple[Tensor, Tensor]:
    """The storable scale and zero point of least squares, `(rows,)` each; NaN without a fit.

    The zero point is the best one for the scale as it is stored; a whole one is the nearest to it,
    with the scale that is best beside it.
    """
    codes, scale, zero = levels.points[:, columns], levels.scale[:, group], levels.zero[:, group]
    if problem.symmetric or problem.form is not None:
        fitted = _fitted_scale(codes, scale, zero, zero, hessian, slope)
        return levels.storable(fitted), zero
    weighted = codes @ hessian
    squares, mixed, ones = (weighted * codes).sum(1), weighted.sum(1), hessian.sum()
    along, total = (codes * slope).sum(1), slope.sum(1)
    # The weight is scale * codes - offset: solve for the changes of scale and offset.
    step = (along * ones - total * mixed) / (squares * ones - mixed.square())
    fitted = levels.storable(scale + step)
    offset = scale * zero + ((fitted - scale) * mixed - total) / ones
    fitted_zero = storable_zero(offset / fitted, problem.bits, whole=problem.whole)
    if problem.whole:
        fitted = _fitted_scale(codes, scale, zero, fitted_zero, hessian, slope)
        return levels.storable(fitted), fitted_zero
    return fitted, fitted_zero


def _fitted_scale(
    codes: Tensor, scale: Tensor, zero: Tensor, fitted_zero: Tensor, hessian: Tensor, slope: Tensor
) -> Tensor:
    """The scale of least squares `(rows,)` beside a zero point that is chosen."""
    shape = codes - fitted_zero[:, None]
    moved = scale[:, None] * (zero - fitted_zero)[:, None]  # what the weight changes by without it
    bent = shape @ hessian
    left = (shape * slope).sum(1) - (bent * moved).sum(1)
    return scale + left / (bent * shape).sum(1)


def _sweep_compiled(problem: RoundingProblem, gradient: Tensor, levels: Levels) -> bool:
    """What `_sweep` does, row by row; on the CPU."""
    from bitfront.quant.rounding import compiled  # numba takes a while to import

    order = problem.hessian.diagonal().argsort(descending=True, stable=True)
    return compiled.sweep(
        gradient.numpy(),
        levels.points.numpy(),
        levels.scale.contiguous().numpy(),
        np.array(levels.group_of),
        problem.hessian.contiguous().numpy(),
        order.numpy(),
        float(2**problem.bits - 1),
        levels.ordered(),
    )


def _sweep(problem: RoundingProblem, gradient: Tensor, levels: Levels) -> bool:
    """Gives each code its best value with the others fixed; whether one changed.

    Gradient and levels change in place.

    The gradient says how far the best value of a point is from where it is, in points. So a
    column of integers takes seven operations on its rows, and few of them allocate.
    """
    hessian = problem.hessian
    # Transposed: a column of the weight is then contiguous.
    slope_of = gradient.T.contiguous()
    points = levels.points.T.contiguous()
    scale = levels.scale.T.contiguous()
    steps = scale.reciprocal()
    diagonal = hessian.diagonal()
    order = diagonal.argsort(descending=True, stable=True).tolist()
    inverse = diagonal.reciprocal().tolist()
    slopes, own, lines = slope_of.unbind(), points.unbind(), hessian.unbind()
    scales, reciprocals = scale.unbind(), steps.unbind()
    for column in order:
        group, point = levels.group_of[column], own[column]
        best = torch.addcmul(point, slopes[column], reciprocals[group], value=inverse[column])
        change = levels.rounded(best).sub_(point)
        point.add_(change)
        slope_of.addr_(lines[column], change.mul_(scales[group]), alpha=-1)
    has_changed = not torch.equal(points.T, levels.points)
    levels.points = points.T.contiguous()
    gradient.copy_(slope_of.T)
    return has_changed

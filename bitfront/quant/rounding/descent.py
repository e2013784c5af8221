"""Coordinate descent over codes, as QuantEase (https://arxiv.org/abs/2309.01885), with a refit."""

import torch
from torch import Tensor

from bitfront.quant.grid import storable_scale, storable_zero
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
    fixed. No row's objective is above that of either start.
    """
    best = nearest(problem)
    for start in (best, gptq_on(problem, best)):
        levels = levels_of(start)
        best = _better(problem, start, best)
        for _ in range(rounds):
            _refit(problem, levels)
            _sweep(problem, levels)
        best = _better(problem, stored(levels, start), best)
    return best


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
    return QuantizedWeight(codes, scale, zero, best.bits, best.group)


def _refit(problem: RoundingProblem, levels: Levels) -> None:
    """Fits each group's scale and zero point to its codes, in place."""
    error = problem.target.double() - levels.values()
    gradient = error @ problem.hessian  # minus half of it
    for group, columns in enumerate(column_groups(error.shape[1], problem.group)):
        hessian, slope = problem.hessian[columns, columns], gradient[:, columns]
        codes, scale, zero = levels.codes[:, columns], levels.scale[:, group], levels.zero[:, group]
        fitted, fitted_zero = _fit(codes, scale, zero, hessian, slope, problem)
        old = scale[:, None] * (codes - zero[:, None])
        change = fitted[:, None] * (codes - fitted_zero[:, None]) - old
        gain = 2 * (change * slope).sum(1) - ((change @ hessian) * change).sum(1)
        chosen = gain > 0  # false for NaN: where all codes are the same there is no fit
        levels.scale[:, group] = torch.where(chosen, fitted, scale)
        levels.zero[:, group] = torch.where(chosen, fitted_zero, zero)
        gradient -= torch.where(chosen[:, None], change, 0) @ problem.hessian[columns]


def _fit(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    hessian: Tensor,
    slope: Tensor,
    problem: RoundingProblem,
) -> tuple[Tensor, Tensor]:
    """The storable scale and zero point of least squares, `(rows,)` each; NaN without a fit.

    The zero point is the best one for the scale as it is stored.
    """
    if problem.symmetric:
        shape = codes - zero[:, None]
        step = (shape * slope).sum(1) / ((shape @ hessian) * shape).sum(1)
        return storable_scale(scale + step).double(), zero
    weighted = codes @ hessian
    squares, mixed, ones = (weighted * codes).sum(1), weighted.sum(1), hessian.sum()
    along, total = (codes * slope).sum(1), slope.sum(1)
    # The weight is scale * codes - offset: solve for the changes of scale and offset.
    step = (along * ones - total * mixed) / (squares * ones - mixed.square())
    fitted = storable_scale(scale + step).double()
    offset = scale * zero + ((fitted - scale) * mixed - total) / ones
    return fitted, storable_zero(offset / fitted, problem.bits)


def _sweep(problem: RoundingProblem, levels: Levels) -> None:
    """Gives each code its best value with the others fixed, in place."""
    hessian = problem.hessian
    error = problem.target.double() - levels.values()
    # Transposed: a column of the weight is then contiguous.
    gradient = (error @ hessian).T.contiguous()
    order = hessian.diagonal().argsort(descending=True, stable=True)
    for column in order.tolist():
        old = levels.decode(column, levels.codes[:, column])
        best = old + gradient[column] / hessian[column, column]
        codes = levels.encode(column, best)
        levels.codes[:, column] = codes
        change = levels.decode(column, codes) - old
        gradient.addr_(hessian[column], change, alpha=-1)

"""GPTQ (https://arxiv.org/abs/2210.17323): each column's error is made good by the next ones."""

import numpy as np
import torch
from torch import Tensor

from bitfront.quant.rounding.levels import Levels, levels_of, stored
from bitfront.quant.rounding.nearest import nearest
from bitfront.quant.rounding.problem import RoundingProblem
from bitfront.quant.weights import QuantizedWeight


def gptq(problem: RoundingProblem) -> QuantizedWeight:
    """The codes of GPTQ, on the grid of `nearest`, in order of falling `diag(H)`."""
    return gptq_on(problem, nearest(problem))


def gptq_on(problem: RoundingProblem, start: QuantizedWeight) -> QuantizedWeight:
    """The codes of GPTQ on the scales and zero points of `start`."""
    levels = levels_of(start)
    order = problem.hessian.diagonal().argsort(descending=True, stable=True)
    hessian = problem.hessian[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    rest = problem.target.double()[:, order]
    if rest.device.type == "cpu":
        _spread_compiled(rest, levels, order, factor)
    else:
        _spread(rest, levels, order, factor)
    return stored(levels, start)


def _spread_compiled(rest: Tensor, levels: Levels, order: Tensor, factor: Tensor) -> None:
    from bitfront.quant.rounding import compiled  # numba takes a while to import

    compiled.spread(
        rest.contiguous().numpy(),
        levels.points.numpy(),
        levels.scale.contiguous().numpy(),
        levels.zero.contiguous().numpy(),
        np.array(levels.group_of),
        order.numpy(),
        factor.contiguous().numpy(),
        float(2**levels.bits - 1),
        levels.ordered(),
    )


def _spread(rest: Tensor, levels: Levels, order: Tensor, factor: Tensor) -> None:
    """Chooses the codes column by column, in place, all rows at once."""
    rest = rest.T.contiguous()  # a column is then contiguous
    for place, column in enumerate(order.tolist()):
        points = levels.nearest(column, rest[place])
        levels.points[:, column] = points
        error = (rest[place] - levels.decode(column, points)).div_(factor[place, place])
        rest[place + 1 :].addr_(factor[place, place + 1 :], error, alpha=-1)

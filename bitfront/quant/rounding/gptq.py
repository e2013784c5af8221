"""GPTQ (https://arxiv.org/abs/2210.17323): each column's error is made good by the next ones."""

import torch

from bitfront.quant.rounding.levels import levels_of, stored
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
    rest = problem.target.double()[:, order].T.contiguous()  # a column is then contiguous
    for place, column in enumerate(order.tolist()):
        codes = levels.encode(column, rest[place])
        levels.codes[:, column] = codes
        error = (rest[place] - levels.decode(column, codes)).div_(factor[place, place])
        rest[place + 1 :].addr_(factor[place, place + 1 :], error, alpha=-1)
    return stored(levels, start)

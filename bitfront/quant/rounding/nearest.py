"""Rounding to the nearest level of a grid, whatever the inputs are."""

from bitfront.quant.rounding.problem import RoundingProblem
from bitfront.quant.weights import QuantizedWeight, quantize_weight


def nearest(problem: RoundingProblem) -> QuantizedWeight:
    """The codes that `quantize_weight` gives; the Hessian is not looked at."""
    return quantize_weight(
        problem.target,
        problem.bits,
        group=problem.group,
        symmetric=problem.symmetric,
        search=problem.scale_search,
    )

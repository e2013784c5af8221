"""Rounding to the nearest level of a grid, whatever the inputs are."""

from bitfront.quant.rounding.problem import RoundingProblem
from bitfront.quant.weights import QuantizedWeight, quantize_floats, quantize_weight


def nearest(problem: RoundingProblem) -> QuantizedWeight:
    """The codes that `quantize_weight` or `quantize_floats` gives, whatever the Hessian is."""
    if problem.form is not None:
        return quantize_floats(
            problem.target, problem.form, group=problem.group, search=problem.scale_search
        )
    return quantize_weight(
        problem.target,
        problem.bits,
        group=problem.group,
        symmetric=problem.symmetric,
        whole=problem.whole,
        search=problem.scale_search,
    )

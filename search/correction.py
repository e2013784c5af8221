"""Cells corrected by whole plans: what blocks do beside one another is learned from the trials.

A cell is a block's error in an otherwise full-precision model. In a plan, blocks work beside other
quantized ones: some errors cancel, some add up to more than their sum. With `c_b(o)` the cell of
option `o` of block `b`, the divergence of plan `i` is modelled as

    D_i = s sum_b c_b(o_ib) (1 + u_b + v_b,o) + e_i,
    u ~ N(0, a²), v ~ N(0, d²), e_i ~ N(0, (r D_i)²)

where `s` is the median of `D_i` over the sum of its cells. That is Bayesian linear regression
(Bishop, Pattern Recognition and Machine Learning, 3.3); `a`, `d` and `r` are those of the largest
marginal likelihood (3.5) on a grid that holds zero, so that plans which add up correct nothing.
The posterior mean of `s c_b(o) (1 + u_b + v_b,o)` is a cell again: the program stays separable, and
its optimum exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from bitfront.plan import Option
from search.correlation import rank_correlation
from search.knapsack_items import Floats

Place = tuple[str, Option]
"""A block's name and an option of it."""

LEAST_PLANS: Final = 8
"""Fewer plans say nothing of more unknowns than there are plans."""
MOST_PLANS: Final = 200
"""The last so many plans are taken: the time grows with the cube of their number."""

_SPREADS: Final = (0.0, 0.05, 0.2, 0.5, 1.0)
_REMAINDERS: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
_LEAST_SHARE: Final = 0.01  # of a cell: what lowers an error below nothing is noise


@dataclass(frozen=True, slots=True)
class Correction:
    """What plans say of cells.

    Attributes:
        errors: The corrected error of every cell, in units of the plans' divergence.
        measured: The divergence of each plan that was taken.
        predicted: The same by all other plans (leave-one-out), for judging the correction.
        summed: The same by the cells alone.
    """

    errors: Mapping[Place, float]
    measured: Floats
    predicted: Floats
    summed: Floats

    @property
    def correlations(self) -> tuple[float, float]:
        """Spearman's rank correlation with what was measured: of the cells, and corrected."""
        measured = self.measured.tolist()
        before, after = (
            rank_correlation(own.tolist(), measured) or 0.0 for own in (self.summed, self.predicted)
        )
        return before, after

    @property
    def is_better(self) -> bool:
        """Whether it ranks plans that it did not see better than their cells alone do.

        The optimum under corrected cells is where their errors are most flattered, so that a
        correction which ranks no better makes worse plans.
        """
        before, after = self.correlations
        return after > before


def correct(
    cells: Mapping[Place, float], plans: Sequence[Sequence[Place]], divergences: Sequence[float]
) -> Correction | None:
    """Corrects cells by measured plans.

    Args:
        cells: The error of every option of every block, not negative.
        plans: For each plan its option of every block.
        divergences: The measured divergence of each plan, in nats.

    Returns:
        None where fewer than `LEAST_PLANS` plans have both cells and a divergence above zero.
    """
    pairs = [
        (plan, divergence)
        for plan, divergence in zip(plans, divergences, strict=True)
        if divergence > 0 and sum(cells[place] for place in plan) > 0
    ][-MOST_PLANS:]
    if len(pairs) < LEAST_PLANS:
        return None
    own = _by_option(cells, [plan for plan, _ in pairs])
    measured = np.array([divergence for _, divergence in pairs])
    scale = float(np.median(measured / own.sum(axis=1)))
    # Relative to its own divergence each plan weighs the same, from 2 bits to 8.
    by_option = scale * own / measured[:, None]
    block_names = [name for name, _ in cells]
    blocks = {name: number for number, name in enumerate(dict.fromkeys(block_names))}
    of_block = np.array([blocks[name] for name in block_names])
    by_block = np.stack(
        [by_option[:, of_block == number].sum(axis=1) for number in range(len(blocks))], axis=1
    )
    residuals = 1 - by_option.sum(axis=1)

    a, d, kernel = _likeliest(by_block @ by_block.T, by_option @ by_option.T, residuals)
    weights = np.linalg.solve(kernel, residuals)
    factors = 1 + a**2 * (by_block.T @ weights)[of_block] + d**2 * (by_option.T @ weights)
    factors = np.maximum(factors, _LEAST_SHARE)
    left_out = 1 - weights / np.diag(np.linalg.inv(kernel))
    errors = {
        place: scale * error * float(factor)
        for (place, error), factor in zip(cells.items(), factors, strict=True)
    }
    return Correction(errors, measured, left_out * measured, scale * own.sum(axis=1))


def _by_option(cells: Mapping[Place, float], plans: Sequence[Sequence[Place]]) -> Floats:
    """For each plan the error of the cells that it uses, and zero for the others."""
    places = {place: number for number, place in enumerate(cells)}
    table = np.zeros((len(plans), len(places)))
    for row, plan in zip(table, plans, strict=True):
        for place in plan:
            row[places[place]] = cells[place]
    return table


def _likeliest(
    of_blocks: Floats, of_options: Floats, residuals: Floats
) -> tuple[float, float, Floats]:
    """The spreads of blocks and options of the largest marginal likelihood, and the covariance."""
    found: tuple[float, float, float, Floats] | None = None
    for a, d, r in product(_SPREADS, _SPREADS, _REMAINDERS):
        kernel = a**2 * of_blocks + d**2 * of_options + r**2 * np.eye(len(residuals))
        factor = np.linalg.cholesky(kernel)
        white = np.linalg.solve(factor, residuals)
        likelihood = -0.5 * float(white @ white) - float(np.log(np.diag(factor)).sum())
        if found is None or likelihood > found[0]:
            found = (likelihood, a, d, kernel)
    assert found is not None
    return found[1:]

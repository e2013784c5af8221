"""Lagrangian bounds of the least error with one cell forced, at many multipliers at once.

For a multiplier λ ≥ 0 and a penalty μ_k ≥ 0 for each further limit, every choice within a budget
B and within limits L_k has an error of at least
`Σ_blocks min_i (error_i + λ cost_i + Σ_k μ_k amount_ik) - λB - Σ_k μ_k L_k`; with cell i of a
block forced, that block's minimum is replaced by the cell's own term. The largest of these bounds
over some multipliers counts.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from search.knapsack_items import Floats, Integers, KnapsackItems
from search.relaxation import Relaxation
from search.side_constraints import SideConstraint

# Multipliers are taken at this many steps of the relaxation within the range of budgets, and at
# some over all steps: a large forced cell moves the multiplier far away.
_WITHIN = 512
_OVERALL = 64
# Bounds are lowered by this share of their terms, more than double precision can lose.
_ROUND_OFF = 1e-12


class Lagrangian:
    """Bounds for budgets from `low` to `high`, both at least the floor, at fixed penalties.

    Attributes:
        penalties: The μ of each further limit; zeros leave the limits out.
    """

    def __init__(
        self,
        items: KnapsackItems,
        relaxation: Relaxation,
        low: int,
        high: int,
        sides: Sequence[SideConstraint] = (),
        penalties: Sequence[float] = (),
    ) -> None:
        """Takes the relaxation of the items without penalties, which is used where all are 0."""
        self.penalties = tuple(penalties) or (0.0,) * len(sides)
        self._items = items
        self._sides = tuple(sides)
        self._low = low
        self._high = high
        self._offset = sum(
            price * side.most for price, side in zip(self.penalties, sides, strict=True)
        )
        penalised = _penalised(items, sides, self.penalties)
        self._relaxation = relaxation if penalised is items else Relaxation(penalised)
        self._steps = self._chosen_steps()
        slopes = np.append(self._relaxation.slope, 0.0)  # after the last step more buys nothing
        self._error: Floats = penalised.error
        self._multiplier: Floats = slopes[self._steps]
        self._least: Floats = np.stack(
            [items.least(self._error + price * items.cost) for price in self._multiplier]
        )
        self._total: Floats = self._least.sum(axis=1)

    def _chosen_steps(self) -> Integers:
        relaxation = self._relaxation
        last = len(relaxation.slope)
        first = relaxation.steps_within(self._low)
        end = min(relaxation.steps_within(self._high) + 1, last)
        within = np.linspace(first, end, _WITHIN).astype(np.int64)
        overall = np.linspace(0, last, _OVERALL).astype(np.int64)
        return np.unique(np.concatenate([within, overall]))

    def lower(self, cells: Integers, budget: int) -> tuple[Floats, Floats]:
        """For each of some cells a lower bound of every choice with it, and its multiplier."""
        items = self._items
        price = self._multiplier[:, None]
        own = self._error[cells] + price * items.cost[cells]
        total = self._total[:, None]
        spent = price * budget + self._offset
        bound = total - self._least[:, items.block[cells]] + own - spent
        bound -= _ROUND_OFF * (total + own + spent)
        best = bound.argmax(axis=0)
        return bound[best, np.arange(len(cells))], self._multiplier[best]

    def needed(self, epsilon: float) -> NDArray[np.bool_]:
        """The cells that, put into a choice of the relaxation, leave it within ε somewhere."""
        items, relaxation = self._items, self._relaxation
        found = np.zeros(len(items.cells), dtype=bool)
        first, last = map(relaxation.steps_within, (self._low, self._high))
        if not any(self.penalties):
            for steps in range(first, last + 1):  # optimal for their own costs
                choice = relaxation.choice(steps)
                if all(side.holds(choice) for side in self._sides):
                    found[choice] = True
        for step in self._steps.tolist():
            choice = relaxation.choice(step)
            cost = items.total_cost(choice) + items.cost - items.cost[choice][items.block]
            error = items.total_error(choice) + items.error - items.error[choice][items.block]
            least = relaxation.optimum(np.maximum(cost, self._low).astype(np.float64))
            near = (cost <= self._high) & (error <= (1 + epsilon) * (least - self._offset))
            for side in self._sides:
                near &= side.swapped(items, choice) <= side.most
            found |= near
        return found


def _penalised(
    items: KnapsackItems, sides: Sequence[SideConstraint], penalties: Sequence[float]
) -> KnapsackItems:
    """The items with the penalties of the further limits in their errors."""
    if not any(penalties):
        return items
    extra = sum(price * side.cost for price, side in zip(penalties, sides, strict=True))
    return replace(items, error=items.error + extra)

"""Lagrangian bounds of the least error with one cell forced, at many multipliers at once.

For a multiplier λ ≥ 0 every choice within a budget B has an error of at least
`Σ_blocks min_i (error_i + λ nbytes_i) - λB`; with cell i of a block forced, that block's minimum
is replaced by the cell's own term. The largest of these bounds over some multipliers counts.
"""

import numpy as np
from numpy.typing import NDArray

from search.knapsack_items import Floats, Integers, KnapsackItems
from search.relaxation import Relaxation

# Multipliers are taken at this many steps of the relaxation within the range of budgets, and at
# some over all steps: a large forced cell moves the multiplier far away.
_WITHIN = 512
_OVERALL = 64
# Bounds are lowered by this share of their terms, more than double precision can lose.
_ROUND_OFF = 1e-12


class Lagrangian:
    """Bounds for budgets from `low` to `high`, both at least the floor."""

    def __init__(self, items: KnapsackItems, relaxation: Relaxation, low: int, high: int) -> None:
        self._items = items
        self._relaxation = relaxation
        self._low = low
        self._high = high
        self._steps = self._chosen_steps()
        slopes = np.append(relaxation.slope, 0.0)  # after the last step bytes buy nothing
        self._multiplier: Floats = slopes[self._steps]
        self._least: Floats = np.stack(
            [items.least(items.error + price * items.nbytes) for price in self._multiplier]
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
        own = items.error[cells] + price * items.nbytes[cells]
        total = self._total[:, None]
        bound = total - self._least[:, items.block[cells]] + own - price * budget
        bound -= _ROUND_OFF * (total + own + price * budget)
        best = bound.argmax(axis=0)
        return bound[best, np.arange(len(cells))], self._multiplier[best]

    def needed(self, epsilon: float) -> NDArray[np.bool_]:
        """The cells that, put into a choice of the relaxation, leave it within ε somewhere."""
        items, relaxation = self._items, self._relaxation
        found = np.zeros(len(items.cells), dtype=bool)
        first, last = map(relaxation.steps_within, (self._low, self._high))
        for steps in range(first, last + 1):  # optimal for their own sizes
            found[relaxation.choice(steps)] = True
        for step in self._steps.tolist():
            choice = self._relaxation.choice(step)
            nbytes = items.total_nbytes(choice) + items.nbytes - items.nbytes[choice][items.block]
            error = items.total_error(choice) + items.error - items.error[choice][items.block]
            least = self._relaxation.optimum(np.maximum(nbytes, self._low).astype(np.float64))
            found |= (nbytes <= self._high) & (error <= (1 + epsilon) * least)
        return found

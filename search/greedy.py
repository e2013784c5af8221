"""Greedy allocation: from the most precise plan down, always the step that costs least."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.allocator import Allocator, Solution
from search.branch_and_bound import Row
from search.knapsack_items import Integers, KnapsackItems
from search.program import Program


@dataclass(frozen=True)
class Greedy(Allocator):
    """The greedy allocation of MPTQ-ViT (arXiv:2401.14895).

    All blocks begin with their option of least error. As long as a limit is broken, one block
    takes its next narrower option: the one that saves least of what is exceeded, and takes no
    more of anything that is limited. It is the block with the least `g = dE / dC`: by how much
    the error rises, over what is saved, as a share of each exceeded limit. Of equal ones the
    first block moves. The paper mixes performance and compressibility and does not print its
    formula; this one is ours. Nothing is proven of a plan.

    Where the walk ends above a limit, which only options that save of one resource what they
    take of another can bring about, the program's own plan stands in its place.

    Attributes:
        program: The cells and the limits.
    """

    program: Program

    def solve(self, budget: int) -> Solution:
        """The first plan of the walk within a budget and the limits.

        Raises:
            InfeasibleBudget: No plan is within them.
        """
        items, rows = self.program.items, self.program.rows(budget)
        choice = items.most_precise.copy()
        while exceeded := [row for row in rows if not row.holds(choice)]:
            cell = _next(items, choice, rows, exceeded)
            if cell is None:
                return self.program.solve(budget)
            choice[items.block[cell]] = cell
        return Solution.of(items, choice, proven=False, tolerance=np.inf)


def _next(
    items: KnapsackItems, choice: Integers, rows: Sequence[Row], exceeded: Sequence[Row]
) -> int | None:
    """The cell that the walk goes to; None at its end."""
    own = choice[items.block]
    shares = [(row.cost[own] - row.cost) / max(row.most, 1) for row in exceeded]
    saved = np.sum(shares, axis=0)
    narrower = saved > 0
    for row in rows:
        narrower &= row.cost <= row.cost[own]
    cells = np.flatnonzero(narrower)
    if not len(cells):
        return None
    cells = cells[np.lexsort((items.error[cells], saved[cells], items.block[cells]))]
    _, first = np.unique(items.block[cells], return_index=True)
    nearest = cells[first]
    rise = items.error[nearest] - items.error[own[nearest]]
    return int(nearest[np.argmin(rise / saved[nearest])])

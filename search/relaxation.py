"""The linear relaxation of the program: optimal for every budget at once, by convex hulls."""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from search.knapsack_items import Floats, Integers, KnapsackItems


class _Steps(NamedTuple):
    """Moves from one vertex of a block's hull to the next larger one."""

    slopes: list[float]
    starts: list[int]
    ends: list[int]


def _hull_steps(items: KnapsackItems, block: int) -> _Steps:
    """The lower convex hull of a block's (cost, error) points, as steps of falling slope.

    The slope is the error saved per unit of cost, always positive.
    """
    cells = range(int(items.first[block]), int(items.first[block + 1]))
    cost = {cell: int(items.cost[cell]) for cell in cells}
    error = {cell: float(items.error[cell]) for cell in cells}
    hull: list[int] = []
    slopes: list[float] = []
    for cell in sorted(cells, key=lambda cell: (cost[cell], error[cell], cell)):
        if hull and error[cell] >= error[hull[-1]]:
            continue
        slope = np.inf
        while hull:
            last = hull[-1]
            slope = (error[last] - error[cell]) / (cost[cell] - cost[last])
            if not slopes or slope < slopes[-1]:
                break
            hull.pop()
            slopes.pop()
        if hull:
            slopes.append(slope)
        hull.append(cell)
    return _Steps(slopes, hull[:-1], hull[1:])


class Relaxation:
    """The relaxed program over all budgets.

    Starting from the cheapest choice, the steps that save most error per unit are taken first.
    After every whole step stands an integral choice that is optimal for its own cost, and in
    between the relaxed optimum is on the straight line.

    Attributes:
        slope: Error saved per unit of cost by each step, falling.
        cost: Costs of the choices: `cost[j]` after `j` steps.
        error: Their summed errors.
    """

    def __init__(self, items: KnapsackItems) -> None:
        self.items = items
        hulls = [_hull_steps(items, block) for block in range(len(items))]
        slope = np.array([s for hull in hulls for s in hull.slopes], dtype=np.float64)
        start = np.array([c for hull in hulls for c in hull.starts], dtype=np.int64)
        end = np.array([c for hull in hulls for c in hull.ends], dtype=np.int64)
        order = np.argsort(-slope, kind="stable")  # a block's steps stay in order
        self.slope: Floats = slope[order]
        self._end: Integers = end[order]
        gained = (items.cost[end] - items.cost[start])[order]
        saved = (items.error[start] - items.error[end])[order]
        floor = items.total_cost(items.cheapest)
        self.cost: Integers = floor + np.concatenate([[0], np.cumsum(gained)])
        # Summed from the end: the best choice has the smallest errors, and keeps its digits.
        least = items.total_error(self.choice(len(order)))
        tail = np.cumsum(saved[::-1])[::-1]
        self.error: Floats = least + np.concatenate([tail, [0.0]])

    @cached_property
    def floor(self) -> int:
        """The cost of the cheapest choice."""
        return int(self.cost[0])

    @cached_property
    def ceiling(self) -> int:
        """The cost of the cheapest choice among those of least error: more buys nothing."""
        return int(self.cost[-1])

    def steps_within(self, budget: int) -> int:
        """How many whole steps fit a budget that is at least the floor."""
        return int(np.searchsorted(self.cost, budget, side="right")) - 1

    def choice(self, steps: int) -> Integers:
        """The choice after some whole steps."""
        choice = self.items.cheapest.copy()
        ends = self._end[:steps]
        choice[self.items.block[ends]] = ends  # of several steps of a block the last one counts
        return choice

    def optimum(self, budgets: Floats) -> Floats:
        """The relaxed optimum, a lower bound of the error, at budgets of at least the floor."""
        return np.interp(budgets, self.cost, self.error)

"""Limits on further resources, beside the one that the budget is about."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitfront.profile import Cell
from search.knapsack_items import Integers, KnapsackItems, whole_amounts
from search.resources import Limit


@dataclass(frozen=True, eq=False)
class SideConstraint:
    """A limit, and what every cell takes of it.

    Attributes:
        limit: The limit.
        cost: One entry a cell, in whole units.
        most: What a choice may take in all.
    """

    limit: Limit
    cost: Integers
    most: int

    @classmethod
    def of(cls, limit: Limit, cells: Sequence[Cell]) -> "SideConstraint":
        """The limit over some cells."""
        return cls(limit, whole_amounts(cells, limit.resource), limit.most)

    def total(self, choice: Integers) -> int:
        """What a choice takes, in whole units."""
        return int(self.cost[choice].sum())

    def holds(self, choice: Integers) -> bool:
        """Whether a choice is within the limit."""
        return self.total(choice) <= self.most

    def swapped(self, items: KnapsackItems, choice: Integers) -> Integers:
        """What a choice takes with each of the cells in its block's place."""
        return self.total(choice) + self.cost - self.cost[choice][items.block]

    def least(self, items: KnapsackItems) -> int:
        """What any choice takes at least."""
        return int(np.minimum.reduceat(self.cost, items.first[:-1]).sum())

    def only(self, cells: Integers) -> "SideConstraint":
        """The same limit over some of the cells."""
        return replace(self, cost=self.cost[cells])

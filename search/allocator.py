"""Allocators: who gives every block its option at a budget."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from bitfront.profile import Cell, Resource
from search.knapsack_items import Integers, KnapsackItems


@dataclass(frozen=True, slots=True)
class Solution:
    """One cell for each block.

    Attributes:
        choice: Block name to its cell.
        error: Summed error of the cells.
        cost: What they take of the budget's resource, in whole units.
        proven: Whether no better one exists, up to round-off (of the solver, where several
            limits bind); false where the allocator proves nothing, on profiles whose errors are
            all but linear in cost, and where the solver's time ran out.
        least_error: Where proven, no choice within the limits has a smaller error.
    """

    choice: Mapping[str, Cell]
    error: float
    cost: int
    proven: bool
    least_error: float

    @classmethod
    def of(
        cls, items: KnapsackItems, choice: Integers, *, proven: bool = True, tolerance: float = 0.0
    ) -> "Solution":
        """The solution of a choice of cell numbers, one a block."""
        cells = [items.cells[number] for number in choice]
        error = items.total_error(choice)
        return cls(
            choice=dict(zip(items.names, cells, strict=True)),
            error=error,
            cost=items.total_cost(choice),
            proven=proven,
            least_error=max(0.0, error - tolerance),
        )

    def amount(self, resource: Resource) -> float:
        """What the cells take of a resource, in its own unit; what was not measured counts 0."""
        return fsum(cell.amount(resource) or 0.0 for cell in self.choice.values())


class Allocator(ABC):
    """Gives every block one of its cells."""

    @abstractmethod
    def solve(self, budget: int) -> Solution:
        """A choice within a budget, in whole units of the budget's resource, and all limits.

        Raises:
            InfeasibleBudget: No choice is within the budget and the limits.
        """

    def proxy_front(self, budgets: Sequence[int]) -> list[Solution]:
        """The choices at several budgets, without repeats, cheapest first."""
        solutions: list[Solution] = []
        for budget in sorted(budgets):
            solution = self.solve(budget)
            if not solutions or solution.choice != solutions[-1].choice:
                solutions.append(solution)
        return solutions

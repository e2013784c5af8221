"""The integer program: one cell a block, least summed error within all limits, proven optimal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bitfront.errors import InfeasibleBudget
from bitfront.profile import Cell, Resource
from search.allocator import Allocator, Solution
from search.branch_and_bound import Row, minimise, objective_tolerance
from search.knapsack import solve_knapsack
from search.knapsack_items import Integers, KnapsackItems
from search.relaxation import Relaxation
from search.resources import Limit, amount_of
from search.side_constraints import SideConstraint


@dataclass(frozen=True, eq=False)
class Program(Allocator):
    """The multiple-choice knapsack over a profile's cells.

    A budget of one resource varies from question to question; the limits hold for all. With the
    budget alone the labels of `search.knapsack` solve it. Where their optimum breaks a further
    limit, HiGHS solves the multi-dimensional knapsack.

    Attributes:
        items: The cells, with the budget's resource as their cost.
        resource: What the budget is about.
        limits: The limits.
        sides: The limits on other resources than the budget's.
    """

    items: KnapsackItems
    resource: Resource
    limits: tuple[Limit, ...]
    sides: tuple[SideConstraint, ...]

    @classmethod
    def of(
        cls,
        cells: Mapping[str, Sequence[Cell]],
        resource: Resource = Resource.NBYTES,
        limits: Sequence[Limit] = (),
    ) -> "Program":
        """The program over the cells of each block.

        Raises:
            SpecError: There is no block, or a block without cells, or a limited amount was not
                measured.
            InvalidMetric: An error or an amount is negative or not finite.
        """
        items = KnapsackItems.of(cells, resource)
        sides = [SideConstraint.of(n, items.cells) for n in limits if n.resource is not resource]
        return cls(items, resource, tuple(limits), tuple(sides))

    @cached_property
    def relaxation(self) -> Relaxation:
        """The relaxation under the budget alone."""
        return Relaxation(self.items)

    @cached_property
    def _cap(self) -> Limit | None:
        """The job's own limit on the budget's resource."""
        own = [limit for limit in self.limits if limit.resource is self.resource]
        return min(own, key=lambda limit: limit.most, default=None)

    def forcing(self, cell: int) -> "Program":
        """The same program with one cell as the only one of its block."""
        kept = self.items.without_rivals(cell)
        sides = tuple(side.only(kept) for side in self.sides)
        return Program(self.items.forcing(cell), self.resource, self.limits, sides)

    @cached_property
    def floor(self) -> int:
        """The least of the budget's resource that a plan within the limits takes.

        Raises:
            InfeasibleBudget: No plan holds the limits.
        """
        self._check_alone()
        least = self._least_cost()
        if self._cap is not None and least > self._cap.most:
            raise _broken(self._cap, least, [str(side.limit) for side in self.sides])
        return least

    def _least_cost(self) -> int:
        """The least cost of a choice within the limits on other resources."""
        if self.holds_sides(self.items.cheapest):
            return self.relaxation.floor
        found = minimise(self.items, self.items.cost.astype(np.float64), self._side_rows()).choice
        return self.items.total_cost(self._diagnose(None) if found is None else found)

    @cached_property
    def ceiling(self) -> int:
        """What the plan of least error within the limits takes: more buys nothing.

        Raises:
            InfeasibleBudget: No plan holds the limits.
        """
        if not self.sides and self._cap is None:
            return self.relaxation.ceiling
        dearest = np.maximum.reduceat(self.items.cost, self.items.first[:-1])
        return self.solve(int(dearest.sum())).cost

    def solve(self, budget: int) -> Solution:
        """The optimum within a budget, in whole units; among equal errors, one of least cost.

        Raises:
            InfeasibleBudget: No plan is within the budget and the limits. It names the first
                limit that cannot be held, alone or together with those before it.
        """
        found, _ = self.attempt(budget)
        if found is not None:
            return found
        self._check_alone()
        return Solution.of(self.items, self._diagnose(self._within(budget)), proven=False)

    def attempt(self, budget: int) -> tuple[Solution | None, bool]:
        """The optimum within a budget and the limits, and whether that is proven.

        None that is proven says that there is no plan at all.
        """
        most = self._within(budget).most
        if most < self.relaxation.floor:
            return None, True
        choice, proven = solve_knapsack(self.items, self.relaxation, most)
        if self.holds_sides(choice):
            return Solution.of(self.items, choice, proven=proven), proven
        answer = minimise(self.items, self.items.error, self.rows(budget))
        if answer.choice is None:
            return None, answer.proven
        tolerance = objective_tolerance(self.items.error)
        solution = Solution.of(self.items, answer.choice, proven=answer.proven, tolerance=tolerance)
        return solution, answer.proven

    def holds_sides(self, choice: Integers) -> bool:
        """Whether a choice is within all limits on other resources than the budget's."""
        return all(side.holds(choice) for side in self.sides)

    def rows(self, budget: int) -> list[Row]:
        """What a plan within a budget and the limits holds, in whole units."""
        return [Row(self.items.cost, self._within(budget).most), *self._side_rows()]

    def _side_rows(self) -> list[Row]:
        return [Row(side.cost, side.most) for side in self.sides]

    def _within(self, budget: int) -> Limit:
        """The budget as a limit, or the job's own limit where that is lower."""
        if self._cap is not None and self._cap.most <= budget:
            return self._cap
        return Limit(str(self.resource), self.resource, amount_of(budget, self.resource))

    def _check_alone(self) -> None:
        """Raises InfeasibleBudget for the first limit that no plan holds, whatever the others."""
        if self._cap is not None and self._cap.most < self.relaxation.floor:
            raise _broken(self._cap, self.relaxation.floor)
        for side in self.sides:
            least = side.least(self.items)
            if least > side.most:
                raise _broken(side.limit, least)

    def _diagnose(self, within: Limit | None) -> Integers:
        """Adds limit after limit; the least of the first that cannot be held is in the error.

        Where all can be held, after all, the choice that holds them.
        """
        rows: list[Row] = []
        given: list[str] = []
        choice = self.items.cheapest
        if within is not None:
            if within.most < self.relaxation.floor:
                raise _broken(within, self.relaxation.floor)
            rows.append(Row(self.items.cost, within.most))
            given.append(str(within))
        for side in self.sides:
            choice = self._least(side, rows, choice)
            if not side.holds(choice):
                raise _broken(side.limit, side.total(choice), given)
            rows.append(Row(side.cost, side.most))
            given.append(str(side.limit))
        return choice

    def _least(self, side: SideConstraint, rows: Sequence[Row], known: Integers) -> Integers:
        """The choice within some rows that takes least of a further resource.

        Where the solver's time runs out, the one that is known.
        """
        amounts = side.cost.astype(np.float64)
        if len(rows) > 1:
            found = minimise(self.items, amounts, rows).choice
            return known if found is None else found
        if not rows:
            return replace(self.items, cost=side.cost).cheapest
        items = replace(self.items, error=amounts, cost=rows[0].cost)
        return solve_knapsack(items, Relaxation(items), rows[0].most)[0]


def _broken(limit: Limit, least: int, given: Sequence[str] = ()) -> InfeasibleBudget:
    return InfeasibleBudget(limit.name, limit.value, limit.total(least), tuple(given))

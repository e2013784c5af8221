"""The integer program: one cell a block, least summed error within a budget, proven optimal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import fsum

import numpy as np
import pulp

from bitfront.errors import InfeasibleBudget
from bitfront.profile import Cell
from search.knapsack import best_choice
from search.menu import Floats, Integers, Menu
from search.relaxation import Relaxation

_TOLERANCE = 1e-10  # the least that HiGHS takes


@dataclass(frozen=True, slots=True)
class Solution:
    """One cell for each block.

    Attributes:
        choice: Block name to its cell.
        error: Summed error of the cells.
        nbytes: Their bytes.
        bit_operations: Their bit operations.
    """

    choice: Mapping[str, Cell]
    error: float
    nbytes: int
    bit_operations: float

    @classmethod
    def of(cls, menu: Menu, choice: Integers) -> "Solution":
        """The solution of a choice of cell numbers, one a block."""
        cells = [menu.cells[number] for number in choice]
        return cls(
            choice=dict(zip(menu.names, cells, strict=True)),
            error=menu.total_error(choice),
            nbytes=menu.total_nbytes(choice),
            bit_operations=fsum(cell.bit_operations for cell in cells),
        )


class Program:
    """The multiple-choice knapsack over a profile's cells."""

    def __init__(self, cells: Mapping[str, Sequence[Cell]]) -> None:
        """Takes the cells of each block.

        Raises:
            SpecError: There is no block, or a block without cells.
            InvalidMetric: An error is negative or not finite.
        """
        self.menu = Menu.of(cells)
        self.relaxation = Relaxation(self.menu)

    def solve(self, budget_nbytes: int, *, max_bit_operations: float | None = None) -> Solution:
        """The optimum within a budget; among equal errors, the one of fewest bytes.

        Raises:
            InfeasibleBudget: Even the smallest plan is larger, or every plan within the bytes
                has more bit operations.
        """
        if budget_nbytes < self.relaxation.floor_nbytes:
            raise InfeasibleBudget(budget_nbytes, self.relaxation.floor_nbytes)
        solution = self._solve_bytes(budget_nbytes)
        if max_bit_operations is None or solution.bit_operations <= max_bit_operations:
            return solution
        least = self._fewest_bit_operations(budget_nbytes)
        if least > max_bit_operations:
            raise InfeasibleBudget(max_bit_operations, least, "bit operations")
        choice = _solve_with_highs(self.menu, budget_nbytes, max_bit_operations)
        return Solution.of(self.menu, choice)

    def _solve_bytes(self, budget_nbytes: int) -> Solution:
        choice, proven = best_choice(self.menu, self.relaxation, budget_nbytes)
        solution = Solution.of(self.menu, choice)
        if proven:
            return solution
        # Only where errors are all but a function of size; HiGHS may do better, or worse.
        other = Solution.of(self.menu, _solve_with_highs(self.menu, budget_nbytes, np.inf))
        return min(solution, other, key=lambda found: (found.error, found.nbytes))

    def _fewest_bit_operations(self, budget_nbytes: int) -> float:
        """The least bit operations of a plan within a budget."""
        menu = replace(self.menu, error=_operations(self.menu))
        choice, _ = best_choice(menu, Relaxation(menu), budget_nbytes)
        return menu.total_error(choice)

    def proxy_front(
        self, budgets: Sequence[int], *, max_bit_operations: float | None = None
    ) -> list[Solution]:
        """The optima at several budgets, without repeats, smallest first."""
        solutions: list[Solution] = []
        for budget in sorted(budgets):
            solution = self.solve(budget, max_bit_operations=max_bit_operations)
            if not solutions or solution.choice != solutions[-1].choice:
                solutions.append(solution)
        return solutions


def _operations(menu: Menu) -> Floats:
    """The bit operations of every cell."""
    return np.array([cell.bit_operations for cell in menu.cells], dtype=np.float64)


def _solve_with_highs(menu: Menu, budget_nbytes: int, max_bit_operations: float) -> Integers:
    """The optimum by HiGHS within limits that some choice holds.

    The solver holds a limit but for a tolerance: a choice that uses it is forbidden by name,
    and the solver asked again.
    """
    operations = _operations(menu)
    problem, chosen = _posed(menu, operations, budget_nbytes, max_bit_operations)
    while True:
        problem.solve(
            pulp.HiGHS(
                msg=False,
                gapRel=0,
                gapAbs=0,
                threads=1,
                mip_feasibility_tolerance=_TOLERANCE,
                primal_feasibility_tolerance=_TOLERANCE,
                dual_feasibility_tolerance=_TOLERANCE,
            )
        )
        if problem.sol_status != pulp.LpSolutionOptimal:
            # Within the tolerance of infeasible: the choice of fewest bit operations is left.
            rare = replace(menu, error=operations)
            return best_choice(rare, Relaxation(rare), budget_nbytes)[0]
        values = np.array([variable.value() for variable in chosen])
        choice = np.array(
            [a + int(np.argmax(values[a:b])) for a, b in pairwise(menu.first.tolist())]
        )
        is_small = menu.total_nbytes(choice) <= budget_nbytes
        if is_small and fsum(operations[choice].tolist()) <= max_bit_operations:
            return choice
        problem += pulp.lpSum(chosen[number] for number in choice) <= len(menu) - 1


def _posed(
    menu: Menu, operations: Floats, budget_nbytes: int, max_bit_operations: float
) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    """The program as PuLP has it, with one binary variable a cell."""
    problem = pulp.LpProblem("plan", pulp.LpMinimize)
    chosen = [
        problem.add_variable(f"x{number}", cat=pulp.LpBinary) for number in range(len(menu.cells))
    ]
    # The solver's tolerances are absolute: the largest error becomes about a million.
    worst = float(menu.error.max())
    problem.setObjective(_weighted(menu.error / worst * 1e6 if worst > 0 else menu.error, chosen))
    for start, end in pairwise(menu.first.tolist()):
        problem += pulp.lpSum(chosen[start:end]) == 1
    for costs, limit in ((menu.nbytes, budget_nbytes), (operations, max_bit_operations)):
        floor = menu.least(costs.astype(np.float64))
        extra = costs - floor[menu.block]
        room = limit - float(floor.sum())
        if np.isfinite(room):
            unit = room if room > 0 else 1.0
            problem += _weighted(extra / unit, chosen) <= room / unit
    return problem, chosen


def _weighted(weights: Floats, variables: Sequence[pulp.LpVariable]) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression(list(zip(variables, weights.tolist(), strict=True)))

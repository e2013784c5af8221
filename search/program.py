"""The integer program: one cell a block, least summed error within a budget, proven optimal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import fsum

import numpy as np
import pulp

from bitfront.errors import InfeasibleBudget
from bitfront.profile import Cell
from search.knapsack import solve_knapsack
from search.knapsack_items import Floats, Integers, KnapsackItems
from search.relaxation import Relaxation

_TOLERANCE = 1e-10  # the least that HiGHS takes
_TIME_LIMIT_S = 30.0
_QUESTIONS = 20
_FOUND = (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)


@dataclass(frozen=True, slots=True)
class Solution:
    """One cell for each block.

    Attributes:
        choice: Block name to its cell.
        error: Summed error of the cells.
        nbytes: Their bytes.
        bit_operations: Their bit operations.
        proven: Whether no better one exists, up to round-off (of the solver, where bit
            operations are limited); false only on profiles whose errors are all but linear in
            size, and where the solver's time ran out.
    """

    choice: Mapping[str, Cell]
    error: float
    nbytes: int
    bit_operations: float
    proven: bool = True

    @classmethod
    def of(cls, items: KnapsackItems, choice: Integers, *, proven: bool = True) -> "Solution":
        """The solution of a choice of cell numbers, one a block."""
        cells = [items.cells[number] for number in choice]
        return cls(
            choice=dict(zip(items.names, cells, strict=True)),
            error=items.total_error(choice),
            nbytes=items.total_nbytes(choice),
            bit_operations=fsum(cell.bit_operations for cell in cells),
            proven=proven,
        )


class Program:
    """The multiple-choice knapsack over a profile's cells."""

    def __init__(self, cells: Mapping[str, Sequence[Cell]]) -> None:
        """Takes the cells of each block.

        Raises:
            SpecError: There is no block, or a block without cells.
            InvalidMetric: An error is negative or not finite.
        """
        self.items = KnapsackItems.of(cells)
        self.relaxation = Relaxation(self.items)

    def solve(self, budget_nbytes: int, *, max_bit_operations: float | None = None) -> Solution:
        """The optimum within a budget; among equal errors, the one of fewest bytes.

        Raises:
            InfeasibleBudget: Even the smallest plan is larger, or every plan within the bytes
                has more bit operations.
        """
        if budget_nbytes < self.relaxation.floor_nbytes:
            raise InfeasibleBudget(budget_nbytes, self.relaxation.floor_nbytes)
        choice, proven = solve_knapsack(self.items, self.relaxation, budget_nbytes)
        solution = Solution.of(self.items, choice, proven=proven)
        if max_bit_operations is None or solution.bit_operations <= max_bit_operations:
            return solution
        least, frugal = self._fewest_bit_operations(budget_nbytes)
        if least > max_bit_operations:
            raise InfeasibleBudget(max_bit_operations, least, "bit operations")
        found = _solve_with_highs(self.items, budget_nbytes, max_bit_operations)
        if found is None:
            return Solution.of(self.items, frugal, proven=False)
        return Solution.of(self.items, found[0], proven=found[1])

    def _fewest_bit_operations(self, budget_nbytes: int) -> tuple[float, Integers]:
        """The least bit operations within a budget, and a choice that has them."""
        items = replace(self.items, error=_operations(self.items))
        choice, _ = solve_knapsack(items, Relaxation(items), budget_nbytes)
        return items.total_error(choice), choice

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


def _operations(items: KnapsackItems) -> Floats:
    """The bit operations of every cell."""
    return np.array([cell.bit_operations for cell in items.cells], dtype=np.float64)


def _solve_with_highs(
    items: KnapsackItems, budget_nbytes: int, max_bit_operations: float
) -> tuple[Integers, bool] | None:
    """The optimum by HiGHS within limits that some choice holds, and whether it is proven.

    The solver holds a limit but for a tolerance: a choice that uses it is forbidden by name,
    and the solver asked again. None where it finds no choice.
    """
    operations = _operations(items)
    problem, chosen = _posed(items, operations, budget_nbytes, max_bit_operations)
    for _ in range(_QUESTIONS):
        problem.solve(
            pulp.HiGHS(
                msg=False,
                gapRel=0,
                gapAbs=0,
                threads=1,
                timeLimit=_TIME_LIMIT_S,
                mip_feasibility_tolerance=_TOLERANCE,
                primal_feasibility_tolerance=_TOLERANCE,
                dual_feasibility_tolerance=_TOLERANCE,
            )
        )
        values = [variable.value() for variable in chosen]
        if problem.sol_status not in _FOUND or None in values:
            return None
        ranges = pairwise(items.first.tolist())
        choice = np.array([a + int(np.argmax(values[a:b])) for a, b in ranges])
        is_small = items.total_nbytes(choice) <= budget_nbytes
        if is_small and fsum(operations[choice].tolist()) <= max_bit_operations:
            return choice, problem.sol_status == pulp.LpSolutionOptimal
        problem += pulp.lpSum(chosen[number] for number in choice) <= len(items) - 1
    return None


def _posed(
    items: KnapsackItems, operations: Floats, budget_nbytes: int, max_bit_operations: float
) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    """The program as PuLP has it, with one binary variable a cell."""
    problem = pulp.LpProblem("plan", pulp.LpMinimize)
    chosen = [
        problem.add_variable(f"x{number}", cat=pulp.LpBinary) for number in range(len(items.cells))
    ]
    # The solver's tolerances are absolute: the largest error becomes about a million.
    worst = float(items.error.max())
    problem.setObjective(_weighted(items.error / worst * 1e6 if worst > 0 else items.error, chosen))
    for start, end in pairwise(items.first.tolist()):
        problem += pulp.lpSum(chosen[start:end]) == 1
    for costs, limit in ((items.nbytes, budget_nbytes), (operations, max_bit_operations)):
        floor = items.least(costs.astype(np.float64))
        extra = costs - floor[items.block]
        room = limit - float(floor.sum())
        if np.isfinite(room):
            unit = room if room > 0 else 1.0
            problem += _weighted(extra / unit, chosen) <= room / unit
    return problem, chosen


def _weighted(weights: Floats, variables: Sequence[pulp.LpVariable]) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression(list(zip(variables, weights.tolist(), strict=True)))

"""The integer program: one cell a block, least summed error within a budget, proven optimal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pulp

from bitfront.errors import InfeasibleBudget
from bitfront.profile import Cell
from search.knapsack import best_choice
from search.menu import Floats, Integers, Menu
from search.relaxation import Relaxation


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
            bit_operations=sum(cell.bit_operations for cell in cells),
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
            InfeasibleBudget: Even the smallest plan is larger.
        """
        return Solution.of(self.menu, self._choose(budget_nbytes, max_bit_operations))

    def _choose(self, budget_nbytes: int, max_bit_operations: float | None) -> Integers:
        if budget_nbytes < self.relaxation.floor_nbytes:
            raise InfeasibleBudget(budget_nbytes, self.relaxation.floor_nbytes)
        if max_bit_operations is not None:
            return _solve_with_highs(self.menu, budget_nbytes, max_bit_operations)
        choice, proven = best_choice(self.menu, self.relaxation, budget_nbytes)
        return choice if proven else _solve_with_highs(self.menu, budget_nbytes, None)

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


def _solve_with_highs(menu: Menu, budget_nbytes: int, max_bit_operations: float | None) -> Integers:
    """The optimum by HiGHS.

    The solver holds a limit but for a tolerance; a choice that uses it is refused, and the
    limit lowered by as much.

    Raises:
        InfeasibleBudget: The bit operations of every plan within the bytes are too many.
    """
    operations = np.array([cell.bit_operations for cell in menu.cells], dtype=np.float64)
    nbytes_limit, operations_limit = budget_nbytes, max_bit_operations
    while True:
        choice = _ask_highs(menu, operations, nbytes_limit, operations_limit)
        if choice is None:
            least = float(menu.least(operations).sum())
            raise InfeasibleBudget(max_bit_operations or 0, least, "bit operations")
        excess = menu.total_nbytes(choice) - budget_nbytes
        more = float(operations[choice].sum()) - (max_bit_operations or np.inf)
        if excess <= 0 and more <= 0:
            return choice
        nbytes_limit -= max(excess, 0)
        if operations_limit is not None:
            operations_limit -= max(more, 0.0)


def _ask_highs(
    menu: Menu, operations: Floats, nbytes_limit: int, operations_limit: float | None
) -> Integers | None:
    """The solver's choice, or None where it finds none within the limits."""
    problem = pulp.LpProblem("plan", pulp.LpMinimize)
    chosen = [
        problem.add_variable(f"x{number}", cat=pulp.LpBinary) for number in range(len(menu.cells))
    ]
    # The solver's tolerances are absolute: the largest error becomes about a million.
    worst = float(menu.error.max())
    problem.setObjective(_weighted(menu.error / worst * 1e6 if worst > 0 else menu.error, chosen))
    ranges = list(zip(menu.first[:-1].tolist(), menu.first[1:].tolist(), strict=True))
    for start, end in ranges:
        problem += pulp.lpSum(chosen[start:end]) == 1
    floor = menu.nbytes[menu.smallest]
    room = max(nbytes_limit - int(floor.sum()), 1)
    extra = (menu.nbytes - floor[menu.block]).astype(np.float64)
    problem += _weighted(extra / room, chosen) <= (nbytes_limit - int(floor.sum())) / room
    if operations_limit is not None:
        problem += _weighted(operations / operations_limit, chosen) <= 1
    problem.solve(pulp.HiGHS(msg=False, gapRel=0, gapAbs=0, threads=1))
    if problem.sol_status != pulp.LpSolutionOptimal:
        return None
    values = np.array([variable.value() for variable in chosen])
    return np.array([start + int(np.argmax(values[start:end])) for start, end in ranges])


def _weighted(weights: Floats, variables: Sequence[pulp.LpVariable]) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression(list(zip(variables, weights.tolist(), strict=True)))

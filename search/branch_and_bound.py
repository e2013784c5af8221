"""The multi-dimensional multiple-choice knapsack, given to HiGHS through PuLP.

Terms of pairs are linearised: a variable for each pair of cells of two blocks, whose sums over one
block are the variables of the other's cells. Where those are 0 or 1, so are their products.

HiGHS computes in double precision and holds a row but for a tolerance. Rows and the objective
are scaled so that its tolerances mean little, every choice that it names is checked in whole
numbers, and one that breaks a limit all the same is forbidden by name and the solver asked again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pulp
from numpy.typing import NDArray

from search.knapsack_items import Floats, Integers, KnapsackItems

_TOLERANCE = 1e-10  # the least that HiGHS takes
_SMALLEST_ENTRY = 1e-12  # the least that HiGHS takes
_TIME_LIMIT_S = 30.0
_QUESTIONS = 20
_FOUND = (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
# The largest entry of the objective becomes this: HiGHS' tolerances are absolute.
_SCALE = 1e6


@dataclass(frozen=True, eq=False)
class Row:
    """What every cell takes of something, and what a choice may take of it in all."""

    cost: Integers
    most: int

    def holds(self, choice: Integers) -> bool:
        """Whether a choice is within the limit, in whole numbers."""
        return int(self.cost[choice].sum()) <= self.most


@dataclass(frozen=True, eq=False)
class Pair:
    """What two blocks add to the objective beside what each adds alone.

    Attributes:
        first: A block's number.
        second: Another one's.
        terms: One row a cell of the first block, one column a cell of the second.
    """

    first: int
    second: int
    terms: Floats

    def of(self, items: KnapsackItems, choice: Integers) -> float:
        """What a choice adds."""
        row, column = (choice[block] - items.first[block] for block in (self.first, self.second))
        return float(self.terms[row, column])


@dataclass(frozen=True, eq=False)
class Answer:
    """What HiGHS found.

    Attributes:
        choice: The best choice within all rows; None where none was found.
        proven: Whether there is no better one, or no choice at all; false where its time ran
            out.
    """

    choice: Integers | None
    proven: bool


def objective_tolerance(objective: Floats) -> float:
    """How far below the best choice found the optimum may still be, by HiGHS' tolerances."""
    return float(objective.max()) / _SCALE * _TOLERANCE * len(objective)


def minimise(
    items: KnapsackItems, objective: Floats, rows: Sequence[Row], pairs: Sequence[Pair] = ()
) -> Answer:
    """The choice of the least summed objective, with what pairs add, within the rows."""
    if any(_room(items, row) < 0 for row in rows):
        return Answer(None, proven=True)
    problem, chosen = _posed(items, objective, rows, pulp.LpInteger, pairs)
    for _ in range(_QUESTIONS):
        problem.solve(_solver())
        if problem.sol_status == pulp.LpSolutionInfeasible:
            return Answer(None, proven=True)
        values = [variable.value() for variable in chosen]
        if problem.sol_status not in _FOUND or None in values:
            return Answer(None, proven=False)
        ranges = pairwise(items.first.tolist())
        choice = np.array([a + int(np.argmax(values[a:b])) for a, b in ranges])
        if all(row.holds(choice) for row in rows):
            return Answer(choice, proven=problem.sol_status == pulp.LpSolutionOptimal)
        problem += pulp.lpSum(chosen[number] for number in choice) <= len(items) - 1
    return Answer(None, proven=False)


def relaxed_prices(
    items: KnapsackItems, objective: Floats, rows: Sequence[Row]
) -> list[float] | None:
    """What a unit more of each row would save in the linear relaxation; None if it has no optimum.

    These are the dual values, never negative.
    """
    if any(_room(items, row) < 0 for row in rows):
        return None
    problem, _ = _posed(items, objective, rows, pulp.LpContinuous)
    problem.solve(_solver())
    if problem.status != pulp.LpStatusOptimal:
        return None
    unit = _objective_unit(objective)
    prices = []
    for number, row in enumerate(rows):
        dual = problem.get_constraint_by_name(_row_name(number)).pi
        prices.append(max(0.0, -float(dual or 0.0)) * unit / _row_unit(items, row))
    return prices


def _solver() -> pulp.LpSolver:
    return pulp.HiGHS(
        msg=False,
        gapRel=0,
        gapAbs=0,
        threads=1,
        timeLimit=_TIME_LIMIT_S,
        mip_feasibility_tolerance=_TOLERANCE,
        primal_feasibility_tolerance=_TOLERANCE,
        dual_feasibility_tolerance=_TOLERANCE,
        # It takes what is smaller for zero, and its presolve then loses choices: a unit of a row
        # whose room is a billion is as small as its default.
        small_matrix_value=_SMALLEST_ENTRY,
    )


def _posed(
    items: KnapsackItems,
    objective: Floats,
    rows: Sequence[Row],
    kind: str,
    pairs: Sequence[Pair] = (),
) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    """The program as PuLP has it, with one variable a cell."""
    problem = pulp.LpProblem("plan", pulp.LpMinimize)
    # What exceeds a row even beside the cheapest of all other blocks is out from the start.
    fits = np.ones(len(items.cells), dtype=bool)
    for row in rows:
        fits &= _extra(items, row) <= _room(items, row)
    chosen = [
        problem.add_variable(f"x{number}", 0, int(fit), cat=kind) for number, fit in enumerate(fits)
    ]
    unit = _objective_unit(
        np.concatenate([objective, *(abs(pair.terms.ravel()) for pair in pairs)])
    )
    weighted = _weighted(objective / unit, chosen)
    for number, pair in enumerate(pairs):
        both = _products(problem, items, chosen, number, pair)
        weighted += _weighted(pair.terms.ravel() / unit, both.ravel().tolist())
    problem.setObjective(weighted)
    for start, end in pairwise(items.first.tolist()):
        problem += pulp.lpSum(chosen[start:end]) == 1
    for number, row in enumerate(rows):
        extra = np.where(fits, _extra(items, row), 0)
        unit = _row_unit(items, row)
        problem += (
            _weighted(extra / unit, chosen) <= _limit(items, row),
            _row_name(number),
        )
    return problem, chosen


def _products(
    problem: pulp.LpProblem,
    items: KnapsackItems,
    chosen: Sequence[pulp.LpVariable],
    number: int,
    pair: Pair,
) -> NDArray[np.object_]:
    """The variables of a pair, in the shape of its terms, with what makes them products."""
    rows, columns = (
        chosen[items.first[block] : items.first[block + 1]] for block in (pair.first, pair.second)
    )
    both = np.array(
        [
            [
                problem.add_variable(f"y{number}_{row}_{column}", 0, 1)
                for column in range(len(columns))
            ]
            for row in range(len(rows))
        ],
        dtype=np.object_,
    )
    for row, variable in enumerate(rows):
        problem += pulp.lpSum(both[row].tolist()) == variable
    for column, variable in enumerate(columns):
        problem += pulp.lpSum(both[:, column].tolist()) == variable
    return both


def _row_name(number: int) -> str:
    return f"row{number}"


def _room(items: KnapsackItems, row: Row) -> int:
    """What is left of a row above the least that any choice takes."""
    return row.most - int(np.minimum.reduceat(row.cost, items.first[:-1]).sum())


def _extra(items: KnapsackItems, row: Row) -> Integers:
    """What each cell takes of a row above the least in its block."""
    return row.cost - np.minimum.reduceat(row.cost, items.first[:-1])[items.block]


def _row_unit(items: KnapsackItems, row: Row) -> float:
    """What a row is divided by: its room, if it has any, so that its limit becomes 1."""
    return float(max(_room(items, row), 1))


def _limit(items: KnapsackItems, row: Row) -> float:
    """The room of a row as the solver sees it.

    Amounts are whole numbers, so half a unit more lets no other choice in, and keeps those that
    take all of the room away from the solver's tolerance: HiGHS was seen to lose them. Where the
    tolerance is more than that, what it lets in is forbidden afterwards.
    """
    return (_room(items, row) + 0.5) / _row_unit(items, row) + 2 * _TOLERANCE


def _objective_unit(objective: Floats) -> float:
    unit = float(objective.max()) / _SCALE
    return unit if unit > 0 else 1.0  # also where the largest is too small to divide


def _weighted(weights: Floats, variables: Sequence[pulp.LpVariable]) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression(list(zip(variables, weights.tolist(), strict=True)))

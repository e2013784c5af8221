"""Pruning: which options no good plan uses, each with the bounds that prove it.

An option stays if some plan with it has, at some budget between the smallest and the largest one
asked for, at most `(1 + ε)` times the optimum. Budgets are whole bytes and there are too many to
look at each, so the proofs are for ranges: with more bytes the least error of a plan with the
option only falls, and so does the optimum. Where the first at the end of a range exceeds
`(1 + ε)` times the second at its start, no budget of the range needs the option.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np

from bitfront.plan import Option
from bitfront.profile import Cell
from search.knapsack import solve_knapsack
from search.knapsack_items import Integers, KnapsackItems
from search.lagrangian import Lagrangian
from search.program import Program
from search.relaxation import Relaxation

# Whatever is this close to the threshold stays.
_ROUND_OFF = 1e-9
# A range is halved this often before the integer program is asked.
_HALVINGS = 11
# An option that this many integer programs do not decide stays.
_PROGRAMS = 20


class Proof(StrEnum):
    """What shows that an option is not needed in a range of budgets."""

    SIZE = "size"
    LAGRANGIAN = "lagrangian"
    PROGRAM = "program"


@dataclass(frozen=True, slots=True)
class Bound:
    """From one budget to another: every plan with the option has at least this error.

    Attributes:
        from_nbytes: The smallest budget of the range.
        to_nbytes: The largest one; the bound is taken there.
        proof: How the bound was found. With `size`, no plan with the option fits.
        multiplier: The λ of a Lagrangian bound; 0 otherwise.
        error: The bound; None with `size`.
        threshold: `(1 + ε)` times the error of a plan that fits `from_nbytes`: the bound is
            larger.
    """

    from_nbytes: int
    to_nbytes: int
    proof: Proof
    multiplier: float
    error: float | None
    threshold: float


@dataclass(frozen=True, slots=True)
class Removal:
    """A removed option and its certificate: bounds that follow each other over all budgets."""

    block: str
    option: Option
    bounds: tuple[Bound, ...]


@dataclass(frozen=True, slots=True)
class PrunedSpace:
    """What is left of the space.

    Attributes:
        survivors: Block name to its remaining options, in the order of its cells.
        removed: Every removed option with its certificate.
        log10_before: Plans before, as a logarithm.
        log10_after: Plans afterwards.
        from_nbytes: The smallest budget that the certificates cover.
        to_nbytes: The largest one.
        epsilon: The share of the optimal error that they allow.
    """

    survivors: Mapping[str, tuple[Option, ...]]
    removed: tuple[Removal, ...]
    log10_before: float
    log10_after: float
    from_nbytes: int
    to_nbytes: int
    epsilon: float


def budget_axis(
    cells: Mapping[str, Sequence[Cell]],
    count: int,
    from_nbytes: int | None = None,
    to_nbytes: int | None = None,
) -> list[int]:
    """Budgets from the smallest plan to the one of least error, evenly spaced in bytes.

    Args:
        cells: The cells of each block.
        count: How many, at least 2; fewer where they coincide.
        from_nbytes: Start higher than the smallest plan.
        to_nbytes: End lower than the largest useful plan.

    Raises:
        InfeasibleBudget: `to_nbytes` is below the smallest plan.
    """
    program = Program(cells)
    floor, ceiling = program.relaxation.floor_nbytes, program.relaxation.ceiling_nbytes
    if to_nbytes is not None:
        program.solve(to_nbytes)
        ceiling = min(ceiling, to_nbytes)
    low = min(max(floor, from_nbytes or floor), ceiling)
    steps = np.linspace(low, ceiling, count)
    return sorted({int(step) for step in steps})


def prune(
    cells: Mapping[str, Sequence[Cell]], budgets: Sequence[int], epsilon: float
) -> PrunedSpace:
    """Removes every option that no plan within ε of the optimum uses, whatever the budget.

    Args:
        cells: The cells of each block.
        budgets: Each at least the size of the smallest plan. The certificates cover every
            budget from the smallest to the largest of them, listed or not; where there is
            something to prove, those listed are solved exactly first.
        epsilon: A share of the optimal error: 0.5 keeps what half more error still needs.
            What lies within it up to round-off stays, and so does what cannot be decided.

    Raises:
        InfeasibleBudget: A budget is smaller than the smallest plan.
    """
    program = Program(cells)
    items = program.items
    low, high = min(budgets), max(budgets)
    known = _KnownPlans(program, epsilon)
    known.solve(low)
    lagrangian = Lagrangian(items, program.relaxation, low, high)
    doubtful = np.flatnonzero(~lagrangian.needed(epsilon))
    for budget in budgets if len(doubtful) else ():
        known.solve(budget)
    ranges = _Ranges(items, known, lagrangian)
    ranges.scorer(doubtful, low, high, _HALVINGS)
    bounds = {
        number: found
        for number in doubtful.tolist()
        if (found := _settled(items, known, number, ranges.open[number])) is not None
    }
    removed = {
        number: tuple(sorted((*ranges.bounds[number], *found), key=lambda b: b.from_nbytes))
        for number, found in bounds.items()
    }
    return _collect(items, removed, low, high, epsilon)


class _KnownPlans:
    """Plans found so far, as the least known error by size: upper bounds of the optimum."""

    def __init__(self, program: Program, epsilon: float) -> None:
        self._program = program
        self._share = 1 + epsilon
        self._sizes: list[int] = program.relaxation.nbytes.tolist()
        self._errors: list[float] = program.relaxation.error.tolist()
        self.solve = cache(self._solve)

    def threshold(self, budget: int) -> float:
        """`(1 + ε)` times the least known error within a budget."""
        return self._share * self._errors[bisect_right(self._sizes, budget) - 1]

    def first_beaten(self, error: float) -> int | None:
        """The smallest size from which on a plan with this error is above the threshold."""
        place = bisect_right(self._errors, -error / self._share, key=lambda known: -known)
        while place < len(self._sizes) and not _exceeds(error, self._share * self._errors[place]):
            place += 1
        return self._sizes[place] if place < len(self._sizes) else None

    def _solve(self, budget: int) -> float:
        """`(1 + ε)` times the optimum within a budget."""
        solution = self._program.solve(budget)
        place = bisect_left(self._sizes, solution.nbytes)
        is_new = self._sizes[place : place + 1] != [solution.nbytes]
        if is_new and solution.error < self._errors[place - 1]:  # the floor is known: place > 0
            self._sizes.insert(place, solution.nbytes)
            self._errors.insert(place, solution.error)
        return self._share * solution.error


def _exceeds(error: float, threshold: float) -> bool:
    """Whether an error is above the threshold by more than round-off."""
    return error > threshold * (1 + _ROUND_OFF)


class _Ranges:
    """What sizes and Lagrangian bounds decide, range by range.

    Attributes:
        bounds: Cell number to the bounds found.
        open: Cell number to the ranges that they leave, smallest first.
    """

    def __init__(self, items: KnapsackItems, known: _KnownPlans, lagrangian: Lagrangian) -> None:
        self._known = known
        self._lagrangian = lagrangian
        floor = items.nbytes[items.smallest]
        self._smallest = int(floor.sum()) - floor[items.block] + items.nbytes
        self.bounds: dict[int, list[Bound]] = {n: [] for n in range(len(items.cells))}
        self.open: dict[int, list[tuple[int, int]]] = {n: [] for n in range(len(items.cells))}

    def scorer(self, cells: Integers, low: int, high: int, halvings: int) -> None:
        """Judges some cells for the budgets from `low` to `high`, halving where undecided."""
        threshold = self._known.threshold(low)
        error, multiplier = self._lagrangian.lower(cells, high)
        oversized = self._smallest[cells] > high
        decided = oversized | (error > threshold * (1 + _ROUND_OFF))
        for place in np.flatnonzero(decided).tolist():
            bound = (
                Bound(low, high, Proof.SIZE, 0.0, None, threshold)
                if oversized[place]
                else Bound(
                    low,
                    high,
                    Proof.LAGRANGIAN,
                    float(multiplier[place]),
                    float(error[place]),
                    threshold,
                )
            )
            self.bounds[int(cells[place])].append(bound)
        rest = cells[~decided]
        if len(rest) and halvings and low < high:
            middle = (low + high) // 2
            self.scorer(rest, low, middle, halvings - 1)
            self.scorer(rest, middle + 1, high, halvings - 1)
        else:
            for number in rest.tolist():
                self.open[number].append((low, high))


def _settled(
    items: KnapsackItems, known: _KnownPlans, number: int, ranges: Sequence[tuple[int, int]]
) -> list[Bound] | None:
    """The integer program's bounds for the ranges left open; None where the cell is needed.

    From the end of a range downwards: the best plan with the cell either is within ε of the
    optimum at its own size, or bounds every budget from there on.
    """
    if not ranges:
        return []
    forced = items.forcing(number)
    relaxation = Relaxation(forced)
    bounds: list[Bound] = []
    for low, high in _joined(ranges):
        budget = high
        while budget >= low:
            if budget < relaxation.floor_nbytes:
                bounds.append(Bound(low, budget, Proof.SIZE, 0.0, None, known.threshold(low)))
                break
            choice, proven = solve_knapsack(forced, relaxation, budget)
            if not proven or len(bounds) >= _PROGRAMS:
                return None
            error = forced.total_error(choice)
            start = max(forced.total_nbytes(choice), low)
            if not _exceeds(error, known.solve(start)):
                return None
            beaten = known.first_beaten(error)
            start = start if beaten is None else max(min(start, beaten), low)
            threshold = known.threshold(start)
            bounds.append(Bound(start, budget, Proof.PROGRAM, 0.0, error, threshold))
            budget = start - 1
    return bounds


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that follow each other as one, largest first."""
    joined: list[tuple[int, int]] = []
    for low, high in reversed(ranges):
        if joined and joined[-1][0] == high + 1:
            joined[-1] = (low, joined[-1][1])
        else:
            joined.append((low, high))
    return joined


def _collect(
    items: KnapsackItems,
    removed: Mapping[int, tuple[Bound, ...]],
    low: int,
    high: int,
    epsilon: float,
) -> PrunedSpace:
    survivors: dict[str, list[Option]] = {name: [] for name in items.names}
    for number, cell in enumerate(items.cells):
        if number not in removed:
            survivors[cell.block].append(cell.option)
    return PrunedSpace(
        survivors={name: tuple(options) for name, options in survivors.items()},
        removed=tuple(
            Removal(items.cells[number].block, items.cells[number].option, bounds)
            for number, bounds in removed.items()
        ),
        log10_before=sum(math.log10(count) for count in np.diff(items.first).tolist()),
        log10_after=sum(math.log10(len(options)) for options in survivors.values()),
        from_nbytes=low,
        to_nbytes=high,
        epsilon=epsilon,
    )


def verify(space: PrunedSpace, cells: Mapping[str, Sequence[Cell]]) -> bool:
    """Whether the certificates hold for these cells.

    The bounds of an option must follow each other over all budgets, and each must exceed its
    threshold. Sizes and Lagrangian bounds are recomputed in plain arithmetic, thresholds and
    the other bounds by the integer program.
    """
    optimum = cache(lambda budget: Program(cells).solve(budget).error)
    for removal in space.removed:
        ends = [space.from_nbytes - 1, *(bound.to_nbytes for bound in removal.bounds)]
        starts = [*(bound.from_nbytes for bound in removal.bounds), space.to_nbytes + 1]
        if starts != [end + 1 for end in ends]:
            return False
        for bound in removal.bounds:
            least = (1 + space.epsilon) * optimum(bound.from_nbytes)
            if bound.threshold < least * (1 - _ROUND_OFF) or not _holds(removal, bound, cells):
                return False
    return True


def _holds(removal: Removal, bound: Bound, cells: Mapping[str, Sequence[Cell]]) -> bool:
    """Whether no plan with the option is below the threshold at the end of the range."""
    (own,) = (cell for cell in cells[removal.block] if cell.option == removal.option)
    others = [choices for name, choices in cells.items() if name != removal.block]
    if bound.proof is Proof.SIZE:
        least = own.nbytes + sum(min(cell.nbytes for cell in choices) for choices in others)
        return least > bound.to_nbytes
    if bound.proof is Proof.PROGRAM:
        forced = {**cells, removal.block: [own]}
        return Program(forced).solve(bound.to_nbytes).error > bound.threshold
    price = bound.multiplier
    terms = [min(cell.error + price * cell.nbytes for cell in choices) for choices in others]
    total = math.fsum([own.error, price * (own.nbytes - bound.to_nbytes), *terms])
    return total > bound.threshold

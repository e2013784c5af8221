"""Pruning: which options no good plan uses, each with the bounds that prove it.

An option stays if some plan with it has, at some budget between the smallest and the largest one
asked for and within all limits, at most `(1 + ε)` times the optimum there. Budgets are whole
units of a resource and there are too many to look at each, so the proofs are for ranges: with a
larger budget the least error of a plan with the option only falls, and so does the optimum. Where
the first at the end of a range exceeds `(1 + ε)` times the second at its start, no budget of the
range needs the option.

The limits on other resources are the same at every budget. A bound may leave them out (without
them the least error with the option is only lower), but a plan that is compared with holds them.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bitfront.plan import Option
from bitfront.profile import Resource
from search.branch_and_bound import Row, relaxed_prices
from search.knapsack_items import Floats, Integers
from search.lagrangian import Lagrangian
from search.program import Program

# Whatever is this close to the threshold stays.
_ROUND_OFF = 1e-9
# A range is halved this often before the integer program is asked.
_HALVINGS = 11
# An option that this many integer programs do not decide stays.
_PROGRAMS = 20
# Where there are further limits, penalties are taken at this many budgets of those listed, and
# this many integer programs are solved in all, which is HiGHS' work then. A count and no time:
# the same cells always leave the same options.
_PENALTIES = 6
_LIMITED_PROGRAMS = 150


class Proof(StrEnum):
    """What shows that an option is not needed in a range of budgets."""

    FLOOR = "floor"
    LAGRANGIAN = "lagrangian"
    PROGRAM = "program"


@dataclass(frozen=True, slots=True)
class Bound:
    """From one budget to another: every plan with the option has at least this error.

    Attributes:
        from_budget: The smallest budget of the range, in whole units of the resource.
        to_budget: The largest one; the bound is taken there.
        proof: How the bound was found. With `floor`, no plan with the option fits: the least
            that it takes of some resource is too much.
        multiplier: The λ of a Lagrangian bound; 0 otherwise.
        error: The bound; None where no plan with the option fits, which `floor` and `program`
            can show.
        threshold: `(1 + ε)` times the error of a plan that fits `from_budget` and holds all
            limits: the bound is larger.
        penalties: The μ of each limit in a Lagrangian bound, by name; those left out are 0.
        exceeds: With `floor`, the name of the limit that is too low for the option, or of the
            resource where the budget is.
    """

    from_budget: int
    to_budget: int
    proof: Proof
    multiplier: float
    error: float | None
    threshold: float
    penalties: Mapping[str, float] = field(default_factory=dict)
    exceeds: str | None = None


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
        resource: What the budgets are about.
        limits: The limits that hold at every budget, as the job writes them.
        from_budget: The smallest budget that the certificates cover, in whole units.
        to_budget: The largest one.
        epsilon: The share of the optimal error that they allow.
    """

    survivors: Mapping[str, tuple[Option, ...]]
    removed: tuple[Removal, ...]
    log10_before: float
    log10_after: float
    resource: Resource
    limits: tuple[str, ...]
    from_budget: int
    to_budget: int
    epsilon: float


def budget_axis(
    program: Program, count: int, from_budget: int | None = None, to_budget: int | None = None
) -> list[int]:
    """Budgets from the cheapest plan within the limits to the one of least error, evenly spaced.

    Args:
        program: What is solved at the budgets.
        count: How many, at least 2; fewer where they coincide.
        from_budget: Start higher than the cheapest plan.
        to_budget: End lower than the dearest useful plan.

    Raises:
        InfeasibleBudget: No plan holds the limits, or `to_budget` is below the cheapest plan.
    """
    floor, ceiling = program.floor, program.ceiling
    if to_budget is not None:
        program.solve(to_budget)
        ceiling = min(ceiling, to_budget)
    low = min(max(floor, from_budget or floor), ceiling)
    steps = np.linspace(low, ceiling, count)
    return sorted({min(max(int(step), low), ceiling) for step in steps})


def prune(program: Program, budgets: Sequence[int], epsilon: float) -> PrunedSpace:
    """Removes every option that no plan within ε of the optimum uses, whatever the budget.

    Args:
        program: The cells, and the limits that hold at every budget.
        budgets: Each at least what the cheapest plan within the limits takes. The certificates
            cover every budget from the smallest to the largest of them, listed or not; where
            there is something to prove, those listed are solved exactly first.
        epsilon: A share of the optimal error: 0.5 keeps what half more error still needs.
            What lies within it up to round-off stays, and so does what cannot be decided.

    Raises:
        InfeasibleBudget: A budget is smaller than the cheapest plan.
    """
    items = program.items
    low, high = min(budgets), max(budgets)
    known = _KnownPlans(program, epsilon)
    known.solve(low)
    plain = Lagrangian(items, program.relaxation, low, high, program.sides)
    lagrangians = [plain, *_with_penalties(program, budgets)]
    doubtful = np.flatnonzero(~_needed(lagrangians, epsilon))
    for budget in budgets if len(doubtful) else ():
        known.solve(budget)
    ranges = _Ranges(program, known, lagrangians)
    ranges.judge(doubtful, low, high, _HALVINGS)
    removed: dict[int, tuple[Bound, ...]] = {}
    forced = _ForcedPrograms(program, known)
    for number in doubtful.tolist():
        found = forced.settle(number, ranges.open[number])
        if found is not None:
            bounds = (*ranges.bounds[number], *found)
            removed[number] = tuple(sorted(bounds, key=lambda bound: bound.from_budget))
    return _collect(program, removed, low, high, epsilon)


def _needed(lagrangians: Sequence[Lagrangian], epsilon: float) -> NDArray[np.bool_]:
    """The cells that some plan near the optimum is known to use."""
    found = lagrangians[0].needed(epsilon)
    for lagrangian in lagrangians[1:]:
        found |= lagrangian.needed(epsilon)
    return found


def _with_penalties(program: Program, budgets: Sequence[int]) -> list[Lagrangian]:
    """Bounds with the limits' prices at some budgets, where a limit has one."""
    if not program.sides:
        return []
    items, low, high = program.items, min(budgets), max(budgets)
    picked = np.linspace(0, len(budgets) - 1, _PENALTIES).astype(int)
    found: dict[tuple[float, ...], Lagrangian] = {}
    for budget in sorted({sorted(budgets)[place] for place in picked.tolist()}):
        rows = [Row(items.cost, budget), *(Row(side.cost, side.most) for side in program.sides)]
        prices = relaxed_prices(items, items.error, rows)
        if prices is None or not any(prices[1:]) or tuple(prices[1:]) in found:
            continue
        penalties = tuple(prices[1:])
        found[penalties] = Lagrangian(
            items, program.relaxation, low, high, program.sides, penalties
        )
    return list(found.values())


class _KnownPlans:
    """Plans within the limits found so far, as the least known error by cost: upper bounds."""

    def __init__(self, program: Program, epsilon: float) -> None:
        self._program = program
        self._share = 1 + epsilon
        relaxation = program.relaxation
        self._costs: list[int] = []
        self._errors: list[float] = []
        for step, cost in enumerate(relaxation.cost.tolist()):
            if not program.sides or program.holds_sides(relaxation.choice(step)):
                self._costs.append(cost)
                self._errors.append(float(relaxation.error[step]))
        self.solve = cache(self._solve)

    def threshold(self, budget: int) -> float:
        """`(1 + ε)` times the least known error within a budget."""
        return self._share * self._errors[bisect_right(self._costs, budget) - 1]

    def first_beaten(self, error: float) -> int | None:
        """The smallest cost from which on a plan with this error is above the threshold."""
        place = bisect_right(self._errors, -error / self._share, key=lambda known: -known)
        while place < len(self._costs) and not _exceeds(error, self._share * self._errors[place]):
            place += 1
        return self._costs[place] if place < len(self._costs) else None

    def _solve(self, budget: int) -> float:
        """`(1 + ε)` times the optimum within a budget."""
        solution = self._program.solve(budget)
        place = bisect_left(self._costs, solution.cost)
        if place == 0 or solution.error < self._errors[place - 1]:
            end = place
            while end < len(self._costs) and self._errors[end] >= solution.error:
                end += 1
            if self._costs[place : place + 1] != [solution.cost] or end > place:
                self._costs[place:end] = [solution.cost]
                self._errors[place:end] = [solution.error]
        return self._share * solution.error


def _exceeds(error: float, threshold: float) -> bool:
    """Whether an error is above the threshold by more than round-off."""
    return error > threshold * (1 + _ROUND_OFF)


class _Ranges:
    """What floors and Lagrangian bounds decide, range by range.

    Attributes:
        bounds: Cell number to the bounds found.
        open: Cell number to the ranges that they leave, smallest first.
    """

    def __init__(
        self, program: Program, known: _KnownPlans, lagrangians: Sequence[Lagrangian]
    ) -> None:
        items = program.items
        self._program = program
        self._known = known
        self._lagrangians = lagrangians
        floor = items.cost[items.cheapest]
        self._cheapest = int(floor.sum()) - floor[items.block] + items.cost
        self._beyond = self._beyond_limits()
        self._is_beyond = np.zeros(len(items.cells), dtype=bool)
        self._is_beyond[list(self._beyond)] = True
        self.bounds: dict[int, list[Bound]] = {n: [] for n in range(len(items.cells))}
        self.open: dict[int, list[tuple[int, int]]] = {n: [] for n in range(len(items.cells))}

    def _beyond_limits(self) -> dict[int, str]:
        """The cells that no plan within the limits has, and the limit of each."""
        items = self._program.items
        found: dict[int, str] = {}
        for side in self._program.sides:
            least = np.minimum.reduceat(side.cost, items.first[:-1])
            total = int(least.sum()) - least[items.block] + side.cost
            for number in np.flatnonzero(total > side.most).tolist():
                found.setdefault(number, side.limit.name)
        return found

    def judge(self, cells: Integers, low: int, high: int, halvings: int) -> None:
        """Judges some cells for the budgets from `low` to `high`, halving where undecided."""
        threshold = self._known.threshold(low)
        error, multiplier, which = self._lower(cells, high)
        oversized = (self._cheapest[cells] > high) | self._is_beyond[cells]
        decided = oversized | (error > threshold * (1 + _ROUND_OFF))
        for place in np.flatnonzero(decided).tolist():
            number = int(cells[place])
            bound = (
                Bound(
                    low,
                    high,
                    Proof.FLOOR,
                    0.0,
                    None,
                    threshold,
                    exceeds=self._beyond.get(number, str(self._program.resource)),
                )
                if oversized[place]
                else Bound(
                    low,
                    high,
                    Proof.LAGRANGIAN,
                    float(multiplier[place]),
                    float(error[place]),
                    threshold,
                    self._penalties(int(which[place])),
                )
            )
            self.bounds[number].append(bound)
        rest = cells[~decided]
        if len(rest) and halvings and low < high:
            middle = (low + high) // 2
            self.judge(rest, low, middle, halvings - 1)
            self.judge(rest, middle + 1, high, halvings - 1)
        else:
            for number in rest.tolist():
                self.open[number].append((low, high))

    def _lower(self, cells: Integers, budget: int) -> tuple[Floats, Floats, Integers]:
        """The largest lower bound of each cell, its multiplier, and whose it is."""
        pairs = [lagrangian.lower(cells, budget) for lagrangian in self._lagrangians]
        errors = np.stack([error for error, _ in pairs])
        which = errors.argmax(axis=0)
        columns = np.arange(len(cells))
        multipliers = np.stack([multiplier for _, multiplier in pairs])
        return errors[which, columns], multipliers[which, columns], which

    def _penalties(self, which: int) -> dict[str, float]:
        prices = self._lagrangians[which].penalties
        sides = self._program.sides
        return {side.limit.name: price for side, price in zip(sides, prices, strict=True) if price}


class _ForcedPrograms:
    """What the integer program with an option forced decides, as long as there is effort left."""

    def __init__(self, program: Program, known: _KnownPlans) -> None:
        self._program = program
        self._known = known
        self._left = _LIMITED_PROGRAMS if program.sides else math.inf

    def settle(self, number: int, ranges: Sequence[tuple[int, int]]) -> list[Bound] | None:
        """Bounds for the ranges left open; None where the cell is needed, or may be.

        From the end of a range downwards: the best plan with the cell either is within ε of
        the optimum at its own cost, or bounds every budget from there on.
        """
        if not ranges:
            return []
        known, resource = self._known, str(self._program.resource)
        forced = self._program.forcing(number)
        bounds: list[Bound] = []
        for low, high in _joined(ranges):
            budget = high
            while budget >= low:
                least = known.threshold(low)
                if budget < forced.relaxation.floor:
                    proof = Proof.FLOOR
                    bounds.append(Bound(low, budget, proof, 0.0, None, least, exceeds=resource))
                    break
                if len(bounds) >= _PROGRAMS or self._left <= 0:
                    return None
                self._left -= 1
                solution, proven = forced.attempt(budget)
                if not proven:
                    return None
                if solution is None:
                    bounds.append(Bound(low, budget, Proof.PROGRAM, 0.0, None, least))
                    break
                error = solution.least_error
                start = max(solution.cost, low)
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
    program: Program,
    removed: Mapping[int, tuple[Bound, ...]],
    low: int,
    high: int,
    epsilon: float,
) -> PrunedSpace:
    items = program.items
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
        resource=program.resource,
        limits=tuple(map(str, program.limits)),
        from_budget=low,
        to_budget=high,
        epsilon=epsilon,
    )

"""Pruning: which options no good plan uses, each with the bound that proves it.

For a multiplier λ ≥ 0 and a budget B, every plan within B has an error of at least
`L(λ) = Σ_blocks min_i (error_i + λ nbytes_i) - λB`; a plan that must use option i of a block has
at least `L(λ)` plus the option's reduced cost. An option is removed where, at every budget, such
a bound (or, where none decides, the integer program with the option forced) exceeds `(1 + ε)`
times the optimum.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitfront.plan import Option
from bitfront.profile import Cell
from search.knapsack import best_choice
from search.menu import Floats, Integers, Menu
from search.program import Program
from search.relaxation import Relaxation

# Whatever is this close to the threshold stays.
_ROUND_OFF = 1e-9
# Bounds are lowered by this share of their terms, more than double precision can lose.
_SUM_ROUND_OFF = 1e-12
# Steps of the relaxation around a budget, and over its whole range, to take bounds at.
_NEAR = 100
_SPREAD = 64

Booleans = NDArray[np.bool_]


class Proof(StrEnum):
    """What shows that an option is not needed at a budget."""

    SIZE = "size"
    LAGRANGIAN = "lagrangian"
    PROGRAM = "program"


@dataclass(frozen=True, slots=True)
class Bound:
    """At one budget: every plan with the option has at least this error.

    Attributes:
        budget: In bytes.
        proof: How the bound was found. With `size`, no plan with the option fits.
        multiplier: The λ of a Lagrangian bound; 0 otherwise.
        error: The bound; infinite with `size` (kept out of JSON as None).
        threshold: `(1 + ε)` times the optimum, which the bound exceeds.
    """

    budget: int
    proof: Proof
    multiplier: float
    error: float | None
    threshold: float


@dataclass(frozen=True, slots=True)
class Removal:
    """A removed option and its certificate: one bound for each budget."""

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
    """

    survivors: Mapping[str, tuple[Option, ...]]
    removed: tuple[Removal, ...]
    log10_before: float
    log10_after: float


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
    """Removes every option that no plan within ε of the optimum uses, at any of the budgets.

    Args:
        cells: The cells of each block.
        budgets: Each at least the size of the smallest plan.
        epsilon: A share of the optimal error: 0.5 keeps what half more error still needs.
    """
    program = Program(cells)
    menu = program.menu
    bounds: list[list[Bound]] = [[] for _ in menu.cells]
    survives = np.zeros(len(menu.cells), dtype=bool)
    lagrangian = _Lagrangian(menu, program.relaxation)
    thresholds = {budget: (1 + epsilon) * program.solve(budget).error for budget in budgets}
    # What bounds show to be needed at one budget need not be proven superfluous at another.
    for budget, threshold in thresholds.items():
        survives |= lagrangian.judge(budget, threshold * (1 + _ROUND_OFF), ~survives).needed
    for budget, threshold in thresholds.items():
        verdict = lagrangian.judge(budget, threshold * (1 + _ROUND_OFF), ~survives)
        for number in np.flatnonzero(verdict.undecided).tolist():
            error = _forced_optimum(menu, number, budget)
            if error is None or error <= threshold * (1 + _ROUND_OFF):
                survives[number] = True
            else:
                bounds[number].append(Bound(budget, Proof.PROGRAM, 0.0, error, threshold))
        for number in np.flatnonzero(verdict.refuted).tolist():
            bounds[number].append(verdict.bound(number, budget, threshold))
    return _collect(menu, survives, bounds)


def _collect(menu: Menu, survives: Booleans, bounds: Sequence[Sequence[Bound]]) -> PrunedSpace:
    survivors: dict[str, list[Option]] = {name: [] for name in menu.names}
    removed = []
    for number, cell in enumerate(menu.cells):
        if survives[number]:
            survivors[cell.block].append(cell.option)
        else:
            removed.append(Removal(cell.block, cell.option, tuple(bounds[number])))
    counts = np.diff(menu.first).tolist()
    return PrunedSpace(
        survivors={name: tuple(options) for name, options in survivors.items()},
        removed=tuple(removed),
        log10_before=sum(math.log10(count) for count in counts),
        log10_after=sum(math.log10(len(options)) for options in survivors.values()),
    )


def _forced_optimum(menu: Menu, number: int, budget: int) -> float | None:
    """The least error of a plan with a cell; None where it cannot be proven."""
    forced = menu.forcing(number)
    choice, proven = best_choice(forced, Relaxation(forced), budget)
    return forced.total_error(choice) if proven else None


@dataclass(frozen=True, eq=False)
class _Verdict:
    """What the Lagrangian bounds say at one budget, one entry a cell."""

    needed: Booleans
    refuted: Booleans
    undecided: Booleans
    oversized: Booleans
    lower: Floats
    multiplier: Floats

    def bound(self, number: int, budget: int, threshold: float) -> Bound:
        if self.oversized[number]:
            return Bound(budget, Proof.SIZE, 0.0, None, threshold)
        return Bound(
            budget,
            Proof.LAGRANGIAN,
            float(self.multiplier[number]),
            float(self.lower[number]),
            threshold,
        )


class _Row(NamedTuple):
    """At one multiplier λ: the relaxed optimum, and what forcing each cell does to it."""

    multiplier: float
    total: float  # L(λ) without its budget term
    reduced: Floats
    nbytes: int
    swap_nbytes: Integers
    error: float
    swap_error: Floats


class _Lagrangian:
    """Lower and upper bounds of the error with each cell forced, over a set of multipliers."""

    def __init__(self, menu: Menu, relaxation: Relaxation) -> None:
        self._menu = menu
        self._relaxation = relaxation
        self._rows: dict[int, _Row] = {}

    def _steps(self, budget: int) -> list[int]:
        """Steps of the relaxation to take bounds at: many near the budget, a few everywhere."""
        last = len(self._relaxation.slope)
        here = self._relaxation.steps_within(budget)
        near = range(max(here - _NEAR, 0), min(here + _NEAR, last) + 1)
        spread = np.linspace(0, last, min(_SPREAD, last + 1)).astype(np.int64).tolist()
        return sorted({*near, *spread})

    def _row(self, steps: int) -> _Row:
        """The bounds after some whole steps, where the next one sets the multiplier."""
        if steps not in self._rows:
            menu, slope = self._menu, self._relaxation.slope
            multiplier = float(slope[steps]) if steps < len(slope) else 0.0
            choice = self._relaxation.choice(steps)
            priced = menu.error + multiplier * menu.nbytes
            least = menu.least(priced)
            self._rows[steps] = _Row(
                multiplier=multiplier,
                total=float(least.sum()),
                reduced=priced - least[menu.block],
                nbytes=menu.total_nbytes(choice),
                swap_nbytes=menu.nbytes - menu.nbytes[choice][menu.block],
                error=menu.total_error(choice),
                swap_error=menu.error - menu.error[choice][menu.block],
            )
        return self._rows[steps]

    def judge(self, budget: int, threshold: float, wanted: Booleans) -> _Verdict:
        """Which of the wanted cells are needed at a budget, which are not, and which may be."""
        menu = self._menu
        lower = np.full(len(menu.cells), -np.inf)
        upper = np.full(len(menu.cells), np.inf)
        multiplier = np.zeros(len(menu.cells))
        steps = self._steps(budget)
        self._rows = {step: self._rows[step] for step in steps if step in self._rows}
        for row in map(self._row, steps):
            price = row.multiplier
            round_off = _SUM_ROUND_OFF * (abs(row.total) + price * budget)
            bound = row.total - price * budget + row.reduced - round_off
            better = bound > lower
            lower[better], multiplier[better] = bound[better], price
            fits = row.nbytes + row.swap_nbytes <= budget
            np.minimum(upper, np.where(fits, row.error + row.swap_error, np.inf), out=upper)
        floor = menu.nbytes[menu.smallest]
        oversized = int(floor.sum()) - floor[menu.block] + menu.nbytes > budget
        needed = wanted & ~oversized & (upper <= threshold)
        refuted = wanted & ~needed & (oversized | (lower > threshold))
        return _Verdict(needed, refuted, wanted & ~needed & ~refuted, oversized, lower, multiplier)


def verify(space: PrunedSpace, cells: Mapping[str, Sequence[Cell]]) -> bool:
    """Whether each size and Lagrangian bound of a certificate holds, by plain arithmetic."""
    for removal in space.removed:
        (own,) = (c for c in cells[removal.block] if c.option == removal.option)
        others = [options for name, options in cells.items() if name != removal.block]
        for bound in removal.bounds:
            if bound.proof is Proof.SIZE:
                least = own.nbytes + sum(min(c.nbytes for c in options) for options in others)
                if least <= bound.budget:
                    return False
            elif bound.proof is Proof.LAGRANGIAN:
                price = bound.multiplier
                terms = [min(c.error + price * c.nbytes for c in options) for options in others]
                total = math.fsum([own.error + price * (own.nbytes - bound.budget), *terms])
                if total <= bound.threshold:
                    return False
    return True

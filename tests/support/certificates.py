"""Whether the certificates of a pruned space hold: the slow check of what `search.prune` claims."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from search.program import Program
from search.prune import Bound, Proof, PrunedSpace

ROUND_OFF = 1e-9


def verify(space: PrunedSpace, program: Program) -> bool:
    """Whether the certificates hold for a program's cells and limits.

    The bounds of an option must follow each other over all budgets, and each must exceed its
    threshold. Floors and Lagrangian bounds are recomputed in plain arithmetic, thresholds and
    the other bounds by the integer program.
    """
    if (space.resource, space.limits) != (program.resource, tuple(map(str, program.limits))):
        return False
    places = {(c.block, c.option): number for number, c in enumerate(program.items.cells)}
    optimum = cache(lambda budget: program.solve(budget).least_error)
    for removal in space.removed:
        number = places[removal.block, removal.option]
        ends = [space.from_budget - 1, *(bound.to_budget for bound in removal.bounds)]
        starts = [*(bound.from_budget for bound in removal.bounds), space.to_budget + 1]
        if starts != [end + 1 for end in ends]:
            return False
        for bound in removal.bounds:
            least = (1 + space.epsilon) * optimum(bound.from_budget)
            if bound.threshold < least * (1 - ROUND_OFF) or not _holds(number, bound, program):
                return False
    return True


def _holds(number: int, bound: Bound, program: Program) -> bool:
    """Whether no plan with the option is below the threshold at the end of the range."""
    if bound.proof is Proof.FLOOR:
        amounts = {str(program.resource): (program.items.cost, bound.to_budget)}
        amounts |= {side.limit.name: (side.cost, side.most) for side in program.sides}
        cost, most = amounts[str(bound.exceeds)]
        return math.fsum(_least_terms(program, number, cost.tolist())) > most
    if bound.proof is Proof.PROGRAM:
        solution, proven = program.forcing(number).attempt(bound.to_budget)
        if solution is None:
            return proven and bound.error is None
        return proven and solution.least_error > bound.threshold
    terms = program.items.error + bound.multiplier * program.items.cost
    spent = bound.multiplier * bound.to_budget
    for side in program.sides:
        price = bound.penalties.get(side.limit.name, 0.0)
        terms = terms + price * side.cost
        spent += price * side.most
    return math.fsum([*_least_terms(program, number, terms.tolist()), -spent]) > bound.threshold


def _least_terms(program: Program, number: int, terms: Sequence[float]) -> list[float]:
    """The least term of every block, and of one cell's block that cell's own."""
    items = program.items
    own = int(items.block[number])
    return [
        terms[number] if block == own else min(terms[start:end])
        for block, (start, end) in enumerate(pairwise(items.first.tolist()))
    ]

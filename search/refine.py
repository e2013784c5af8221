"""Refinement: which swaps of a few blocks around a measured plan are worth trying.

The program adds up cells that were each measured alone. Around its plans a block gets its next
wider option, and up to two others their next narrower ones, so that the plan takes no more; the
divergence of the whole plan then says what the cells could not.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bitfront.plan import Option
from bitfront.profile import Cell, Resource
from bitfront.samples import SampleResults
from search.comparison import Comparison
from search.knapsack_items import Integers
from search.resources import whole_amount

Choice = Mapping[str, Option]

_SURELY: Final = 1.0
"""A plan takes the place of another if it is better by so many standard errors of their pairs."""
_MOST_STEPS: Final = 48
"""So many steps up, and so many down, are combined: the most promising ones."""


@dataclass(frozen=True, slots=True)
class MeasuredPlan:
    """A plan without recovery that was evaluated.

    Attributes:
        choice: The option of every block.
        samples: What came out for each selection sample.
        is_refined: Whether it was proposed as a swap.
    """

    choice: Choice
    samples: SampleResults
    is_refined: bool = False


@dataclass(frozen=True, slots=True)
class _Step:
    """A block's next option: the change in error, and in what is taken of each resource."""

    block: str
    option: Option
    error: float
    change: Integers


class Refiner:
    """Proposes swaps.

    Args:
        cells: All cells of every block whose resources are known.
        resources: What a plan may not take more of, the one that orders the options first.
        targets: What a plan may take of each resource at most; refined in turn.
    """

    def __init__(
        self,
        cells: Mapping[str, Sequence[Cell]],
        resources: Sequence[Resource],
        targets: Sequence[Sequence[int]],
    ) -> None:
        self._amounts = {
            name: {
                cell.option: np.array(
                    [whole_amount(cell, one) for one in resources], dtype=np.int64
                )
                for cell in own
            }
            for name, own in cells.items()
        }
        self._errors = {(c.block, c.option): c.error for own in cells.values() for c in own}
        self._targets = [np.array(target, dtype=np.int64) for target in sorted(map(tuple, targets))]

    def propose(
        self,
        plans: Sequence[MeasuredPlan],
        errors: Mapping[tuple[str, Option], float] | None = None,
    ) -> Iterator[Choice]:
        """Choices that are worth a trial, the most promising first; measured ones among them.

        The target with the fewest refined plans comes first.

        Args:
            plans: What was measured, in the order in which it was proposed.
            errors: What stands for the errors of the cells.
        """
        known = [plan for plan in plans if self._is_known(plan.choice)]
        taken = [self._taken(plan.choice) for plan in known]
        counts = [0] * len(self._targets)
        for plan, own in zip(known, taken, strict=True):
            if plan.is_refined and (place := self._target_of(own)) is not None:
                counts[place] += 1
        for place in sorted(range(len(counts)), key=lambda place: (counts[place], place)):
            most = self._targets[place]
            within = [
                plan for plan, own in zip(known, taken, strict=True) if bool((own <= most).all())
            ]
            if within:
                choice = incumbent(within).choice
                yield from self.swaps(choice, most, errors or self._errors)

    def swaps(
        self, choice: Choice, most: Integers, errors: Mapping[tuple[str, Option], float]
    ) -> Iterator[Choice]:
        """One block a step up, none to two others a step down, within the limits.

        The lowest sum of errors comes first.
        """
        ups, downs = (self._steps(choice, errors, up=up) for up in (True, False))
        room = most - self._taken(choice)
        found: list[tuple[float, tuple[_Step, ...]]] = []
        for up in ups:
            others = [step for step in downs if step.block != up.block]
            changes = np.array([step.change for step in others]).reshape(-1, len(room))
            gains = np.array([step.error for step in others])
            if bool((up.change <= room).all()):
                found.append((up.error, (up,)))
            fits = (up.change + changes <= room).all(axis=1)
            found += [(up.error + float(gains[n]), (up, others[n])) for n in np.flatnonzero(fits)]
            first, second = np.triu_indices(len(others), 1)
            both = (up.change + changes[first] + changes[second] <= room).all(axis=1)
            both &= ~fits[first] & ~fits[second]  # one of them alone would do
            found += [
                (up.error + float(gains[a] + gains[b]), (up, others[a], others[b]))
                for a, b in zip(first[both], second[both], strict=True)
            ]
        for _, steps in sorted(found, key=lambda one: one[0]):
            yield {**choice, **{step.block: step.option for step in steps}}

    def _steps(
        self, choice: Choice, errors: Mapping[tuple[str, Option], float], *, up: bool
    ) -> list[_Step]:
        """The next option of every block in one direction, the least error first."""
        steps = []
        for name, option in choice.items():
            amounts = self._amounts[name]
            own = amounts[option]
            beyond = [
                (int(amount[0]), errors[name, other], other)
                for other, amount in amounts.items()
                if (amount[0] > own[0] if up else amount[0] < own[0])
            ]
            if beyond:
                nearest = min(beyond, key=lambda one: (one[0] if up else -one[0], one[1]))[2]
                change = errors[name, nearest] - errors[name, option]
                steps.append(_Step(name, nearest, change, amounts[nearest] - own))
        return sorted(steps, key=lambda step: step.error)[:_MOST_STEPS]

    def _is_known(self, choice: Choice) -> bool:
        return choice.keys() == self._amounts.keys() and all(
            option in self._amounts[name] for name, option in choice.items()
        )

    def _taken(self, choice: Choice) -> Integers:
        total: Integers = sum(
            (self._amounts[name][option] for name, option in choice.items()),
            start=np.zeros(len(self._targets[0]), dtype=np.int64),
        )
        return total

    def _target_of(self, taken: NDArray[np.int64]) -> int | None:
        """The first target that a plan holds."""
        holds = (place for place, most in enumerate(self._targets) if bool((taken <= most).all()))
        return next(holds, None)


def incumbent(plans: Sequence[MeasuredPlan]) -> MeasuredPlan:
    """Which of some plans is to be refined: each gives way only to a surely better one.

    Taken in their order, so that the luckiest of many swaps is not taken for the best.
    """
    best = plans[0]
    for plan in plans[1:]:
        pair = Comparison.of(plan.samples, best.samples)
        if math.isfinite(pair.divergence_se) and pair.divergence < -_SURELY * pair.divergence_se:
            best = plan
    return best

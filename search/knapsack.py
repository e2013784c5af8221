"""The exact optimum under one budget: labels around the relaxed optimum.

The relaxation leaves a feasible choice (the base) and a multiplier. Measured by that
multiplier, every other cell has a reduced cost of at least zero, and a choice can only beat the
best known one if its reduced costs sum to at most the gap between that one and the relaxed
optimum. Few cells remain within the gap; their combinations are built block by block as labels
(cost and error relative to the base), dropping what is dominated or outside of the gap.

Errors are compared as 64-bit integers, scaled by a power of two so that the base's error has 60
bits: sums are exact whatever their order, and equal errors are equal.
"""

from dataclasses import dataclass
from math import frexp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from search.knapsack_items import Floats, Integers, KnapsackItems
from search.relaxation import Relaxation

# Labels kept after each block: a first search finds a good choice, so that the next ones need
# fewer. The last limit is for few blocks, whose combinations are almost all kept.
LABEL_LIMITS = (2**9, 2**12, 2**17, 2**20)
_FEW_BLOCKS = 10
_HISTORY = 2**25  # labels remembered over all blocks, 8 bytes each
_ERROR_BITS = 60
_ROUND_OFF = 2.0**-48


class _History(NamedTuple):
    """Where labels come from: the label one block before, and the cell added."""

    parent: NDArray[np.int32]
    cell: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class _Labels:
    """Partial choices: cost, error and reduced cost relative to the base, and their history."""

    cost: Integers
    error: Integers
    reduced: Floats
    parent: Integers
    cell: Integers

    def take(self, kept: Integers) -> "_Labels":
        return _Labels(
            self.cost[kept],
            self.error[kept],
            self.reduced[kept],
            self.parent[kept],
            self.cell[kept],
        )

    def history(self) -> _History:
        return _History(self.parent.astype(np.int32), self.cell.astype(np.int32))


@dataclass(frozen=True, eq=False)
class _Core:
    """The problem relative to the base: one entry a cell, and what may still be spent."""

    base: Integers
    cost: Integers
    error: Integers
    reduced: Floats
    slack: int
    multiplier: float
    gap: float
    worst: int
    unit: float
    round_off: float


def _core(items: KnapsackItems, relaxation: Relaxation, budget: int) -> _Core:
    steps = relaxation.steps_within(budget)
    base = relaxation.choice(steps)
    multiplier = float(relaxation.slope[steps])
    slack = budget - items.total_cost(base)
    cost = items.cost - items.cost[base][items.block]
    worst = items.total_error(base)
    exponent = _ERROR_BITS - frexp(worst)[1]
    scaled = np.rint(np.ldexp(np.minimum(items.error, 2 * worst), exponent)).astype(np.int64)
    reduced = items.error - items.error[base][items.block] + multiplier * cost
    lowest = items.least(reduced)  # zero but for round-off
    reduced -= lowest[items.block]
    gap = multiplier * slack - float(lowest.sum())
    reduced[items.error > worst] = np.inf
    reduced[base] = 0.0
    within = reduced <= gap
    magnitude = np.where(within, items.error + multiplier * np.abs(cost), 0.0)
    round_off = _ROUND_OFF * (float(-items.least(-magnitude).sum()) + gap)
    return _Core(
        base=base,
        cost=cost,
        error=scaled - scaled[base][items.block],
        reduced=reduced,
        slack=slack,
        multiplier=multiplier,
        gap=gap,
        worst=int(scaled[base].sum()),
        unit=float(np.ldexp(1.0, -exponent)),
        round_off=round_off,
    )


def _later(amounts: list[int]) -> Integers:
    """For each place the sum from there to the end; one entry more than amounts."""
    return np.cumsum([0, *amounts[::-1]], dtype=np.int64)[::-1]


class _Search:
    """Labels built over the blocks of a core, with the best choice found so far."""

    def __init__(self, items: KnapsackItems, core: _Core) -> None:
        self.items = items
        self.core = core
        self.best = core.base
        self.best_error = 0
        self.best_cost = 0

    @property
    def reach(self) -> float:
        """The largest reduced cost with which a choice may be as good as the best one."""
        return self.core.gap + self.best_error * self.core.unit + self.core.round_off

    def _candidates(self) -> list[Integers]:
        """Per open block the cells within reach without the base; the likeliest block first."""
        core, items = self.core, self.items
        within = core.reduced <= self.reach
        within[core.base] = False
        cells = np.flatnonzero(within)
        blocks = np.split(cells, np.flatnonzero(np.diff(items.block[cells])) + 1)
        open_blocks = [block for block in blocks if len(block)]
        return sorted(open_blocks, key=lambda block: float(core.reduced[block].min()))

    def run(self, limit: int) -> bool:
        """Searches with at most `limit` labels a block; returns whether none was cut off."""
        core = self.core
        blocks = self._candidates()
        # The cost that the blocks to come can give back, and that which they can still use.
        relief = _later([min(0, int(core.cost[block].min())) for block in blocks])
        use = _later([max(0, int(core.cost[block].max())) for block in blocks])
        zero = np.zeros(1, dtype=np.int64)
        labels = _Labels(zero, zero, np.zeros(1), zero, zero)
        history: list[_History] = []
        complete = True
        limit = min(limit, _HISTORY // max(len(blocks), 1))
        for i, cells in enumerate(blocks):
            labels = self._extended(labels, cells, core.slack - int(relief[i + 1]))
            self._update(labels, history)
            # A unit that stays unused in the end costs the multiplier.
            unused = np.maximum(core.slack - int(use[i + 1]) - labels.cost, 0)
            within = labels.reduced + core.multiplier * unused <= self.reach
            labels = labels.take(np.flatnonzero(within))
            if len(labels.cost) > limit:
                complete = False
                nearest = np.argpartition(labels.reduced, limit)[:limit]
                labels = labels.take(np.sort(nearest))
            history.append(labels.history())
        return complete

    def _extended(self, labels: _Labels, cells: Integers, room: int) -> _Labels:
        """Every label with every cell of one more block (the base first), undominated."""
        core = self.core
        base = core.base[self.items.block[cells[0]]]
        choices = np.concatenate([[base], cells])
        count = len(labels.cost)
        extended = _Labels(
            cost=np.add.outer(core.cost[choices], labels.cost).ravel(),
            error=np.add.outer(core.error[choices], labels.error).ravel(),
            reduced=np.add.outer(core.reduced[choices], labels.reduced).ravel(),
            parent=np.tile(np.arange(count), len(choices)),
            cell=np.repeat(choices, count),
        )
        kept = np.flatnonzero(
            (extended.reduced <= self.reach)
            & (extended.cost <= room)
            & (extended.error <= core.worst)
        )
        kept = kept[np.lexsort((extended.error[kept], extended.cost[kept]))]
        error = extended.error[kept]
        before = np.minimum.accumulate(np.concatenate([[np.iinfo(np.int64).max], error[:-1]]))
        return extended.take(kept[error < before])

    def _update(self, labels: _Labels, history: list[_History]) -> None:
        """Takes over the best label that fits, completed by the base."""
        last = int(np.searchsorted(labels.cost, self.core.slack, side="right")) - 1
        if last < 0:
            return
        # Undominated labels in order of cost: the dearest that fits has the least error.
        found = (int(labels.error[last]), int(labels.cost[last]))
        if found >= (self.best_error, self.best_cost):
            return
        self.best_error, self.best_cost = found
        self.best = self.core.base.copy()
        past = labels.history()
        for earlier in (*history[::-1], None):
            cell = int(past.cell[last])
            self.best[self.items.block[cell]] = cell
            if earlier is None:
                break
            last, past = int(past.parent[last]), earlier


def solve_knapsack(
    items: KnapsackItems, relaxation: Relaxation, budget: int
) -> tuple[Integers, bool]:
    """The choice of least error within a budget that is at least the floor.

    Among choices of equal error it takes the one of least cost.

    Returns:
        The choice, and whether it is proven optimal: not so where even the largest number of
        labels was not enough.
    """
    if budget >= relaxation.ceiling:
        return relaxation.choice(len(relaxation.slope)), True
    search = _Search(items, _core(items, relaxation, budget))
    limits = LABEL_LIMITS if len(items) <= _FEW_BLOCKS else LABEL_LIMITS[:-1]
    proven = any(search.run(limit) for limit in limits)
    return search.best, proven

"""The cells of every block as flat arrays: what the integer program chooses from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum, isfinite

import numpy as np
from numpy.typing import NDArray

from bitfront.errors import InvalidMetric, SpecError
from bitfront.profile import Cell, Resource
from search.resources import whole_amount

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Sums and differences of whole units must fit 64-bit integers.
_MOST_UNITS = 2**61


def by_block(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """The cells of each block, blocks and cells in the order in which they come."""
    blocks: dict[str, list[Cell]] = {}
    for cell in cells:
        blocks.setdefault(cell.block, []).append(cell)
    return blocks


def whole_amounts(cells: Sequence[Cell], resource: Resource) -> Integers:
    """What each cell takes of a resource, in whole units.

    Raises:
        InvalidMetric: An amount is negative or not finite, or they are too large to be summed.
        SpecError: A cell's amount was not measured.
    """
    for cell in cells:
        amount = cell.amount(resource)
        if amount is not None and not 0 <= amount < float("inf"):
            raise InvalidMetric(f"{resource} of {cell.option} in {cell.block}", str(amount))
    amounts = [whole_amount(cell, resource) for cell in cells]
    if sum(amounts) > _MOST_UNITS:
        raise InvalidMetric(f"{resource} of all options", f"{sum(amounts):,}")
    return np.array(amounts, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class KnapsackItems:
    """Cells numbered through, block by block.

    `first[k]` to `first[k + 1]` are the cells of block `k`; `block`, `cost` and `error` have
    one entry a cell. A choice is one cell number a block. The cost is what the cell takes of
    one resource, in whole units.
    """

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    first: Integers
    block: Integers
    cost: Integers
    error: Floats

    @classmethod
    def of(
        cls, cells: Mapping[str, Sequence[Cell]], resource: Resource = Resource.NBYTES
    ) -> "KnapsackItems":
        """The items of some blocks, with what they take of a resource as their cost.

        Raises:
            SpecError: There is no block, or a block without cells, or a cell whose cost was
                not measured.
            InvalidMetric: An error or a cost is negative or not finite.
        """
        if not cells:
            raise SpecError("there are no blocks to choose precisions for: profile the model first")
        for name, choices in cells.items():
            if not choices:
                raise SpecError(f"block {name} has no cells: profile the model first")
            for cell in choices:
                if not isfinite(cell.error) or cell.error < 0:
                    raise InvalidMetric(f"error of {cell.option} in {name}", str(cell.error))
        flat = tuple(cell for choices in cells.values() for cell in choices)
        counts = [len(choices) for choices in cells.values()]
        return cls(
            names=tuple(cells),
            cells=flat,
            first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            block=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
            cost=whole_amounts(flat, resource),
            error=np.array([cell.error for cell in flat], dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def cheapest(self) -> Integers:
        """The choice of least cost; among equally cheap cells the one of least error."""
        order = np.lexsort((self.error, self.cost, self.block))
        return order[self.first[:-1]]

    @cached_property
    def most_precise(self) -> Integers:
        """The choice of least error; among equally good cells the one of least cost."""
        order = np.lexsort((self.cost, self.error, self.block))
        return order[self.first[:-1]]

    def least(self, values: Floats) -> Floats:
        """The least of one value a cell, block by block (values in the last dimension)."""
        return np.minimum.reduceat(values, self.first[:-1], axis=-1)

    def total_cost(self, choice: Integers) -> int:
        """The cost of a choice."""
        return int(self.cost[choice].sum())

    def total_error(self, choice: Integers) -> float:
        """The summed error of a choice, rounded once."""
        return fsum(self.error[choice].tolist())

    def without_rivals(self, cell: int) -> Integers:
        """The numbers of all cells but those of one cell's block, and the cell."""
        is_rival = self.block == self.block[cell]
        is_rival[cell] = False
        return np.flatnonzero(~is_rival)

    def forcing(self, cell: int) -> "KnapsackItems":
        """The same items with one cell as the only one of its block."""
        block = int(self.block[cell])
        kept = self.without_rivals(cell)
        removed = len(self.block) - len(kept)
        first = self.first.copy()
        first[block + 1 :] -= removed
        return KnapsackItems(
            names=self.names,
            cells=tuple(self.cells[i] for i in kept),
            first=first,
            block=self.block[kept],
            cost=self.cost[kept],
            error=self.error[kept],
        )

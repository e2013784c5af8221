"""The cells of every block as flat arrays: what the integer program chooses from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum, isfinite

import numpy as np
from numpy.typing import NDArray

from bitfront.errors import InvalidMetric, SpecError
from bitfront.profile import Cell

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def by_block(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """The cells of each block, blocks and cells in the order in which they come."""
    blocks: dict[str, list[Cell]] = {}
    for cell in cells:
        blocks.setdefault(cell.block, []).append(cell)
    return blocks


@dataclass(frozen=True, eq=False)
class KnapsackItems:
    """Cells numbered through, block by block.

    `first[k]` to `first[k + 1]` are the cells of block `k`; `block`, `nbytes` and `error` have
    one entry a cell. A choice is one cell number a block.
    """

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    first: Integers
    block: Integers
    nbytes: Integers
    error: Floats

    @classmethod
    def of(cls, cells: Mapping[str, Sequence[Cell]]) -> "KnapsackItems":
        """The items of some blocks.

        Raises:
            SpecError: There is no block, or a block without cells.
            InvalidMetric: An error is negative or not finite.
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
            nbytes=np.array([cell.nbytes for cell in flat], dtype=np.int64),
            error=np.array([cell.error for cell in flat], dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def smallest(self) -> Integers:
        """The choice of fewest bytes; among equally small cells the one of least error."""
        order = np.lexsort((self.error, self.nbytes, self.block))
        return order[self.first[:-1]]

    def least(self, values: Floats) -> Floats:
        """The least of one value a cell, block by block (values in the last dimension)."""
        return np.minimum.reduceat(values, self.first[:-1], axis=-1)

    def total_nbytes(self, choice: Integers) -> int:
        """The bytes of a choice."""
        return int(self.nbytes[choice].sum())

    def total_error(self, choice: Integers) -> float:
        """The summed error of a choice, rounded once."""
        return fsum(self.error[choice].tolist())

    def forcing(self, cell: int) -> "KnapsackItems":
        """The same items with one cell as the only one of its block."""
        block = int(self.block[cell])
        kept = np.flatnonzero((self.block != block) | (np.arange(len(self.block)) == cell))
        removed = len(self.block) - len(kept)
        first = self.first.copy()
        first[block + 1 :] -= removed
        return KnapsackItems(
            names=self.names,
            cells=tuple(self.cells[i] for i in kept),
            first=first,
            block=self.block[kept],
            nbytes=self.nbytes[kept],
            error=self.error[kept],
        )

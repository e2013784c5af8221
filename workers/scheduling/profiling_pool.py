"""What profiling asks of the workers, whoever they are: Ray tasks, or this very process."""

from collections.abc import Callable, Sequence
from typing import Protocol

from bitfront.layers import Block
from bitfront.plan import Option, Plan
from bitfront.profile import Cell, ClipChoice


class ClipPool(Protocol):
    """Searches the clips of a job."""

    def walk_clips(
        self, chains: Sequence[Sequence[tuple[Block, Option]]]
    ) -> list[list[ClipChoice]]:
        """The clips of the blocks of each chain, each block after those before it."""

    def clips(
        self,
        work: Sequence[tuple[Block, Sequence[Option]]],
        prefix: Plan,
        on_choice: Callable[[Block, tuple[Option, ClipChoice]], None],
    ) -> None:
        """Searches the clips of options block by block, after a prefix."""


class ProfilingPool(ClipPool, Protocol):
    """Measures the cells of a job, and searches its clips."""

    def cells(
        self, work: Sequence[tuple[Block, Sequence[Option]]], on_cell: Callable[[Block, Cell], None]
    ) -> None:
        """Measures options block by block; each cell is handed over as soon as it is known."""

    def scores(
        self, work: Sequence[tuple[Block, Sequence[Option]]], on_cell: Callable[[Block, Cell], None]
    ) -> None:
        """Estimates options by the job's score, as `cells` measures them."""

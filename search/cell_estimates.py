"""Estimated cells: scores of all options, corrected by the cells that were measured."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bitfront.plan import Option
from bitfront.profile import Cell

Place = tuple[str, Option]


def place_of(cell: Cell) -> Place:
    """A cell's block and option."""
    return cell.block, cell.option


def corrected(scored: Sequence[Cell], measured: Mapping[Place, Cell]) -> list[Cell]:
    """Every option's cell: as it was measured, or else with a corrected score as its error.

    A score is multiplied by `exp((sum_i r_i + r) / (n + 1))`: `r_i` are the logarithms of
    measured error over score of the block's `n` measured cells, `r` is the mean of that
    logarithm over all measured cells. So a block with no measured cell gets the model's mean
    ratio, one with many its own, and the order of a block's scores stays as it is.

    Args:
        scored: A cell for every option, with its score as the error.
        measured: Cells of some of them.
    """
    ratios: dict[str, list[float]] = defaultdict(list)
    for cell in scored:
        known = measured.get(place_of(cell))
        if known is not None and known.error > 0 and cell.error > 0:
            ratios[cell.block].append(math.log(known.error / cell.error))
    everywhere = [ratio for own in ratios.values() for ratio in own]
    mean = math.fsum(everywhere) / len(everywhere) if everywhere else 0.0

    def factor(block: str) -> float:
        own = ratios[block]
        return math.exp((math.fsum(own) + mean) / (len(own) + 1))

    factors = {block: factor(block) for block in {cell.block for cell in scored}}
    return [
        measured.get(place_of(cell)) or replace(cell, error=cell.error * factors[cell.block])
        for cell in scored
    ]


def most_used(plans: Iterable[Mapping[str, Cell]]) -> list[Cell]:
    """The estimated cells that some plans use, those of most plans first.

    Args:
        plans: The cell of each block, by its name.
    """
    uses = Counter(cell for plan in plans for cell in plan.values() if cell.is_estimate)
    return [cell for cell, _ in uses.most_common()]

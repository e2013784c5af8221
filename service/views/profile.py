"""A model's profile as text: entropies, blocks and cells."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitfront.units import size_text
from service.views.tables import table

if TYPE_CHECKING:
    from bitfront.profile import Cell
    from storage.records import OptionRecord, ProfileRecord


def profile_table(profile: "ProfileRecord", options: Sequence["OptionRecord"]) -> str:
    """Layers with their entropies in order of execution, then blocks with their cells."""
    entropies = {entropy.layer: entropy for entropy in profile.entropies}
    blocks = {layer: block.name for block in profile.blocks for layer in block.layers}
    rows = []
    for layer in profile.layers:
        entropy = entropies.get(layer.name)
        rows.append(
            [
                layer.name,
                str(layer.tower),
                f"{layer.rows} x {layer.columns}",
                "-" if entropy is None else f"{entropy.entropy:.3f}",
                "-" if entropy is None or entropy.dependency is None
                else f"{entropy.dependency:.3f}",
                blocks.get(layer.name, "-"),
            ]
        )  # fmt: skip
    header = ["layer", "tower", "shape", "entropy", "dependency", "block"]
    text = table(header, rows, left=(0, 1, 5))
    return f"{text}\n\n{cells_table(options)}" if options else text


def option_rows(options: Sequence["OptionRecord"]) -> list[dict[str, object]]:
    """Every option of every block with its cell, under stable names."""
    return [
        {
            "block": record.cell.block,
            "option": str(record.cell.option),
            "nbytes": record.cell.nbytes,
            "kv_nbytes": record.cell.kv_nbytes,
            "error": record.cell.error,
            "measured": not record.cell.is_estimate,
            "survives": record.survives,
        }
        for record in options
    ]


def cells_table(options: Sequence["OptionRecord"]) -> str:
    """How many options each block has and keeps, from the smallest to the most accurate."""
    by_block: dict[str, list[OptionRecord]] = defaultdict(list)
    for record in options:
        by_block[record.cell.block].append(record)
    rows = []
    for name, records in by_block.items():
        cells = sorted((record.cell for record in records), key=_held)
        kept = sum(record.survives for record in records)
        rows.append(
            [
                name,
                str(len(records)),
                str(sum(not record.cell.is_estimate for record in records)),
                str(kept),
                size_text(_held(cells[0])),
                f"{cells[0].error:.3g}",
                size_text(_held(cells[-1])),
                f"{cells[-1].error:.3g}",
            ]
        )
    header = [
        "block",
        "options",
        "measured",
        "kept",
        "smallest",
        "its error",
        "largest",
        "its error",
    ]
    return table(header, rows, left=(0,))


def _held(cell: "Cell") -> int:
    """Bytes of a block's layers, or of the KV cache that it is a place of."""
    return cell.nbytes + (cell.kv_nbytes or 0)

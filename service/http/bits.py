"""The bits of a configuration as tables: transformer blocks by modules, tower by tower."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from bitfront.kv_cache import KvFormat, names_cache
from bitfront.layers import Layer
from bitfront.precision import Precision


@dataclass(frozen=True, slots=True)
class BitsCell:
    """The bits of a layer's weights, or of a place of the KV cache.

    Attributes:
        bits: So many.
        text: The short form of precision or format.
        input_bits: Of the layer's input, where they are worth telling.
    """

    bits: int
    text: str
    input_bits: int | None = None

    @classmethod
    def of(cls, text: str) -> Self:
        """The cell of a short form."""
        if KvFormat.is_one(text):
            return cls(KvFormat.parse(text).bits, text)
        own = Precision.parse(text)
        inputs = None if own.activation_bits in (8, 16) else own.activation_bits
        return cls(own.weight_bits, text, inputs)


@dataclass(frozen=True, slots=True)
class BitsTable:
    """The layers of a tower that lie in blocks which look alike.

    Attributes:
        tower: Its name.
        prefix: What the names of all blocks begin with.
        modules: The names of the columns.
        rows: The rest of each block's name, and a cell for each module that it has.
        singles: The layers outside of blocks, by name.
    """

    tower: str
    prefix: str
    modules: tuple[str, ...]
    rows: tuple[tuple[str, tuple[BitsCell | None, ...]], ...]
    singles: tuple[tuple[str, BitsCell], ...]


def bits_tables(layers: Sequence[Layer], plan: Mapping[str, str]) -> list[BitsTable]:
    """The tables of a configuration, in order of execution, and last that of a cache with codes.

    Args:
        layers: Of the model; empty where they are not recorded, then there is one list of singles.
        plan: The short forms, by the names of layers and of places of the KV cache.
    """
    cells = {name: BitsCell.of(text) for name, text in plan.items()}
    cache = {name: cell for name, cell in cells.items() if names_cache(name)}
    if not layers:
        return [BitsTable("layers", "", (), (), tuple(cells.items()))]
    tables = [
        _table(tower, [layer for layer in layers if layer.tower == tower], cells)
        for tower in dict.fromkeys(layer.tower for layer in layers)
    ]
    return [*tables, BitsTable("KV cache", "", (), (), tuple(cache.items()))] if cache else tables


def _table(tower: str, layers: Sequence[Layer], plan: Mapping[str, BitsCell]) -> BitsTable:
    scopes: dict[str, dict[str, BitsCell]] = {}
    singles: list[tuple[str, BitsCell]] = []
    for layer in layers:
        cell = plan.get(layer.name)
        if cell is None:
            continue
        if layer.name.startswith(f"{layer.scope}."):
            leaf = layer.name.removeprefix(f"{layer.scope}.")
            scopes.setdefault(layer.scope, {})[_short(leaf)] = cell
        else:
            singles.append((_short(layer.name), cell))
    modules = tuple(dict.fromkeys(module for found in scopes.values() for module in found))
    prefix = _prefix(list(scopes))
    rows = [
        (scope.removeprefix(prefix), tuple(found.get(module) for module in modules))
        for scope, found in scopes.items()
    ]
    return BitsTable(str(tower), prefix, modules, tuple(rows), tuple(singles))


def _prefix(names: Sequence[str]) -> str:
    """What several dotted names begin with; nothing where there is only one."""
    parts = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for level in zip(*parts, strict=False):
        if len(names) < 2 or len(set(level)) > 1:
            break
        shared.append(f"{level[0]}.")
    return "".join(shared)


def _short(name: str) -> str:
    return name.removesuffix(".weight").removesuffix("_weight")

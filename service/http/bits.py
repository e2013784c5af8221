"""The bits of a configuration as tables: transformer blocks by modules, tower by tower."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitfront.layers import Layer
from bitfront.precision import Precision


@dataclass(frozen=True, slots=True)
class BitsTable:
    """The layers of a tower that lie in blocks which look alike.

    Attributes:
        tower: Its name.
        prefix: What the names of all blocks begin with.
        modules: The names of the columns.
        rows: The rest of each block's name, and a precision for each module that it has.
        singles: The layers outside of blocks, by name.
    """

    tower: str
    prefix: str
    modules: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Precision | None, ...]], ...]
    singles: tuple[tuple[str, Precision], ...]


def bits_tables(layers: Sequence[Layer], plan: Mapping[str, Precision]) -> list[BitsTable]:
    """The tables of a configuration, in order of execution.

    Args:
        layers: Of the model; empty where they are not recorded, then there is one list of singles.
        plan: The precision of each layer.
    """
    if not layers:
        return [BitsTable("layers", "", (), (), tuple(plan.items()))]
    return [
        _table(tower, [layer for layer in layers if layer.tower == tower], plan)
        for tower in dict.fromkeys(layer.tower for layer in layers)
    ]


def _table(tower: str, layers: Sequence[Layer], plan: Mapping[str, Precision]) -> BitsTable:
    scopes: dict[str, dict[str, Precision]] = {}
    singles: list[tuple[str, Precision]] = []
    for layer in layers:
        precision = plan.get(layer.name)
        if precision is None:
            continue
        if layer.name.startswith(f"{layer.scope}."):
            leaf = layer.name.removeprefix(f"{layer.scope}.")
            scopes.setdefault(layer.scope, {})[_short(leaf)] = precision
        else:
            singles.append((_short(layer.name), precision))
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

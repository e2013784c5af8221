"""Options: the joint precisions of a block's layers, and which of them are worth measuring."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import product

from bitfront.choices import cache_formats, layer_precisions
from bitfront.errors import SpecError
from bitfront.kv_cache import KvPlace
from bitfront.layers import Block, Layer
from bitfront.plan import Option
from bitfront.precision import Precision
from bitfront.profile import Cell, Resource
from bitfront.spec import QuantizerSpec, SpaceSpec
from search.ties import Ties

_MOST_OPTIONS = 100_000


def block_options(
    block: Block,
    layers: Sequence[Layer],
    space: SpaceSpec,
    quantizer: QuantizerSpec,
    ties: Ties = (),
) -> list[Option]:
    """Every joint option of a block: `k^d` for `d` layers, or ties of layers, of `k` precisions.

    Args:
        block: The block.
        layers: All layers of the model.
        space: What the layers may take.
        quantizer: How their inputs are rounded.
        ties: Layers that share a precision.

    Raises:
        SpecError: There are too many to list, let alone to measure.
    """
    known = {layer.name: layer for layer in layers}
    first = {name: tie[0] for tie in ties for name in tie}
    choices: dict[str, list[Precision]] = {}
    for name in block.layers:
        own, shared = layer_precisions(known[name], space, quantizer), first.get(name, name)
        choices[shared] = [one for one in choices.get(shared, own) if one in own]
    count = math.prod(map(len, choices.values()))
    if count > _MOST_OPTIONS:
        raise SpecError(
            f"block {block.name} has {count:,} joint options, more than {_MOST_OPTIONS:,}: "
            "search fewer precisions, or lower partition.depth"
        )
    found = (dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values()))
    return [Option(tuple(one[first.get(name, name)] for name in block.layers)) for one in found]


def cache_options(places: Sequence[KvPlace], space: SpaceSpec) -> dict[Block, list[Option]]:
    """The places of a KV cache that are searched, each as a block with its options."""
    if space.kv_cache is None:
        return {}
    return {
        Block.of_place(place.name): [
            Option((), form) for form in cache_formats(place.kept, space.kv_cache)
        ]
        for place in places
    }


def screen(
    block: Block,
    options: Sequence[Option],
    singles: Mapping[str, Mapping[Option, Cell]],
    slack: float,
) -> list[Option]:
    """The options that single-layer measurements do not rule out, in their order.

    An option is ruled out if another one is at most as large with less than `1 / slack` of
    its error, both predicted by the sums over their layers. Options that treat all layers
    alike stay: the uniform baselines are made of them.

    Args:
        block: The block.
        options: Its joint options.
        singles: Layer name to its measured cells, by the option of that layer alone.
        slack: Larger keeps more; below 1 counts as 1, but 0 keeps everything.
    """
    if slack == 0 or len(block.layers) == 1:
        return list(options)
    predicted = [_predict(block, option, singles) for option in options]
    least_error: dict[int, float] = {}  # of the options at most so large
    least = math.inf
    for nbytes, error in sorted(predicted):
        least_error[nbytes] = least = min(least, error)
    return [
        option
        for option, (nbytes, error) in zip(options, predicted, strict=True)
        if error <= least_error[nbytes] * max(slack, 1.0) or _is_even(option)
    ]


def _predict(
    block: Block, option: Option, singles: Mapping[str, Mapping[Option, Cell]]
) -> tuple[int, float]:
    cells = [
        singles[name][Option((precision,))]
        for name, precision in zip(block.layers, option.precisions, strict=True)
    ]
    return sum(cell.nbytes for cell in cells), sum(cell.error for cell in cells)


def _is_even(option: Option) -> bool:
    return len(set(option.bits)) == 1


def undominated(
    cells: Sequence[Cell], resources: Collection[Resource] = (Resource.NBYTES,)
) -> list[Cell]:
    """The cells that no other one beats in error and resources, smallest first.

    Args:
        cells: Of one block; the resources of each are known.
        resources: Where less of one can save a cell.
    """
    amounts = {cell: _amounts(cell, resources) for cell in cells}
    kept: list[Cell] = []
    for cell in sorted(
        cells, key=lambda c: (amounts[c], c.error, c.nbytes, c.bit_operations, c.option)
    ):
        if not any(
            other.error <= cell.error and _no_worse(amounts[other], amounts[cell]) for other in kept
        ):
            kept.append(cell)
    return sorted(kept, key=lambda cell: (cell.nbytes, cell.error, cell.option))


def _amounts(cell: Cell, resources: Collection[Resource]) -> tuple[float, ...]:
    amounts = [cell.amount(resource) for resource in resources]
    if None in amounts:
        raise SpecError(f"a resource of {cell.option} in {cell.block} is not measured")
    return tuple(amount for amount in amounts if amount is not None)


def _no_worse(amounts: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return all(own <= other for own, other in zip(amounts, others, strict=True))

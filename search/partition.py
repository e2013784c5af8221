"""The partition: neighbouring layers that depend on each other form a block (Q-VLM, Eqs 6, 7)."""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from statistics import fmean

from bitfront.layers import Block, Layer, LayerKind
from bitfront.profile import LayerEntropy
from bitfront.spec import Granularity, PartitionSpec
from search.ties import Ties

Layers = tuple[Layer, ...]


def partition(
    layers: Sequence[Layer],
    entropies: Sequence[LayerEntropy],
    spec: PartitionSpec,
    ties: Ties = (),
) -> tuple[Block, ...]:
    """The blocks of a model, in order of execution; every layer is in exactly one.

    Args:
        layers: In order of execution, tower by tower. The towers never share a block.
        entropies: One for each layer that takes an input. An embedding takes none: it
            depends on nothing and stays alone.
        spec: The granularity, the depth and the threshold h0. With `transformer_block`, the
            layers of one transformer block are cut into blocks of at most `depth` layers;
            what lies outside of one stays alone.
        ties: Layers that share a precision: blocks that part them are joined, whatever the depth.
    """
    groups: list[Layers] = []
    for _, tower in groupby(layers, key=lambda layer: layer.tower):
        groups += _GROUPINGS[spec.granularity](tuple(tower), entropies, spec)
    joined = _joined(groups, ties)
    return tuple(Block(_name(group), group[0].tower, _names(group)) for group in joined)


def neighbouring(blocks: Sequence[Block]) -> list[tuple[Block, Block]]:
    """The pairs of blocks of one tower that follow each other."""
    return [(one, other) for one, other in pairwise(blocks) if one.tower == other.tower]


def _joined(groups: Sequence[Layers], ties: Ties) -> list[Layers]:
    """The groups, with those joined that part tied layers."""
    tie_of = {layer: tie for tie in ties for layer in tie}
    found: list[Layers] = []
    for group in groups:
        before = found[-1] if found else ()
        tied = {tie_of[layer.name] for layer in before if layer.name in tie_of}
        if any(tie_of.get(layer.name) in tied for layer in group):
            found[-1] += group
        else:
            found.append(group)
    return found


def _each_layer(
    tower: Layers, _entropies: Sequence[LayerEntropy], _spec: PartitionSpec
) -> list[Layers]:
    return [(layer,) for layer in tower]


def _by_scope(
    tower: Layers, _entropies: Sequence[LayerEntropy], spec: PartitionSpec
) -> list[Layers]:
    groups: list[Layers] = []
    for scope, members in groupby(tower, key=lambda layer: layer.scope):
        depth = 1 if scope == tower[0].tower else spec.depth
        groups += _cut(tuple(members), depth)
    return groups


def _by_entropy(
    tower: Layers, entropies: Sequence[LayerEntropy], spec: PartitionSpec
) -> list[Layers]:
    """Walks the tower's input groups, and extends a block while its mean dependency exceeds h0."""
    known = {entropy.layer: entropy for entropy in entropies}
    threshold = _threshold(known, spec)
    groups: list[Layers] = []
    block: list[Layers] = []
    inside: list[float] = []
    for shared in _input_groups(tower, spec.depth):
        link = _dependency(block[-1], shared, known) if block else None
        width = sum(map(len, block)) + len(shared)
        if link is not None and width <= spec.depth and fmean([*inside, link]) > threshold:
            block.append(shared)
            inside.append(link)
            continue
        if block:
            groups.append(sum(block, ()))
        block, inside = [shared], []
    if block:
        groups.append(sum(block, ()))
    return groups


_GROUPINGS = {
    Granularity.LAYER: _each_layer,
    Granularity.TRANSFORMER_BLOCK: _by_scope,
    Granularity.ENTROPY: _by_entropy,
}


def _threshold(known: Mapping[str, LayerEntropy], spec: PartitionSpec) -> float:
    """The job's h0, or the mean dependency over the model."""
    if spec.threshold is not None:
        return spec.threshold
    dependencies = [e.dependency for e in known.values() if e.dependency is not None]
    return fmean(dependencies) if dependencies else float("inf")


def _input_groups(tower: Layers, depth: int) -> list[Layers]:
    """Layers that share one input (q, k and v) together, cut where they exceed the depth."""
    groups: list[Layers] = []
    for _, members in groupby(tower, key=lambda layer: layer.source):
        groups += _cut(tuple(members), depth)
    return groups


def _cut(layers: Layers, depth: int) -> list[Layers]:
    return [layers[start : start + depth] for start in range(0, len(layers), depth)]


def _dependency(before: Layers, after: Layers, known: Mapping[str, LayerEntropy]) -> float | None:
    """The dependency of one input group on the one before; None where a layer takes no input."""
    if LayerKind.EMBEDDING in (before[0].kind, after[0].kind):
        return None
    if before[0].name not in known or after[0].name not in known:
        return None
    return known[before[-1].name].dependency


def _names(group: Layers) -> tuple[str, ...]:
    return tuple(layer.name for layer in group)


def _name(group: Layers) -> str:
    """A short, unique name: the first layer's, and how the last one's differs from it."""
    names = [layer.name.removesuffix(".weight") for layer in group]
    if len(names) == 1:
        return names[0]
    first, last = names[0].split("."), names[-1].split(".")
    shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return f"{names[0]}..{'.'.join(last[shared:])}"

"""The partition follows Q-VLM, Eq 7: dependent neighbours share a block, towers never do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.layers import Layer, LayerKind, Tower
from bitfront.profile import LayerEntropy
from bitfront.spec import Granularity, PartitionSpec
from search.partition import partition


def make_layer(
    name: str,
    tower: Tower = Tower.VISION,
    *,
    source: str | None = None,
    scope: str | None = None,
    kind: LayerKind = LayerKind.LINEAR,
) -> Layer:
    return Layer(name, tower, kind, 4, 4, 1, source or f"input of {name}", scope or tower)


def chain(
    dependencies: list[float | None], tower: Tower = Tower.VISION
) -> tuple[list[Layer], list[LayerEntropy]]:
    """Layers a, b, c, ...; the n-th dependency links the n-th layer to the next one."""
    names = [f"{tower}.{chr(97 + n)}" for n in range(len(dependencies))]
    return (
        [make_layer(name, tower) for name in names],
        [LayerEntropy(n, 0.5, d) for n, d in zip(names, dependencies, strict=True)],
    )


def shape(layers: list[Layer], entropies: list[LayerEntropy], spec: PartitionSpec) -> list[int]:
    return [len(block.layers) for block in partition(layers, entropies, spec)]


def test_a_block_grows_while_its_mean_dependency_exceeds_the_threshold() -> None:
    layers, entropies = chain([0.9, 0.2, 0.9, 0.9, None])

    # a-b: 0.9; a-b-c: 0.55 is not above 0.6; c-d: 0.9; c-d-e: 0.9.
    assert shape(layers, entropies, PartitionSpec(threshold=0.6)) == [2, 3]


def test_the_default_threshold_is_the_mean_over_the_model() -> None:
    layers, entropies = chain([0.9, 0.1, 0.5, 0.1, None])  # mean 0.4

    # a-b: 0.9; a-b-c: 0.5; full. d-e: 0.1 is not above 0.4.
    assert shape(layers, entropies, PartitionSpec()) == [3, 1, 1]


@pytest.mark.parametrize(("threshold", "sizes"), [(float("1e9"), [1] * 7), (-1e9, [3, 3, 1])])
def test_extreme_thresholds_give_singles_and_full_blocks(
    threshold: float, sizes: list[int]
) -> None:
    layers, entropies = chain([0.5] * 6 + [None])

    assert shape(layers, entropies, PartitionSpec(threshold=threshold)) == sizes


def test_towers_never_share_a_block() -> None:
    vision, first = chain([0.9, 0.9], Tower.VISION)
    text, second = chain([0.9, None], Tower.TEXT)

    assert shape(vision + text, first + second, PartitionSpec(threshold=0.0)) == [2, 2]


def test_layers_that_share_one_input_are_one_group() -> None:
    layers = [make_layer(name, source="x") for name in "qkv"]
    layers += [make_layer("out"), make_layer("up"), make_layer("down")]
    entropies = [LayerEntropy(layer.name, 0.5, 0.9) for layer in layers]

    blocks = partition(layers, entropies, PartitionSpec(threshold=0.0))

    assert [block.layers for block in blocks] == [("q", "k", "v"), ("out", "up", "down")]


def test_an_input_group_is_cut_only_where_it_exceeds_the_depth() -> None:
    layers = [make_layer(name, source="x") for name in "qkv"]
    entropies = [LayerEntropy(layer.name, 0.5, 0.9) for layer in layers]

    blocks = partition(layers, entropies, PartitionSpec(depth=2, threshold=0.0))

    assert [block.layers for block in blocks] == [("q", "k"), ("v",)]


def test_a_layer_without_an_input_stays_alone() -> None:
    layers, entropies = chain([0.9, 0.9, None])
    embedding = make_layer("embedding", kind=LayerKind.EMBEDDING)

    blocks = partition([embedding, *layers], entropies, PartitionSpec(threshold=0.0))

    assert [len(block.layers) for block in blocks] == [1, 3]


def test_transformer_blocks_are_cut_at_the_depth() -> None:
    layers = [make_layer("stem"), make_layer("patch")]
    layers += [make_layer(f"blocks.0.{n}", scope="blocks.0") for n in range(4)]
    layers += [make_layer(f"blocks.1.{n}", scope="blocks.1") for n in range(4)]

    blocks = partition(layers, [], PartitionSpec(granularity=Granularity.TRANSFORMER_BLOCK))

    assert [len(block.layers) for block in blocks] == [1, 1, 3, 1, 3, 1]


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.sampled_from(Granularity),
    st.integers(1, 3),
    st.none() | st.floats(0, 1),
)
def test_every_layer_is_in_one_block_in_order_and_names_are_unique(
    dependencies: list[float], granularity: Granularity, depth: int, threshold: float | None
) -> None:
    layers, entropies = chain([*dependencies])

    blocks = partition(
        layers, entropies, PartitionSpec(granularity=granularity, depth=depth, threshold=threshold)
    )

    assert [name for block in blocks for name in block.layers] == [layer.name for layer in layers]
    assert all(1 <= len(block.layers) <= depth for block in blocks)
    assert len({block.name for block in blocks}) == len(blocks)


def test_a_block_is_named_after_its_first_layer_and_how_the_last_one_differs() -> None:
    names = [
        "v.blocks.0.attn.in_proj_weight",
        "v.blocks.0.attn.out.weight",
        "v.blocks.0.mlp.weight",
    ]
    layers = [make_layer(name) for name in names]
    entropies = [LayerEntropy(name, 0.5, 0.9) for name in names]

    (block,) = partition(layers, entropies, PartitionSpec(threshold=0.0))

    assert block.name == "v.blocks.0.attn.in_proj_weight..mlp"


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_blocks_that_part_tied_layers_are_joined(granularity: Granularity, depth: int) -> None:
    names = ["q", "k", "v", "o", "gate", "up", "down"]
    sources = ["x", "x", "x", "a", "h", "h", "g"]
    layers = [
        make_layer(f"{scope}.{name}", scope=scope, source=f"{scope}.{source}")
        for scope in ("0", "1")
        for name, source in zip(names, sources, strict=True)
    ]
    entropies = [LayerEntropy(layer.name, 0.5, 0.5) for layer in layers]
    spec = PartitionSpec(granularity=granularity, depth=depth, threshold=0.9)
    ties = [
        tuple(f"{scope}.{name}" for name in tie)
        for scope in ("0", "1")
        for tie in (("q", "k", "v"), ("gate", "up"))
    ]

    blocks = partition(layers, entropies, spec, ties)

    assert [name for block in blocks for name in block.layers] == [layer.name for layer in layers]
    for tie in ties:
        assert sum(bool(set(tie) & set(block.layers)) for block in blocks) == 1
    if granularity is Granularity.LAYER:
        assert [len(block.layers) for block in blocks] == [3, 1, 2, 1] * 2

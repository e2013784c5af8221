"""Layers that a target multiplies as one matrix share a precision in all that is searched."""

from itertools import product

import pytest

from bitfront.errors import SpecError
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.spec import QuantizerSpec, SpaceSpec
from bitfront.targets import COMPRESSED_TENSORS, DeploymentTarget
from search.keep import check_keep
from search.options import block_options
from search.ties import holds_ties, ties_of

PARTS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
LAYERS = tuple(
    Layer(f"model.layers.{n}.{part}.weight", Tower.LANGUAGE, LayerKind.LINEAR, 8, 8, 1, part, "x")
    for n in range(2)
    for part in PARTS
)
TIES = ties_of(DeploymentTarget.COMPRESSED_TENSORS, LAYERS)
SPACE = SpaceSpec(weight_bits=(2, 4, 8), activation_bits=(16,))


def test_the_projections_of_each_attention_and_mlp_are_tied() -> None:
    shorts = [[name.split(".")[2] + name.split(".")[4][0] for name in tie] for tie in TIES]

    assert sorted(shorts) == [["0g", "0u"], ["0q", "0k", "0v"], ["1g", "1u"], ["1q", "1k", "1v"]]
    assert ties_of(DeploymentTarget.ANY, LAYERS) == ()
    assert ties_of(DeploymentTarget.ONNXRUNTIME, LAYERS) == ()
    alone = [layer for layer in LAYERS if "k_proj" not in layer.name and "v_proj" not in layer.name]
    assert len(ties_of(DeploymentTarget.COMPRESSED_TENSORS, alone)) == 2
    assert COMPRESSED_TENSORS.fused


def test_the_options_of_a_block_are_those_that_hold_its_ties() -> None:
    block = Block("b", Tower.LANGUAGE, tuple(layer.name for layer in LAYERS[:4]))

    options = block_options(block, LAYERS, SPACE, QuantizerSpec(), TIES)

    widths = {tuple(p.weight_bits for p in option.precisions) for option in options}
    assert widths == {(qkv, qkv, qkv, o) for qkv, o in product((2, 4, 8), repeat=2)}
    assert len(options) == 9
    assert all(holds_ties(Plan.from_options([(block, option)]), TIES[:1]) for option in options)


def test_a_block_is_refused_by_what_its_ties_leave_of_it() -> None:
    block = Block("b", Tower.LANGUAGE, tuple(layer.name for layer in LAYERS[:7]))
    space = SpaceSpec(weight_bits=(2, 3, 4, 5, 6, 8), activation_bits=(16,))

    assert len(block_options(block, LAYERS, space, QuantizerSpec(), TIES)) == 6**4
    with pytest.raises(SpecError, match="279,936 joint options"):
        block_options(block, LAYERS, space, QuantizerSpec())


def test_a_plan_that_parts_what_is_tied_does_not_hold() -> None:
    plan = Plan.uniform([layer.name for layer in LAYERS], Precision(4))
    changed = Plan.of({**dict(plan), LAYERS[1].name: Precision(8)})

    assert holds_ties(plan, TIES)
    assert not holds_ties(changed, TIES)


def test_tied_layers_cannot_be_kept_at_several_widths() -> None:
    with pytest.raises(SpecError, match=r"q_proj, .*v_proj as one matrix"):
        check_keep(LAYERS, SPACE.model_copy(update={"keep": {"*q_proj": 8}}), TIES)
    check_keep(LAYERS, SPACE.model_copy(update={"keep": {"*_proj": 8}}), TIES)

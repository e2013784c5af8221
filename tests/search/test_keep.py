"""`space.keep` names layers as they are shown, and every seed of a search holds it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.choices import kept_width
from bitfront.errors import SpecError
from bitfront.layers import Layer, LayerKind, Tower
from bitfront.plan import Plan
from bitfront.precision import WEIGHT_BITS, Precision
from bitfront.spec import QuantizerSpec, SpaceSpec
from search.keep import check_keep, holds_keep
from search.seeds import full_baseline, uniform_plans

NAMES = (
    "visual.conv1.weight",
    "visual.transformer.resblocks.0.attn.in_proj_weight",
    "visual.proj",
    "token_embedding.weight",
)
LAYERS = [
    Layer(
        name,
        Tower.VISION,
        LayerKind.EMBEDDING if "embedding" in name else LayerKind.LINEAR,
        8,
        64,
        1,
        name,
        "vision",
    )
    for name in NAMES
]


@given(
    keep=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(WEIGHT_BITS)),
    widths=st.lists(st.sampled_from(WEIGHT_BITS), min_size=1, unique=True),
    activations=st.lists(st.sampled_from((4, 8, 16)), min_size=1, unique=True),
)
def test_every_baseline_holds_keep(
    keep: dict[str, int], widths: list[int], activations: list[int]
) -> None:
    space = SpaceSpec(
        weight_bits=tuple(widths), activation_bits=tuple(activations), groups=(16,), keep=keep
    )

    plans = [full_baseline(LAYERS, space).plan, *uniform_plans(LAYERS, space, QuantizerSpec())]

    assert all(plan.precision(name).weight_bits == keep[name] for plan in plans for name in keep)
    assert all(holds_keep(plan, LAYERS, space) for plan in plans)


def test_a_plan_that_breaks_keep_does_not_hold_it() -> None:
    space = SpaceSpec(keep={"visual.*": 8})

    assert not holds_keep(Plan.uniform(NAMES, Precision(4)), LAYERS, space)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("visual.conv1", "visual.conv1.weight"),
        ("visual.conv1.weight", "visual.conv1.weight"),
        ("*.attn.in_proj", "visual.transformer.resblocks.0.attn.in_proj_weight"),
        ("visual.proj", "visual.proj"),
    ],
)
def test_a_layer_is_named_with_or_without_its_weight(pattern: str, name: str) -> None:
    space = SpaceSpec(keep={pattern: 8})

    check_keep(LAYERS, space)

    assert [layer.name for layer in LAYERS if kept_width(layer, space)] == [name]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            {"visual.conv2": 8},
            "space.keep: 'visual.conv2' matches no layer of this model: "
            "the nearest are visual.conv1",
        ),
        ({"*conv*1d": 8}, "the nearest are visual.conv1|its layers are visual.conv1, "),
        ({"Visual.proj*": 8}, "'Visual.proj\\*' matches no layer .* the nearest are visual.proj"),
        (
            {"visual.*": 8, "visual.conv1": 4},
            r"space.keep: visual.conv1 is to be kept at 8 \('visual.\*'\) and 4 \('visual.conv1'\)"
            ": write patterns that do not overlap",
        ),
    ],
)
def test_a_pattern_that_fixes_nothing_or_two_widths_is_refused(
    keep: dict[str, int], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check_keep(LAYERS, SpaceSpec(keep=keep))

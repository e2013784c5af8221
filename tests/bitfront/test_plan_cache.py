"""Plans that round the KV cache: what they say, and that others stay what they were."""

import json
from dataclasses import replace

import pytest

from bitfront.errors import SpecError
from bitfront.kv_cache import KvFormat
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Configuration, Distillation, Option, Plan
from bitfront.precision import Precision
from service.http.bits import BitsCell, bits_tables
from service.views.describe import layer_lines

KEYS, VALUES = "m.0.self_attn:keys", "m.0.self_attn:values"
LAYER_NAMES = ("m.0.self_attn.k_proj.weight", "m.0.self_attn.v_proj.weight")
LAYERS = [
    Layer(name, Tower.LANGUAGE, LayerKind.LINEAR, 4, 4, 1, "x", "m.0") for name in LAYER_NAMES
]
WEIGHTS = Plan.uniform(LAYER_NAMES, Precision(4, 16))


def test_sixteen_bits_are_what_a_plan_does_not_name() -> None:
    plan = WEIGHTS.with_cache({KEYS: KvFormat(16), VALUES: KvFormat(16)})

    assert plan == WEIGHTS
    assert plan.digest == WEIGHTS.digest
    assert "self_attn:" not in json.dumps(Configuration(plan).to_dict())
    assert plan.option(Block.of_place(KEYS)) == Option((), KvFormat(16))


def test_a_cache_is_part_of_what_a_configuration_is() -> None:
    plans = [
        WEIGHTS,
        WEIGHTS.with_cache({KEYS: KvFormat(4)}),
        WEIGHTS.with_cache({VALUES: KvFormat(4)}),
        WEIGHTS.with_cache({KEYS: KvFormat(4, is_rotated=True)}),
        WEIGHTS.with_cache({KEYS: KvFormat(4, is_uniform=False)}),
        WEIGHTS.with_cache({KEYS: KvFormat(4, 0.01)}),
    ]

    assert len({Configuration(plan).digest for plan in plans}) == len(plans)
    for plan in plans:
        assert Configuration.from_dict(Configuration(plan).to_dict()).plan == plan


def test_a_plan_is_made_of_options_and_gives_them_back() -> None:
    blocks = [Block("b", Tower.LANGUAGE, LAYER_NAMES), Block.of_place(KEYS), Block.of_place(VALUES)]
    options = [Option.parse(text) for text in ("w3a16+w4a16", "kv2k", "kv8")]

    plan = Plan.from_options(zip(blocks, options, strict=True))

    assert [plan.option(block) for block in blocks] == options
    with pytest.raises(SpecError, match="has 1 layers, but option w4a16"):
        Plan.from_options([(blocks[1], Option((Precision(4),)))])
    with pytest.raises(SpecError, match="has 2 layers, but option kv2k"):
        Plan.from_options([(blocks[0], options[1])])


def test_a_part_has_the_cache_behind_its_layers() -> None:
    plan = WEIGHTS.with_cache({KEYS: KvFormat(4), VALUES: KvFormat(2)})

    assert plan.part([LAYER_NAMES[0]]).cache == ((KEYS, KvFormat(4)),)
    assert plan.part([]).cache == ()
    assert plan.part(LAYER_NAMES) == plan


def test_values_know_no_rotary_embedding() -> None:
    with pytest.raises(SpecError, match="only keys pass a rotary embedding"):
        WEIGHTS.with_cache({VALUES: KvFormat(4, is_rotated=True)})


def test_a_person_sees_the_cache_beside_the_layer_whose_output_it_keeps() -> None:
    plan = WEIGHTS.with_cache({KEYS: KvFormat(4), VALUES: KvFormat(2)})

    (_, line) = layer_lines(plan, LAYERS)
    assert line == (
        "  m.0: self_attn.k_proj w4a16 (its keys kv4), self_attn.v_proj w4a16 (its values kv2)"
    )
    tables = bits_tables(LAYERS, plan.to_dict())
    assert [table.tower for table in tables] == ["language", "KV cache"]
    assert tables[1].singles == ((KEYS, BitsCell(4, "kv4")), (VALUES, BitsCell(2, "kv2")))
    assert [table.tower for table in bits_tables(LAYERS, WEIGHTS.to_dict())] == ["language"]


def test_a_plan_that_rounds_the_cache_is_not_distilled() -> None:
    plan, distil = WEIGHTS.with_cache({KEYS: KvFormat(4)}), Distillation(steps=4)
    content = Configuration(plan).to_dict() | {"distil": distil.to_dict()}

    for make in (
        lambda: replace(plan, distil=distil),
        lambda: replace(WEIGHTS, distil=distil).with_cache({KEYS: KvFormat(4)}),
        lambda: Configuration.from_dict(content),
    ):
        with pytest.raises(SpecError, match="KV cache are not distilled"):
            make()

    assert replace(WEIGHTS, distil=distil).with_cache({KEYS: KvFormat(16)}).cache == ()

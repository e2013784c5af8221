from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import InputRange
from bitfront.quant.weights import fake_quantize_weight
from bitfront.reference.digit_clip import build_clip, tokenize
from bitfront.spec import QuantizerSpec, Rounding
from bitfront.vlm import DualEncoder, PlanSwitch
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.reference import preprocess_picture

STATIC = QuantizerSpec(scale_search=False)
DYNAMIC = QuantizerSpec(scale_search=False, activations="dynamic")
PIXELS = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
TOKENS = tokenize(["a three left of a seven", "two above one"])
MODEL = open_clip_encoder(
    build_clip(),
    preprocess=preprocess_picture,
    tokenize=tokenize,
)
NAMES = tuple(layer.name for layer in MODEL.layers)
RANGES = {name: {1.0: InputRange(-3.0, 3.0), 0.99: InputRange(-1.0, 1.0)} for name in NAMES}
FIRST, SECOND = NAMES[1], NAMES[2]


@pytest.fixture
def model() -> Iterator[DualEncoder]:
    yield MODEL
    for name in NAMES:
        MODEL.put_weight(name, None)


@torch.no_grad()
def outputs(model: DualEncoder) -> Tensor:
    return torch.cat([model.encode_images(PIXELS), model.encode_texts(TOKENS)])


def count_values(x: Tensor) -> int:
    return len(set(x.flatten().tolist()))


def weights() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in MODEL.module.state_dict().items()}


@settings(max_examples=15)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(NAMES),
            st.builds(
                Precision,
                st.sampled_from([2, 4, 8, 16]),
                st.sampled_from([4, 8, 16]),
                st.sampled_from([0, 32]),
            ),
        ).map(Plan.of),
        max_size=4,
    )
)
def test_clearing_after_any_plans_restores_every_bit(plans: list[Plan]) -> None:
    before, weights_before = outputs(MODEL), weights()
    switch = PlanSwitch(MODEL, STATIC, RANGES)

    for plan in plans:
        switch.to(plan)
    switch.clear()

    assert torch.equal(outputs(MODEL), before)
    after = weights()
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights_before.items())


def test_a_plan_gives_each_layer_its_fake_quantized_matrix(model: DualEncoder) -> None:
    precision = Precision(3, 16, 16)
    switch = PlanSwitch(model, STATIC, {})

    switch.to(Plan.uniform(NAMES, precision))

    for name in NAMES:
        (module,) = model.modules(name)
        expected = fake_quantize_weight(model.weight(name), precision, STATIC)
        assert torch.equal(module.get_parameter("weight").flatten(1), expected)
        assert not torch.equal(expected, model.weight(name))
    switch.clear()


def test_outputs_are_the_same_to_the_last_bit_when_a_plan_comes_back(model: DualEncoder) -> None:
    switch = PlanSwitch(model, STATIC, RANGES)
    first = Plan.uniform(NAMES, Precision(4, 8))
    second = Plan.uniform(NAMES[::2], Precision(2, 6, 0, 0.99))

    switch.to(first)
    once = outputs(model)
    switch.to(second)
    between = outputs(model)
    switch.to(first)
    again = outputs(model)
    switch.clear()

    assert torch.equal(once, again)
    assert not torch.equal(once, between)


def test_a_small_cache_changes_no_result(model: DualEncoder) -> None:
    plans = [Plan.uniform(NAMES, Precision(bits, 8)) for bits in (4, 2, 4, 3, 2)]

    def run(cache_nbytes: int) -> list[Tensor]:
        switch = PlanSwitch(model, STATIC, RANGES, cache_nbytes)
        results = []
        for plan in plans:
            switch.to(plan)
            results.append(outputs(model))
        switch.clear()
        return results

    assert all(map(torch.equal, run(0), run(2 << 30)))
    assert all(map(torch.equal, run(100_000), run(2 << 30)))


def test_only_layers_that_differ_are_touched(model: DualEncoder) -> None:
    switch = PlanSwitch(model, STATIC, RANGES)
    plan = Plan.uniform(NAMES, Precision(4, 8))
    other = Plan.of({**dict(plan), FIRST: Precision(4, 6), SECOND: Precision(2, 8)})

    assert switch.to(plan) == len(NAMES)
    assert switch.to(plan) == 0
    untouched = {
        name: model.modules(name)[0].get_parameter("weight").data_ptr()
        for name in NAMES
        if name not in (FIRST, SECOND)
    }
    assert switch.to(other) == 2
    for name, pointer in untouched.items():
        assert model.modules(name)[0].get_parameter("weight").data_ptr() == pointer
    assert switch.clear() == len(NAMES)
    assert switch.clear() == 0


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_every_layer_input_has_at_most_its_levels(model: DualEncoder, bits: int) -> None:
    switch = PlanSwitch(model, STATIC, RANGES)
    distinct: dict[str, int] = {}
    full = outputs(model)

    switch.to(Plan.uniform(NAMES, Precision(16, bits)))
    with model.watch_inputs(lambda name, x: distinct.update({name: count_values(x)})):
        quantized = outputs(model)
    switch.clear()

    embeddings = {"token_embedding.weight"}
    assert set(distinct) == set(NAMES) - embeddings
    assert all(2 <= count <= 2**bits for count in distinct.values())
    assert not torch.equal(quantized, full)


def test_a_watcher_from_before_the_plan_sees_quantized_inputs_too(model: DualEncoder) -> None:
    switch = PlanSwitch(model, STATIC, RANGES)
    distinct: dict[str, int] = {}

    with model.watch_inputs(lambda name, x: distinct.update({name: count_values(x)})):
        switch.to(Plan.uniform([FIRST], Precision(16, 4)))
        outputs(model)
    switch.clear()

    assert distinct[FIRST] <= 16 < distinct[SECOND]


def test_dynamic_ranges_are_of_a_token_or_of_a_whole_picture(model: DualEncoder) -> None:
    switch = PlanSwitch(model, DYNAMIC, {})
    inputs: dict[str, Tensor] = {}

    switch.to(Plan.uniform(NAMES, Precision(16, 4)))
    with model.watch_inputs(inputs.__setitem__):
        model.encode_images(PIXELS)
    switch.clear()

    assert all(count_values(token) <= 16 for token in inputs[FIRST].flatten(0, 1))
    assert count_values(inputs[FIRST]) > 16
    assert all(count_values(picture) <= 16 for picture in inputs["visual.conv1.weight"])
    assert count_values(inputs["visual.conv1.weight"]) > 16


def test_symmetric_ranges_of_tokens_are_those_of_linear_layers(model: DualEncoder) -> None:
    switch = PlanSwitch(model, QuantizerSpec(activations="dynamic_symmetric"), {})
    inputs: dict[str, Tensor] = {}

    switch.to(Plan.uniform([FIRST], Precision(16, 4)))
    with model.watch_inputs(inputs.__setitem__):
        model.encode_images(PIXELS)
    switch.clear()

    assert all(count_values(token) <= 16 for token in inputs[FIRST].flatten(0, 1))
    assert any((token == 0).any() for token in inputs[FIRST].flatten(0, 1))
    with pytest.raises(SpecError, match=r"visual\.conv1\.weight is a convolution: give it inputs"):
        switch.to(Plan.uniform(["visual.conv1.weight"], Precision(4, 8)))


def test_sixteen_bits_round_to_float16_and_unnamed_layers_stay(model: DualEncoder) -> None:
    switch = PlanSwitch(model, STATIC, {})

    switch.to(Plan.of({FIRST: Precision(16)}))

    first = model.modules(FIRST)[0].get_parameter("weight")
    second = model.modules(SECOND)[0].get_parameter("weight")
    assert torch.equal(first, model.weight(FIRST).half().float())
    assert torch.equal(second, model.weight(SECOND))
    switch.clear()


def test_an_unknown_layer_is_refused_and_nothing_changes(model: DualEncoder) -> None:
    switch = PlanSwitch(model, STATIC, RANGES)
    before = outputs(model)

    with pytest.raises(SpecError, match="no layer 'zzz'"):
        switch.to(Plan.of({FIRST: Precision(2, 4), "zzz": Precision(4)}))

    assert torch.equal(outputs(model), before)


def test_an_uncalibrated_clip_is_refused_and_nothing_changes(model: DualEncoder) -> None:
    switch = PlanSwitch(model, STATIC, RANGES)
    before = outputs(model)

    with pytest.raises(SpecError, match=r"clip 0\.9 is not known"):
        switch.to(Plan.of({FIRST: Precision(2, 4), SECOND: Precision(4, 8, 0, 0.9)}))

    assert torch.equal(outputs(model), before)
    assert switch.to(Plan.uniform([FIRST], Precision(2, 4))) == 1
    switch.clear()


def test_a_second_switch_takes_the_first_one_s_plan_off(model: DualEncoder) -> None:
    one, other = PlanSwitch(model, STATIC, RANGES), PlanSwitch(model, DYNAMIC, RANGES)
    coarse = Plan.uniform(NAMES, Precision(2, 4, 0, 0.99))
    fine = Plan.of({FIRST: Precision(6, 8)})
    full = outputs(model)

    one.to(coarse)
    other.to(fine)
    after_both = outputs(model)
    other.clear()

    assert torch.equal(outputs(model), full)
    assert other.to(fine) == 1
    assert torch.equal(outputs(model), after_both)
    assert one.to(coarse) == len(NAMES)
    one.clear()
    assert torch.equal(outputs(model), full)


def test_a_rounding_method_without_its_moments_is_refused() -> None:
    quantizer = QuantizerSpec(rounding=Rounding.DESCENT, activations="dynamic")
    layer = next(layer.name for layer in MODEL.layers if MODEL.multiplying(layer.name))

    with pytest.raises(SpecError, match=f"second moment of the inputs of {layer} is not known"):
        PlanSwitch(MODEL, quantizer, {}).to(Plan.of({layer: Precision(2)}))

import math
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitfront.errors import InvalidModel, SpecError
from bitfront.precision import Precision
from bitfront.quant.inputs import (
    GROUP,
    InputQuantizer,
    InputRange,
    fake_quantize_input,
    input_levels,
    input_nbytes,
)
from bitfront.spec import QuantizerSpec

WIDTHS = (4, 6, 8)
widths = st.sampled_from(WIDTHS)
bounds = st.floats(-1000, 1000, width=32)


def dyadic_range(bits: int) -> InputRange:
    """A range whose step is exactly 1/8, and whose zero has the code 5."""
    return InputRange(-5 / 8, (2**bits - 6) / 8)


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_small_input_is_rounded_half_to_even_and_clipped(bits: int) -> None:
    sixteenths = range(-40, 2 * 2**bits + 40)
    inputs = torch.tensor([value / 16 for value in sixteenths])

    found = InputQuantizer(bits, dyadic_range(bits))(inputs)

    expected = [min(max(round(Fraction(value, 2)), -5), 2**bits - 6) / 8 for value in sixteenths]
    assert found.tolist() == expected


@pytest.mark.parametrize("bits", WIDTHS)
def test_values_and_gradients_are_those_of_torch(bits: int) -> None:
    ours = (torch.arange(-80, 4 * 2**bits + 80) / 32).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    weights = torch.arange(1.0, len(ours) + 1)

    found = InputQuantizer(bits, dyadic_range(bits))(ours)
    expected = torch.fake_quantize_per_tensor_affine(theirs, 1 / 8, 5, 0, 2**bits - 1)

    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad((found * weights).sum(), ours)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), theirs)
    assert torch.equal(gradient, expected_gradient)


def test_the_gradient_passes_inside_and_is_zero_outside() -> None:
    inputs = torch.tensor([-9.0, -0.9, 0.0, 0.77, 1.9, 9.0], requires_grad=True)

    found = InputQuantizer(8, InputRange(-1.0, 2.0))(inputs)

    (gradient,) = torch.autograd.grad(found.sum(), inputs)
    assert gradient.tolist() == [0, 1, 1, 1, 1, 0]


def test_gradients_for_the_bounds_are_those_of_the_written_out_formula() -> None:
    inputs = torch.linspace(-3, 4, 701, dtype=torch.float32)
    weights = torch.sin(torch.arange(701.0))
    low, high = torch.tensor(-1.25), torch.tensor(2.5)
    low.requires_grad_()
    high.requires_grad_()

    found = fake_quantize_input(inputs, low, high, 4)

    slow_low, slow_high = torch.tensor(-1.25), torch.tensor(2.5)
    slow_low.requires_grad_()
    slow_high.requires_grad_()
    scale = (slow_high - slow_low) / 15  # exactly 0.25, and 5 is the code of zero
    exact = inputs / scale
    rounded = exact + (exact.round() - exact).detach()
    inside = scale * rounded
    multiples = exact.detach().round()
    slow = torch.where(multiples < -5, slow_low, torch.where(multiples > 10, slow_high, inside))
    gradients = torch.autograd.grad((found * weights).sum(), (low, high))
    expected = torch.autograd.grad((slow * weights).sum(), (slow_low, slow_high))
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-4)


def test_bounds_for_each_channel_get_a_gradient_of_their_shape() -> None:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 4
    low = torch.full((3,), -1.0, requires_grad=True)
    high = torch.full((3,), 1.0, requires_grad=True)

    found = fake_quantize_input(inputs, low, high, 8)

    for_low, for_high = torch.autograd.grad(found.sum(), (low, high))
    below = (inputs < -1.01).sum(dim=0)  # the rounding errors' shares are small beside these
    above = (inputs > 1.01).sum(dim=0)
    torch.testing.assert_close(for_low, below.float(), rtol=0, atol=0.1)
    torch.testing.assert_close(for_high, above.float(), rtol=0, atol=0.1)


@settings(max_examples=80)
@given(widths, bounds, bounds, st.lists(bounds, min_size=1, max_size=20))
def test_an_input_goes_to_its_nearest_level_and_stays_there(
    bits: int, one: float, other: float, values: list[float]
) -> None:
    input_range = InputRange(min(one, other), max(one, other))
    quantizer = InputQuantizer(bits, input_range)
    inputs = torch.tensor(values)

    found = quantizer(inputs)

    levels = input_levels(input_range, bits)
    assert levels.shape == (2**bits,)
    assert 0.0 in levels.tolist()
    assert torch.isin(found, levels).all()
    distance = (inputs[:, None] - levels).abs().amin(dim=1)
    torch.testing.assert_close((found - inputs).abs(), distance, rtol=1e-4, atol=1e-4)
    assert torch.equal(quantizer(found), found)


@settings(max_examples=60)
@given(widths, bounds, bounds)
def test_the_levels_cover_the_range_and_zero(bits: int, one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)

    levels = input_levels(InputRange(low, high), bits)

    step = float(levels[1] - levels[0])
    assert step > 0
    assert (levels[1:] > levels[:-1]).all()
    assert levels[0] <= min(low, 0) + 0.501 * step
    assert levels[-1] >= max(high, 0) - 0.501 * step


@settings(max_examples=40)
@given(widths, st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**31))
def test_a_dynamic_range_is_each_tokens_own(bits: int, tokens: int, width: int, seed: int) -> None:
    inputs = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(seed)) * 3

    found = InputQuantizer(bits, None)(inputs)

    for token, came_back in zip(inputs.reshape(-1, width), found.reshape(-1, width), strict=True):
        own = InputRange(float(token.min()), float(token.max()))
        assert torch.equal(came_back, InputQuantizer(bits, own)(token))


def test_a_dynamic_gradient_passes_everywhere() -> None:
    inputs = torch.randn(4, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()

    found = InputQuantizer(4, None)(inputs)

    (gradient,) = torch.autograd.grad(found.sum(), inputs)
    assert torch.equal(gradient, torch.ones(4, 9))


@pytest.mark.parametrize("input_range", [InputRange(-1.0, 1.0), None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept_and_the_arithmetic_is_in_float32(
    dtype: torch.dtype, input_range: InputRange | None
) -> None:
    inputs = torch.randn(3, 40, generator=torch.Generator().manual_seed(2)).to(dtype)
    before = inputs.clone()
    quantizer = InputQuantizer(8, input_range)

    found = quantizer(inputs)

    assert found.dtype == dtype
    assert torch.equal(found, quantizer(inputs.float()).to(dtype))
    assert torch.equal(inputs, before)


def test_nan_stays_and_infinity_saturates() -> None:
    inputs = torch.tensor([math.nan, math.inf, -math.inf, 0.5], requires_grad=True)

    found = InputQuantizer(8, InputRange(-1.0, 1.0))(inputs)

    assert found[0].isnan()
    assert found[1:].isfinite().all()
    assert found[1] > 0.99
    assert found[2] < -0.99
    (gradient,) = torch.autograd.grad(found.sum(), inputs)
    assert gradient[1:].tolist() == [0, 0, 1]


def test_a_dynamic_token_with_nan_is_lost_alone() -> None:
    inputs = torch.tensor([[1.0, math.nan], [1.0, -1.0], [math.inf, 1.0], [0.0, 0.0]])

    found = InputQuantizer(8, None)(inputs)

    assert found[0].isnan().all()
    assert found[1:].isfinite().all()
    assert found[3].tolist() == [0, 0]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1e-12, 1e-12), (-1e-30, 0.0)])
def test_a_range_without_width_makes_everything_almost_zero(
    low: float, high: float, bits: int
) -> None:
    found: Tensor = InputQuantizer(bits, InputRange(low, high))(torch.tensor([-5.0, 0.0, 5.0]))

    assert found[1] == 0
    assert (found.abs() < 1e-4).all()


def test_a_constant_input_keeps_its_value() -> None:
    for value in (3.0, -3.0):
        found = InputQuantizer(8, InputRange(value, value))(torch.full((4,), value))

        torch.testing.assert_close(found, torch.full((4,), value), rtol=2**-10, atol=0)


def test_a_huge_range_saturates_and_stays_finite() -> None:
    inputs = torch.tensor([1e38, -1e38, 60000.0])

    wide = InputQuantizer(8, InputRange(-1e39, 1e39))(inputs)
    half = InputQuantizer(4, InputRange(-1.0, 65504.0))(inputs.clamp(-6e4, 6.55e4).half())

    assert wide.isfinite().all()
    assert half.isfinite().all()


@settings(max_examples=40)
@given(
    widths,
    st.sampled_from([32, 128]),
    st.integers(1, 3),
    st.integers(1, 300),
    st.integers(0, 2**31),
)
def test_in_groups_each_code_is_the_nearest_multiple_of_its_groups_step(
    bits: int, size: int, tokens: int, columns: int, seed: int
) -> None:
    inputs = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    inputs[0, :size] = 0

    found = InputQuantizer(bits, None, group=size)(inputs)

    top = 2 ** (bits - 1) - 1
    for token, start in product(range(tokens), range(0, columns, size)):
        group, levels = (one[token, start : start + size].double() for one in (inputs, found))
        step = float(group.abs().max()) / top
        assert float((levels - group).abs().max()) <= step * (0.5 + 1e-4)
        codes = levels / step if step else levels
        assert torch.allclose(codes, codes.round(), atol=1e-3)
        assert float(codes.abs().max()) <= top + 1e-3


@settings(max_examples=40)
@given(
    widths,
    st.sampled_from([1e-12, 1e-3, 1.0, 1e5]),
    st.integers(1, 300),
    st.integers(0, 2**31),
)
def test_tokens_are_rounded_around_zero_as_compressed_tensors_does_it_to_the_bit(
    bits: int, size: float, columns: int, seed: int
) -> None:
    quantization: Any = pytest.importorskip("compressed_tensors.quantization")
    forward: Any = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    helpers: Any = pytest.importorskip("compressed_tensors.quantization.utils")
    inputs = size * torch.randn(2, 3, columns, generator=torch.Generator().manual_seed(seed))
    inputs[0, 0] = 0
    asked = quantization.QuantizationArgs(
        num_bits=bits, type="int", symmetric=True, strategy="token", dynamic=True
    )

    found = InputQuantizer(bits, None, is_symmetric=True)(inputs)

    scale, zero = helpers.compute_dynamic_scales_and_zp(inputs, asked, torch.nn.Identity())
    assert torch.equal(found, forward.fake_quantize(inputs, scale, zero, asked))
    step = inputs.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 0.5)
    assert ((found - inputs).abs() <= (0.5 + 1e-4) * step).all()


def test_around_zero_the_gradient_passes_unchanged() -> None:
    inputs = torch.linspace(-3, 3, 70, requires_grad=True)
    quantize = InputQuantizer(4, None, is_symmetric=True)

    quantize(inputs).square().sum().backward()  # type: ignore[no-untyped-call]

    with torch.no_grad():
        expected = 2 * quantize(inputs)
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, expected)


def test_in_groups_the_gradient_passes_unchanged() -> None:
    inputs = torch.linspace(-3, 3, 70, requires_grad=True)

    InputQuantizer(4, None, group=GROUP)(inputs).square().sum().backward()  # type: ignore[no-untyped-call]

    with torch.no_grad():
        expected = 2 * InputQuantizer(4, None, group=GROUP)(inputs)
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, expected)


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, -1.0), (math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.0)]
)
def test_a_range_that_is_none_is_refused(low: float, high: float) -> None:
    with pytest.raises(InvalidModel, match=f"ranges from {low} to {high}"):
        InputRange(low, high)


@pytest.mark.parametrize("bits", [0, 3, 5, 7, 16])
def test_a_width_without_codes_is_refused(bits: int) -> None:
    with pytest.raises(SpecError, match=f"got {bits}"):
        InputQuantizer(bits, None)


@pytest.mark.parametrize(
    ("bits", "activations", "nbytes"),
    [
        (8, "static", 3),
        (8, "dynamic", 0),
        (8, "grouped", 0),
        (8, "dynamic_symmetric", 0),
        (16, "static", 0),
    ],
)
def test_only_a_static_range_takes_bytes(bits: int, activations: str, nbytes: int) -> None:
    quantizer = QuantizerSpec.model_validate({"activations": activations})

    assert input_nbytes(Precision(4, bits), quantizer) == nbytes

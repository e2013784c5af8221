"""Layers in training compute with what would be stored; gradients follow the definition."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitfront.quant.inputs import InputQuantizer, InputRange
from bitfront.quant.trained import TrainedRange, TrainedVector, TrainedWeight
from bitfront.quant.weights import QuantizedWeight, dequantize_weight, quantize_weight


def started(
    seed: int, bits: int = 3, group: int = 4, *, symmetric: bool = False, codes: bool = False
) -> TrainedWeight:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 10, generator=generator)
    rounded = quantize_weight(weight, bits, group=group, symmetric=symmetric)
    return TrainedWeight(rounded, weight if codes else None)


def moved(trained: TrainedWeight, seed: int, size: float) -> TrainedWeight:
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return trained


@given(
    st.sampled_from((2, 3, 4, 8)),
    st.sampled_from((0, 4, 64)),
    st.booleans(),
    st.booleans(),
    st.floats(0, 4),
    st.integers(0, 2**31),
)
def test_a_weight_in_training_is_what_is_stored_of_it(
    bits: int, group: int, symmetric: bool, codes: bool, size: float, seed: int
) -> None:
    trained = started(seed, bits, group, symmetric=symmetric, codes=codes)

    moved(trained, seed, size)

    assert torch.equal(trained(), dequantize_weight(trained.stored()))
    assert (trained.stored().zero is None) is symmetric


@pytest.mark.parametrize("bits", [2, 4])
def test_whole_zero_points_stay_codes_in_training(bits: int) -> None:
    weight = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    start = quantize_weight(weight, bits, group=4, whole=True)
    trained = moved(TrainedWeight(start, whole=True), 1, 1.5)

    stored = trained.stored()

    assert stored.zero is not None
    assert not (stored.zero % 2 ** (8 - bits)).any()
    assert torch.equal(trained(), dequantize_weight(stored))


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_weight_starts_as_it_was_rounded(bits: int, codes: bool) -> None:
    trained = started(1, bits, codes=codes)
    start = started(1, bits).stored()

    stored = trained.stored()

    assert torch.equal(stored.codes, start.codes)
    assert torch.equal(stored.scale, start.scale)
    assert stored.zero is not None
    assert start.zero is not None
    assert torch.equal(stored.zero, start.zero)


def slow_weight(start: QuantizedWeight, growth: Tensor, shift: Tensor, codes: Tensor) -> Tensor:
    """The definition, an element at a time, without rounding."""
    rows, columns = start.codes.shape
    zero = start.zero_codes
    values = []
    for row in range(rows):
        for column in range(columns):
            group = column // start.group
            scale = start.scale[row, group].double() * growth[row, group].exp()
            values.append(scale * (codes[row, column] - zero[row, group] - shift[row, group]))
    return torch.stack(values).view(rows, columns)


def test_gradients_are_those_of_the_unrounded_weight() -> None:
    trained = started(2, codes=True)
    start = trained.stored()
    assert trained.shift is not None
    assert trained.codes is not None
    given = torch.randn(5, 10, generator=torch.Generator().manual_seed(3))
    latents = [
        torch.zeros(5, 3, dtype=torch.float64, requires_grad=True),
        torch.zeros(5, 3, dtype=torch.float64, requires_grad=True),
        start.codes.double().requires_grad_(),
    ]

    found = torch.autograd.grad(
        (trained() * given).sum(), [trained.growth, trained.shift, trained.codes]
    )
    expected = torch.autograd.grad((slow_weight(start, *latents) * given).sum(), latents)

    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_latent_stays_well_inside_of_the_bin_of_its_code() -> None:
    trained = started(4, bits=2, codes=True)
    assert trained.codes is not None

    off = trained.codes.detach() - trained.stored().codes

    assert float(off.abs().max()) <= 0.3 + 1e-6
    assert float(off.abs().max()) > 0.05


RANGES = (InputRange(-1.0, 2.0), InputRange(0.5, 2.0), InputRange(-3.0, -1.0), InputRange(0.0, 0.0))


@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("ends", [(0.0, 0.0), (0.1, -0.2), (2.0, -2.0)])
def test_an_input_in_training_is_on_the_levels_that_are_stored(
    range: InputRange, ends: tuple[float, float]
) -> None:
    inputs = torch.linspace(-4, 4, 101)
    trained = TrainedRange(InputQuantizer(4, range), torch.device("cpu"))
    trained.ends.data = torch.tensor(ends)

    stored = trained.stored()

    assert torch.equal(trained(inputs), stored(inputs))
    if ends == (0.0, 0.0):
        assert torch.equal(stored(inputs), InputQuantizer(4, range)(inputs))


def slope(trained: TrainedRange, loss: Callable[[Tensor], Tensor], end: int) -> float:
    (gradient,) = torch.autograd.grad(loss(trained(torch.tensor([-9.0, 9.0]))), [trained.ends])
    return float(gradient[end])


@pytest.mark.parametrize("end", [0, 1])
def test_a_clipped_input_moves_its_end_of_the_range_by_the_ranges_width(end: int) -> None:
    trained = TrainedRange(InputQuantizer(4, InputRange(-1.0, 2.0)), torch.device("cpu"))

    assert slope(trained, lambda shown: shown[end], end) == pytest.approx(3.0)
    assert slope(trained, lambda shown: shown[1 - end], end) == pytest.approx(0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_vector_in_training_is_what_16_bits_hold_of_it(dtype: torch.dtype) -> None:
    trained = TrainedVector(torch.randn(7, generator=torch.Generator().manual_seed(5)).to(dtype))
    trained.values.data += 1e-5

    assert trained().dtype == dtype
    assert torch.equal(trained(), trained.stored().to(dtype))
    assert trained.stored().dtype == (torch.float16 if dtype == torch.float32 else dtype)
    (gradient,) = torch.autograd.grad(trained().float().sum(), [trained.values])
    assert torch.equal(gradient, torch.ones(7))

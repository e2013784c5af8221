import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.quant.inputs import InputQuantizer, InputRange
from bitfront.quant.ranges import MAX_ROWS, evenly_spread, searched_range


def _loss(inputs: Tensor, weight: Tensor, bits: int, found: InputRange) -> float:
    change = InputQuantizer(bits, found)(inputs) - inputs
    return float((change @ weight.T).square().mean())


def _heavy_tailed(rows: int, columns: int, seed: int) -> Tensor:
    normal = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return normal * normal.square()


@settings(max_examples=30)
@given(st.sampled_from([4, 6, 8]), st.integers(0, 1000), st.floats(-5, 5))
def test_a_searched_range_is_never_worse_than_the_extremes(
    bits: int, seed: int, shift: float
) -> None:
    inputs = _heavy_tailed(40, 6, seed) + shift
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed + 1))
    extremes = InputRange(min(float(inputs.min()), 0), max(float(inputs.max()), 0))

    found = searched_range(inputs, weight, bits)

    assert _loss(inputs, weight, bits, found) <= _loss(inputs, weight, bits, extremes) * (1 + 1e-6)
    assert extremes.low <= found.low <= 0 <= found.high <= extremes.high


def test_a_searched_range_is_near_the_best_of_a_fine_grid() -> None:
    inputs, weight = _heavy_tailed(200, 8, 3), torch.eye(8)
    low, high = float(inputs.min()), float(inputs.max())

    found = _loss(inputs, weight, 4, searched_range(inputs, weight, 4))

    shares = torch.linspace(0.02, 1, 40).tolist()
    grid = [InputRange(low * a, high * b) for a in shares for b in shares]
    best = min(_loss(inputs, weight, 4, candidate) for candidate in grid)
    assert found <= 1.1 * best
    assert found < 0.85 * _loss(inputs, weight, 4, InputRange(low, high))


def test_the_ends_are_searched_apart() -> None:
    inputs = torch.cat([torch.linspace(-1, 1, 200), torch.tensor([40.0])])[:, None]

    found = searched_range(inputs, torch.ones(1, 1) / 1000, 4)

    assert found.low >= -1.0
    assert found.high > 10 * -found.low


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_constant_inputs_have_a_range_that_holds_them(value: float) -> None:
    inputs = torch.full((10, 4), value)

    found = searched_range(inputs, torch.ones(2, 4), 4)

    assert _loss(inputs, torch.ones(2, 4), 4, found) < 1e-4


@pytest.mark.parametrize("inputs", [torch.zeros(0, 3), torch.full((2, 3), float("nan"))])
def test_no_inputs_or_nan_are_refused(inputs: Tensor) -> None:
    with pytest.raises(InvalidModel, match="a range is searched on inputs, all of them finite"):
        searched_range(inputs, torch.ones(2, 3), 4)


def test_rows_are_spread_from_the_first_to_the_last() -> None:
    rows = torch.arange(10_000.0)[:, None]

    spread = evenly_spread(rows)

    assert len(spread) == MAX_ROWS
    assert (float(spread[0]), float(spread[-1])) == (0, 9_999)
    assert torch.equal(evenly_spread(rows[:5]), rows[:5])

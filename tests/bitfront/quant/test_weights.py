import itertools
from bisect import bisect_left
from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitfront.errors import InvalidModel, SpecError
from bitfront.precision import Precision
from bitfront.quant.grid import (
    Grid,
    best_whole_zero,
    covering_grid,
    searched_grid,
    storable_scale,
)
from bitfront.quant.weights import (
    QuantizedWeight,
    dequantize_weight,
    fake_quantize_weight,
    group_count,
    quantize_weight,
)
from bitfront.spec import QuantizerSpec

WIDTHS = (2, 3, 4, 5, 6, 8)
HALVES = [
    Fraction(float(value))
    for value in np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
]  # every positive finite float16, in order

widths = st.sampled_from(WIDTHS)
groups = st.integers(0, 40)
seeds = st.integers(0, 2**31)


def normal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def covering_levels(values: list[Fraction], bits: int, *, symmetric: bool) -> list[Fraction]:
    """The levels of a run without search, one by one, in exact arithmetic."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    if len(set(values)) == 1:
        size = abs(values[0])
        scale = min(HALVES, key=lambda half: abs(half - size))
        zero = Fraction(middle if symmetric else int(values[0] < 0))
    else:
        down, up = -min(Fraction(0), *values), max(Fraction(0), *values)
        reach = max(down / middle, up / (middle - 1)) if symmetric else (down + up) / top
        scale = HALVES[min(bisect_left(HALVES, reach), len(HALVES) - 1)]
        zero = Fraction(middle)
        if not symmetric:
            zero = Fraction(round(down / scale * 2 ** (8 - bits)), 2 ** (8 - bits))
            zero = min(zero, Fraction(top))
    return [scale * (code - zero) for code in range(top + 1)]


def stored_levels(quantized: QuantizedWeight, row: int, group: int) -> list[Fraction]:
    """The levels of one group, in exact arithmetic, from what is stored."""
    zero = Fraction(2 ** (quantized.bits - 1))
    if quantized.zero is not None:
        zero = Fraction(int(quantized.zero[row, group]), 2 ** (8 - quantized.bits))
    scale = Fraction(float(quantized.scale[row, group]))
    return [scale * (code - zero) for code in range(2**quantized.bits)]


def row_errors(weight: Tensor, bits: int, **options: bool | int) -> Tensor:
    found = dequantize_weight(quantize_weight(weight, bits, **options))  # type: ignore[arg-type]  # the options differ in type
    return (found.double() - weight.double()).square().sum(dim=1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_small_weight_comes_back_as_its_nearest_covering_level(
    bits: int, symmetric: bool
) -> None:
    steps = range(-4, 5)
    rows = [[step / 4 for step in row] for row in itertools.product(steps, repeat=3)]

    quantized = quantize_weight(torch.tensor(rows), bits, symmetric=symmetric, search=False)
    found = dequantize_weight(quantized)

    for row, came_back in zip(rows, found.double().numpy(), strict=True):
        exact = covering_levels([Fraction(value) for value in row], bits, symmetric=symmetric)
        levels = np.array([float(level) for level in exact])  # as exact: they have few bits
        distances = np.abs(levels[:, None] - np.array(row)).min(axis=0)
        assert np.isin(came_back, levels).all()
        assert np.array_equal(np.abs(came_back - np.array(row)), distances)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_searched_weight_is_its_nearest_stored_level(bits: int, symmetric: bool) -> None:
    weight = normal(3, 21, seed=bits)

    quantized = quantize_weight(weight, bits, group=8, symmetric=symmetric)
    found = dequantize_weight(quantized)

    for row, column in itertools.product(range(3), range(21)):
        levels = stored_levels(quantized, row, column // 8)
        value = Fraction(float(weight[row, column]))
        best = min(abs(level - value) for level in levels)
        came_back = Fraction(float(found[row, column]))
        assert came_back == levels[int(quantized.codes[row, column])]
        assert abs(came_back - value) <= best * Fraction(100001, 100000)


@pytest.mark.parametrize("bits", WIDTHS)
def test_symmetric_weights_are_those_of_torch(bits: int) -> None:
    weight = normal(16, 64, seed=bits)
    half = 2 ** (bits - 1)

    quantized = quantize_weight(weight, bits, symmetric=True)

    expected = torch.fake_quantize_per_channel_affine(
        weight,
        quantized.scale[:, 0].float(),
        torch.zeros(16, dtype=torch.int32),
        0,
        -half,
        half - 1,
    )
    torch.testing.assert_close(dequantize_weight(quantized), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", WIDTHS)
def test_asymmetric_weights_are_those_of_torch(bits: int) -> None:
    weight = normal(16, 64, seed=bits) + 0.3

    quantized = quantize_weight(weight, bits)

    assert quantized.zero is not None
    zero = quantized.zero[:, 0].float() / 2 ** (8 - bits)
    scale = quantized.scale[:, 0].float()
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, 0, 2**bits - 1)
    torch.testing.assert_close(dequantize_weight(quantized), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(widths, seeds, st.integers(1, 40), st.sampled_from([0.0, 0.5, 3.0]), st.booleans())
def test_whole_zero_points_are_the_best_of_all_for_every_scale_that_is_tried(
    bits: int, seed: int, columns: int, mean: float, heavy: bool
) -> None:
    """Against each code as the zero point of each scale."""
    runs = normal(4, columns, seed)
    runs = (runs**3 if heavy else runs) + mean
    covering = covering_grid(runs, bits, symmetric=False, whole=True)
    scales = [storable_scale(covering.scale * 0.2 ** (step / 9)) for step in range(10)]

    found = [best_whole_zero(runs, scale, bits) for scale in scales]
    searched = searched_grid(runs, bits, symmetric=False, whole=True)

    for scale, zero in zip(scales, found, strict=True):
        every = [
            Grid(scale, torch.full_like(scale, code), bits).error(runs) for code in range(2**bits)
        ]
        least = torch.cat(every, dim=1).amin(dim=1, keepdim=True)
        loss = Grid(scale, zero, bits).error(runs) - least
        assert (loss <= 1e-4 * least + 1e-6 * 2**bits * scale).all()
    assert torch.equal(searched.zero, searched.zero.round().clamp(0, 2**bits - 1))
    first = Grid(scales[0], found[0], bits).error(runs)
    assert (searched.error(runs) <= first * (1 + 1e-6)).all()
    assert (searched.error(runs) <= covering.error(runs)).all()


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_whole_zero_points_are_codes_and_fractional_ones_are_seldom_worse(
    bits: int, search: bool
) -> None:
    weight = normal(40, 64, seed=bits) + 0.2

    whole = quantize_weight(weight, bits, group=32, whole=True, search=search)
    free = quantize_weight(weight, bits, group=32, search=search)

    assert whole.zero is not None
    assert not (whole.zero % 2 ** (8 - bits)).any()
    errors = [float((dequantize_weight(one) - weight).square().sum()) for one in (whole, free)]
    assert errors[1] <= errors[0] * 1.02
    if bits == 8 and not search:
        assert torch.equal(whole.codes, free.codes)


@settings(max_examples=40)
@given(widths, groups, st.booleans(), st.booleans(), seeds, st.integers(1, 50))
def test_the_error_is_at_most_half_a_step_inside_the_range(
    bits: int, group: int, symmetric: bool, search: bool, seed: int, columns: int
) -> None:
    weight = normal(3, columns, seed)

    quantized = quantize_weight(weight, bits, group=group, symmetric=symmetric, search=search)

    error = (dequantize_weight(quantized) - weight).abs()
    width = group or columns
    scale = quantized.scale.float().repeat_interleave(width, dim=1)[:, :columns]
    inside = (quantized.codes > 0) & (quantized.codes < 2**bits - 1)
    covered = inside if search else torch.ones_like(inside)
    assert (error <= scale * 0.50001)[covered].all()


@settings(max_examples=40)
@given(widths, st.booleans(), seeds, st.integers(1, 80), st.sampled_from([0.5, 1.0, 3.0]))
def test_search_is_never_worse_than_covering(
    bits: int, symmetric: bool, seed: int, columns: int, power: float
) -> None:
    plain = normal(4, columns, seed)
    weight = plain.sign() * plain.abs() ** power

    covering = row_errors(weight, bits, symmetric=symmetric, search=False)
    searched = row_errors(weight, bits, symmetric=symmetric)

    assert (searched <= covering * 1.00001).all()


@pytest.mark.parametrize(
    ("bits", "distortion"), [(2, 0.1188), (3, 0.03744), (4, 0.01154), (5, 0.003495)]
)
def test_search_reaches_the_optimum_for_normal_weights(bits: int, distortion: float) -> None:
    # Best uniform quantizers of a unit normal: Max, "Quantizing for minimum distortion", 1960.
    weight = normal(64, 1024, seed=bits)

    error = row_errors(weight, bits).sum() / weight.double().square().sum()

    assert error < distortion * 1.02


@pytest.mark.parametrize("columns", [40, 400])
@pytest.mark.parametrize(("power", "slack"), [(0.5, 1.02), (1.0, 1.02), (2.0, 1.06)])
@pytest.mark.parametrize("bits", [2, 3])
def test_search_comes_close_to_trying_every_grid(
    bits: int, power: float, slack: float, columns: int
) -> None:
    plain = normal(16, columns, seed=bits)
    weight = plain.sign() * plain.abs() ** power
    top = 2**bits - 1
    zeros = torch.arange(0, 256 - 2 ** (8 - bits) + 1, 8)[:, None] / 2 ** (8 - bits)
    best = torch.full((16,), torch.inf)
    for factor in np.geomspace(0.1, 1.0, 60):
        scale = (weight.amax(1) - weight.amin(1))[:, None, None] * float(factor) / top
        codes = (weight[:, None] / scale + zeros).round().clamp(0, top)
        error = ((codes - zeros) * scale - weight[:, None]).square().sum(dim=2)
        best = torch.minimum(best, error.amin(dim=1))

    searched = row_errors(weight, bits)

    assert searched.sum() < best.sum() * slack


@settings(max_examples=25)
@given(st.booleans(), st.booleans(), seeds, st.integers(16, 80))
def test_a_wider_code_is_not_worse(symmetric: bool, search: bool, seed: int, columns: int) -> None:
    weight = normal(4, columns, seed)

    errors = [
        float(row_errors(weight, bits, symmetric=symmetric, search=search).sum()) for bits in WIDTHS
    ]

    assert all(more <= fewer for fewer, more in itertools.pairwise(errors))


@settings(max_examples=40)
@given(st.sampled_from(WIDTHS[:-1]), groups, st.booleans(), seeds, st.integers(1, 50))
def test_covered_weights_are_left_alone_the_second_time(
    bits: int, group: int, symmetric: bool, seed: int, columns: int
) -> None:
    weight = normal(3, columns, seed)
    precision = Precision(bits, group=group)
    scheme: Literal["symmetric", "asymmetric"] = "symmetric" if symmetric else "asymmetric"
    quantizer = QuantizerSpec(scheme=scheme, scale_search=False)

    once = fake_quantize_weight(weight, precision, quantizer)
    twice = fake_quantize_weight(once, precision, quantizer)

    # A group whose weights all went to one level is rounded to float16; the others stay.
    torch.testing.assert_close(twice, once, rtol=2**-10, atol=0)


@settings(max_examples=30)
@given(
    widths,
    st.booleans(),
    st.booleans(),
    st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=1, max_size=9),
)
def test_any_finite_weight_gives_finite_weights_and_usable_scales(
    bits: int, symmetric: bool, search: bool, row: list[float]
) -> None:
    quantized = quantize_weight(torch.tensor([row]), bits, symmetric=symmetric, search=search)

    assert dequantize_weight(quantized).isfinite().all()
    assert (quantized.scale > 0).all()
    assert quantized.scale.isfinite().all()


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1 / 3, -1 / 3, 1e-6, -65504.0, 65504.0, 1e-9])
def test_a_constant_row_comes_back_as_float16(
    value: float, bits: int, symmetric: bool, search: bool
) -> None:
    weight = torch.full((2, 5), value)

    quantized = quantize_weight(weight, bits, group=3, symmetric=symmetric, search=search)

    torch.testing.assert_close(dequantize_weight(quantized), weight.half().float(), rtol=0, atol=0)


def test_weights_beyond_float16_saturate() -> None:
    weight = torch.tensor([[3e38, -3e38, 1e30]])

    four_bits = dequantize_weight(quantize_weight(weight, 4))
    sixteen_bits = fake_quantize_weight(weight, Precision(16), QuantizerSpec())

    assert four_bits.isfinite().all()
    assert four_bits[0, 0] > 65504.0 > -65504.0 > four_bits[0, 1]
    assert sixteen_bits.tolist() == [[65504.0, -65504.0, 65504.0]]


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_constant_beyond_float16_is_kept_while_a_code_reaches_it(symmetric: bool) -> None:
    weight = torch.full((1, 3), 4e5)

    found = dequantize_weight(quantize_weight(weight, 4, symmetric=symmetric))

    torch.testing.assert_close(found, weight, rtol=2**-10, atol=0)


@pytest.mark.parametrize("bits", [4, 16])
def test_bad_values_are_counted(bits: int) -> None:
    weight = torch.ones(4, 5)
    weight[0, 1], weight[2, 2], weight[3, 4] = torch.nan, torch.inf, -torch.inf

    with pytest.raises(InvalidModel, match="3 of 20 values of a weight are NaN or infinite"):
        fake_quantize_weight(weight, Precision(bits), QuantizerSpec())


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (5,), ()])
@pytest.mark.parametrize("bits", [4, 16])
def test_a_weight_that_is_no_matrix_is_refused(shape: tuple[int, ...], bits: int) -> None:
    with pytest.raises(InvalidModel, match="needs two dimensions and an element"):
        fake_quantize_weight(torch.ones(shape), Precision(bits), QuantizerSpec())


@pytest.mark.parametrize("bits", [0, 1, 7, 9, 16])
def test_a_width_without_codes_is_refused(bits: int) -> None:
    with pytest.raises(SpecError, match=f"got {bits}"):
        quantize_weight(torch.ones(2, 2), bits)


def test_a_negative_group_is_refused() -> None:
    with pytest.raises(SpecError, match="got -1"):
        quantize_weight(torch.ones(2, 2), 4, group=-1)


@settings(max_examples=30)
@given(widths, st.integers(1, 40), st.integers(1, 40), st.booleans(), seeds)
def test_groups_are_quantized_apart(
    bits: int, group: int, columns: int, symmetric: bool, seed: int
) -> None:
    weight = normal(2, columns, seed)

    together = quantize_weight(weight, bits, group=group, symmetric=symmetric)

    assert together.scale.shape == (2, group_count(columns, group))
    parts = [
        dequantize_weight(quantize_weight(part, bits, symmetric=symmetric))
        for part in torch.split(weight, group, dim=1)
    ]
    torch.testing.assert_close(dequantize_weight(together), torch.cat(parts, 1), rtol=1e-5, atol=0)


def test_a_large_matrix_is_quantized_as_its_rows_are() -> None:
    weight = normal(300, 2000, seed=0)  # more than one chunk

    whole = dequantize_weight(quantize_weight(weight, 3, search=False))

    rows = [dequantize_weight(quantize_weight(row[None], 3, search=False)) for row in weight]
    assert torch.equal(whole, torch.cat(rows))


@pytest.mark.parametrize("bits", [3, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_dtype_are_kept_and_nothing_is_changed(dtype: torch.dtype, bits: int) -> None:
    weight = normal(6, 27, seed=1).reshape(6, 3, 3, 3).to(dtype).requires_grad_()
    before = weight.detach().clone()
    quantizer = QuantizerSpec()

    found = fake_quantize_weight(weight, Precision(bits), quantizer)

    assert (found.shape, found.dtype, found.requires_grad) == (weight.shape, dtype, False)
    assert torch.equal(weight.detach(), before)
    exact = fake_quantize_weight(before.float().reshape(6, 27), Precision(bits), quantizer)
    assert torch.equal(found.reshape(6, 27), exact.to(dtype))


def test_the_largest_float16_weights_do_not_become_infinite() -> None:
    weight = torch.tensor([[-65504.0, 65504.0, 100.0]], dtype=torch.float16)

    for bits in WIDTHS:
        assert fake_quantize_weight(weight, Precision(bits), QuantizerSpec()).isfinite().all()


def test_sixteen_bits_round_to_the_nearest_float16() -> None:
    weight = normal(8, 8, seed=3)

    found = fake_quantize_weight(weight, Precision(16), QuantizerSpec())

    assert np.array_equal(found.numpy(), weight.numpy().astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_the_same_weight_gives_the_same_codes(scheme: str, search: bool) -> None:
    weight = normal(64, 96, seed=5)
    symmetric = scheme == "symmetric"

    first = quantize_weight(weight, 3, group=40, symmetric=symmetric, search=search)
    again = quantize_weight(weight.clone(), 3, group=40, symmetric=symmetric, search=search)
    strided = quantize_weight(
        weight.T.contiguous().T, 3, group=40, symmetric=symmetric, search=search
    )

    for other in (again, strided):
        assert torch.equal(first.codes, other.codes)
        assert torch.equal(first.scale, other.scale)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_gpu_quantizes_as_well_as_a_cpu(bits: int) -> None:
    weight = normal(64, 300, seed=bits)

    on_gpu = dequantize_weight(quantize_weight(weight.cuda(), bits, group=128)).cpu()

    error = (on_gpu - weight).square().sum()
    expected = row_errors(weight, bits, group=128).sum()
    assert abs(error / expected - 1) < 1e-3

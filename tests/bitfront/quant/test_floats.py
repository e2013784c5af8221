"""Number formats of weights: code points against ml_dtypes, scales and codes against all others."""

import itertools
import math
from statistics import NormalDist

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from bitfront.errors import InvalidModel, SpecError
from bitfront.formats import FORMATS, ScaleType, WeightFormat
from bitfront.precision import Precision
from bitfront.quant.floats import codes_of, levels_of_codes, nearest_levels, tensor_scale
from bitfront.quant.packing import packed_weight, unpacked_weight, weight_nbytes
from bitfront.quant.rounding.methods import METHODS
from bitfront.quant.rounding.problem import RoundingProblem, damped_hessian, rounding_error
from bitfront.quant.weights import dequantize_weight, fake_quantize_weight, quantize_floats
from bitfront.spec import QuantizerSpec, Rounding

ALL = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
FLOATS = pytest.mark.parametrize(
    "form", [form for form in FORMATS.values() if form.element], ids=lambda form: form.name
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@FLOATS
def test_code_points_are_those_of_ml_dtypes(form: WeightFormat) -> None:
    codes = np.arange(2**form.bits, dtype=np.uint8).view(getattr(ml_dtypes, form.element))

    known = codes.astype(np.float64)
    finite = np.isfinite(known)

    own = np.array(form.levels)
    assert (np.isnan(own) == ~finite).all()
    assert (own[finite] == known[finite]).all()


@FLOATS
def test_values_are_rounded_as_ml_dtypes_rounds_them(form: WeightFormat) -> None:
    levels = torch.tensor(list(form.finite))
    middles = (levels[1:] + levels[:-1]) / 2
    values = torch.cat([normal(20_000) * form.largest / 3, levels, middles])
    values = values.clamp(-form.largest, form.largest)

    found = nearest_levels(values, form)

    known = values.numpy().astype(getattr(ml_dtypes, form.element)).astype(np.float32)
    assert (found.numpy() == known).all()


@ALL
def test_what_lies_beyond_the_levels_saturates(form: WeightFormat) -> None:
    ends = min(form.finite), max(form.finite)

    found = nearest_levels(torch.tensor([-1e30, 1e30]), form)

    assert tuple(found.tolist()) == pytest.approx(ends)


def test_levels_of_nf4_are_means_of_equal_parts_of_a_normal_distribution() -> None:
    # QLoRA's construction: 8 quantiles above zero and 7 below it, scaled to reach 1.
    end = 0.9677083
    quantile = NormalDist().inv_cdf
    above = [quantile(end - (end - 0.5) * step / 8) for step in range(8)]
    below = [-quantile(end - (end - 0.5) * step / 7) for step in range(7)]
    known = sorted(value / max(above) for value in (*above, *below, 0.0))

    assert list(FORMATS["nf4"].levels) == pytest.approx(known, abs=1e-6)


@ALL
def test_codes_stand_for_the_levels_that_they_were_made_of(form: WeightFormat) -> None:
    levels = torch.tensor(list(form.finite))

    codes = codes_of(levels, form)

    assert len(set(codes.tolist())) == len(form.finite)
    assert torch.equal(levels_of_codes(codes, form), levels)


def every_scale(form: WeightFormat, whole: Tensor) -> Tensor:
    """All scales that a format stores in a byte."""
    dtype = getattr(torch, form.scale.value)
    scales = torch.arange(256, dtype=torch.uint8).view(dtype).float() * whole
    return scales[scales.isfinite() & (scales > 0)]


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp6_e2m3", "mxfp8_e5m2"])
def test_a_searched_scale_is_the_best_of_all_that_a_byte_holds(name: str) -> None:
    form = FORMATS[name]
    weight = normal(64, form.block)

    found = quantize_floats(weight, form, group=form.block)

    error = (dequantize_weight(found) - weight).square().sum(1)
    scales = every_scale(form, tensor_scale(weight, form))
    levels = nearest_levels(weight[:, None] / scales[:, None], form) * scales[:, None]
    best = (levels - weight[:, None]).square().sum(-1).amin(1)
    assert (best <= error * (1 + 1e-6)).all()
    # The search looks at neighbours only: most of the best scales are among them.
    assert (error <= best * (1 + 1e-6)).float().mean() > 0.9
    assert error.sum() < 1.01 * best.sum()


@ALL
def test_a_searched_scale_is_no_worse_than_the_standard_one(form: WeightFormat) -> None:
    weight = normal(32, 96) * torch.logspace(-3, 1, 32)[:, None]
    group = form.default_block

    searched, standard = (
        quantize_floats(weight, form, group=group, search=search) for search in (True, False)
    )

    errors = [(dequantize_weight(one) - weight).square().sum() for one in (searched, standard)]
    assert errors[0] < errors[1]


def test_mx_scales_are_those_of_the_standard() -> None:
    form = FORMATS["mxfp4"]
    reaches = torch.tensor([6.0, 7.9, 8.0, 0.75, 4.0])
    weight = torch.zeros(5, 32)
    weight[:, 3] = reaches

    found = quantize_floats(weight, form, group=32, search=False)

    # OCP MX 1.0, section 6.3: 2**floor(log2(max)) over 2**2, the exponent of the largest level.
    wanted = [2.0 ** (math.floor(math.log2(reach)) - 2) for reach in reaches.tolist()]
    assert found.scale.float().flatten().tolist() == wanted
    assert found.scale.dtype == torch.float8_e8m0fnu


def test_the_largest_weight_of_a_tensor_is_held_by_the_scales_of_nvfp4() -> None:
    form, weight = FORMATS["nvfp4"], normal(8, 64)

    found = quantize_floats(weight, form, group=16, search=False)

    assert found.tensor_scale is not None
    least = float(weight.abs().amax()) / (448 * 6)
    assert least <= float(found.tensor_scale) < 2 * least
    assert math.log2(float(found.tensor_scale)).is_integer()
    assert 224 <= float(found.scale.float().amax()) <= 448
    held = dequantize_weight(found)
    assert float(held.abs().amax()) == pytest.approx(float(weight.abs().amax()), rel=1 / 16)
    assert torch.equal(held.bfloat16().float(), held)


@ALL
@pytest.mark.parametrize("value", [0.0, 1e-30, -3.0, 1e30])
def test_constant_weights_have_a_finite_result(form: WeightFormat, value: float) -> None:
    weight = torch.full((3, 40), value)

    found = dequantize_weight(quantize_floats(weight, form, group=form.default_block))

    assert found.isfinite().all()
    if abs(value) < 1:
        assert found.abs().max() <= 1e-7
    elif value == -3.0:
        assert found == pytest.approx(-3.0, rel=0.05)


@ALL
def test_a_weight_with_infinity_is_refused(form: WeightFormat) -> None:
    with pytest.raises(InvalidModel):
        quantize_floats(torch.full((2, 32), math.inf), form, group=form.default_block)


def test_blocks_have_their_own_size() -> None:
    with pytest.raises(SpecError, match="blocks of nvfp4 have 16 columns, not 32"):
        quantize_floats(normal(2, 64), FORMATS["nvfp4"], group=32)


@ALL
@pytest.mark.parametrize("columns", [7, 64, 80])
def test_a_packed_weight_has_its_bytes_and_comes_back_to_the_bit(
    form: WeightFormat, columns: int
) -> None:
    precision = Precision(form.bits, 16, form.default_block, 1.0, form.name)
    weight, quantizer = normal(9, columns), QuantizerSpec(rounding=Rounding.NEAREST)

    tensors = packed_weight(weight, precision, quantizer)

    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    assert nbytes == weight_nbytes(9, columns, precision, quantizer)
    wanted = fake_quantize_weight(weight, precision, quantizer)
    assert torch.equal(unpacked_weight(tensors, 9, columns, precision, quantizer), wanted)
    assert tensors["scale"].dtype == getattr(torch, form.scale.value)


def problem(form: WeightFormat, columns: int = 48) -> RoundingProblem:
    inputs = normal(200, columns).double() @ normal(columns, columns, seed=1).double()
    hessian = damped_hessian(inputs.T @ inputs / len(inputs))
    return RoundingProblem(
        normal(16, columns, seed=2), hessian, form.bits, form.default_block, form=form
    )


@ALL
def test_no_method_is_worse_than_the_nearest_codes(form: WeightFormat) -> None:
    own = problem(form)

    errors = {name: rounding_error(own, method(own)) for name, method in METHODS.items()}

    assert errors[Rounding.GPTQ].sum() < errors[Rounding.NEAREST].sum()
    assert (errors[Rounding.DESCENT] <= errors[Rounding.NEAREST]).all()
    assert (errors[Rounding.DESCENT] <= errors[Rounding.GPTQ]).all()
    assert errors[Rounding.DESCENT].sum() < 0.95 * errors[Rounding.GPTQ].sum()


def test_descent_finds_the_best_codes_of_two_columns_of_independent_inputs() -> None:
    form = FORMATS["mxfp4"]
    hessian = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    own = RoundingProblem(normal(16, 2), hessian, 4, 32, form=form)

    found = METHODS[Rounding.DESCENT](own)

    scale = found.scales.double()
    errors = [
        ((own.target.double() - scale * torch.tensor(levels)) ** 2 @ hessian.diagonal())
        for levels in itertools.product(form.finite, repeat=2)
    ]
    torch.testing.assert_close(rounding_error(own, found), torch.stack(errors).amin(0))


def test_scales_of_a_byte_take_a_byte() -> None:
    small = {name for name, form in FORMATS.items() if form.scale is not ScaleType.FLOAT16}

    assert all(FORMATS[name].scale_nbytes == 1 for name in small)
    assert all(FORMATS[name].scale_nbytes == 2 for name in FORMATS.keys() - small)

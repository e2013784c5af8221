import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from bitfront.precision import FULL, Precision
from bitfront.quant.inputs import InputQuantizer, InputRange
from bitfront.quant.weights import fake_quantize_weight
from bitfront.spec import QuantizerSpec
from objectives.cost.kernels import find_kernels

CPU = torch.device("cpu")
INT8 = Precision(8, 8)


def _pair(rows: int, columns: int, positions: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) + 0.3
    return weight, 2 * torch.randn(positions, columns, generator=generator) - 0.5


@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    positions=st.integers(1, 9),
    scheme=st.sampled_from(["symmetric", "asymmetric"]),
    activations=st.sampled_from(["static", "dynamic", "dynamic_symmetric"]),
    seed=st.integers(0, 2**31),
)
def test_int8_product_equals_the_fake_quantized_one(
    rows: int, columns: int, positions: int, scheme: str, activations: str, seed: int
) -> None:
    quantizer = QuantizerSpec.model_validate({"scheme": scheme, "activations": activations})
    weight, inputs = _pair(rows, columns, positions, seed)
    range_ = InputRange(-3.0, 4.0) if activations == "static" else None

    (kernel,) = find_kernels(INT8, columns, CPU, quantizer)
    product = kernel.prepare(weight, range_)(inputs)

    is_symmetric = activations == "dynamic_symmetric"
    rounded = InputQuantizer(8, range_, is_symmetric=is_symmetric)(inputs).double()
    expected = rounded @ fake_quantize_weight(weight, INT8, quantizer).double().T
    assert kernel.name == f"int8-{activations}"
    assert product.dtype == torch.float32
    # One input may round to the other side of a tie: float32 divides in another order.
    assert (product - expected).abs().max() <= 1e-5 * columns * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    ("group", "columns", "name"),
    [
        (0, 96, "int4-g32"),
        (0, 128, "int4-g128"),
        (32, 64, "int4-g32"),
        (64, 64, "int4-g64"),
        (32, 80, "int4-g32"),
        (0, 48, "int4-g64"),
    ],
)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("rows", [16, 21])
def test_int4_product_is_within_bfloat16_of_the_fake_quantized_one(
    group: int, columns: int, name: str, scheme: str, rows: int
) -> None:
    quantizer = QuantizerSpec.model_validate({"scheme": scheme})
    precision = Precision(4, 16, group)
    weight, inputs = _pair(rows, columns, 7, seed=1)

    (kernel,) = find_kernels(precision, columns, CPU, quantizer)
    product = kernel.prepare(weight, None)(inputs)

    expected = functional.linear(inputs, fake_quantize_weight(weight, precision, quantizer))
    assert kernel.name == name
    assert product.shape == (7, rows)
    assert (product - expected).norm() <= 0.01 * expected.norm()


def test_full_precision_runs_in_float32_on_the_cpu() -> None:
    weight, inputs = _pair(5, 6, 3, seed=2)

    (kernel,) = find_kernels(FULL, 6, CPU, QuantizerSpec())
    product = kernel.prepare(weight, None)(inputs)

    assert torch.equal(product, functional.linear(inputs, weight.half().float()))


@pytest.mark.parametrize("text", ["w3a8", "w8a16", "w4a8", "w8a8g32", "w6a6", "w4a16g48", "w16a8"])
def test_what_torch_has_no_kernel_for_has_none(text: str) -> None:
    assert find_kernels(Precision.parse(text), 96, CPU, QuantizerSpec()) == []


def test_a_group_as_wide_as_the_row_is_one_scale_a_row() -> None:
    assert find_kernels(Precision(8, 8, 96), 96, CPU, QuantizerSpec())
    assert find_kernels(Precision(4, 16, 48), 32, CPU, QuantizerSpec())

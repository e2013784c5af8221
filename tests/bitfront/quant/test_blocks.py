"""Inputs and bytes as llama.cpp has them."""

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfront.layers import Layer, LayerKind, Tower
from bitfront.precision import Precision
from bitfront.quant.blocks import BlockQuantizer, block_rounding, blocked_nbytes


def layer(columns: int, kind: LayerKind = LayerKind.LINEAR, tower: Tower = Tower.LANGUAGE) -> Layer:
    return Layer("a", tower, kind, 3, columns, 1, "a", "a")


@settings(max_examples=60)
@given(st.integers(0, 2**31))
def test_blocks_of_32_are_rounded_as_gguf_rounds_them(seed: int) -> None:
    inputs = torch.randn(5, 96, generator=torch.Generator().manual_seed(seed))
    kind = GGMLQuantizationType.Q8_0
    wanted = torch.from_numpy(dequantize(quantize(inputs.numpy(), kind), kind))

    found = BlockQuantizer(32)(inputs)

    step = inputs.abs().amax() / 127
    differ = (found - wanted).abs()
    assert float(differ.max()) <= 1.001 * float(step)  # a tie may go either way
    assert int((differ > 1e-6).sum()) <= 1


def test_blocks_of_256_keep_their_scale_in_float32() -> None:
    inputs = torch.linspace(-3, 1, 512).view(1, 512)

    found = BlockQuantizer(256)(inputs)

    for block in range(2):
        columns = slice(256 * block, 256 * (block + 1))
        scale = inputs[0, columns].abs().max() / 127
        levels = (inputs[0, columns] / scale).round() * scale
        assert torch.allclose(found[0, columns], levels, atol=1e-6)


def test_zeros_stay_zero_and_gradients_pass() -> None:
    inputs = torch.zeros(2, 64, requires_grad=True)

    found = BlockQuantizer(32)(inputs)
    torch.autograd.backward(found.sum())

    assert not found.any()
    assert inputs.grad is not None
    assert bool((inputs.grad == 1).all())


@pytest.mark.parametrize(
    ("columns", "text", "size"),
    [(96, "w4a16", 32), (256, "w3a16", 256), (256, "w3a16g32", 32), (96, "w16a16", None)],
)
def test_the_type_of_a_weight_says_how_its_input_is_rounded(
    columns: int, text: str, size: int | None
) -> None:
    found = block_rounding(layer(columns), Precision.parse(text))

    assert (None if found is None else found.size) == size


def test_what_llama_cpp_does_not_multiply_is_not_rounded() -> None:
    assert block_rounding(layer(96, tower=Tower.VISION), Precision(4)) is None


@pytest.mark.parametrize(
    ("known", "text", "nbytes"),
    [
        (layer(512), "w2a16", 3 * 2 * 84),
        (layer(96), "w2a16", 3 * 3 * 18),
        (layer(96), "w8a16g32", 3 * 3 * 34),
        (layer(96), "w16a16", 3 * 96 * 2),
        (layer(40), "w4a16", 3 * 40 * 4),
        (layer(96, LayerKind.CONVOLUTION), "w4a16", 3 * 96 * 4),
        (layer(96, LayerKind.EMBEDDING), "w5a16", 3 * 3 * 22),
    ],
)
def test_a_layer_takes_the_bytes_of_its_blocks(known: Layer, text: str, nbytes: int) -> None:
    assert blocked_nbytes(known, Precision.parse(text)) == nbytes


def test_two_quantizers_share_a_result_only_where_their_blocks_are_alike() -> None:
    assert BlockQuantizer(32).levels == BlockQuantizer(32).levels
    assert BlockQuantizer(32).levels != BlockQuantizer(256).levels

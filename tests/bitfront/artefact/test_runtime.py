"""The loader that travels with an artefact computes what the quantizer computes, to the bit."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from bitfront.artefact.architectures import RUNTIME
from bitfront.artefact.runtime.packed_model import InputRounding, PackedWeight, unpack_codes
from bitfront.precision import Precision
from bitfront.quant.inputs import GROUP, InputQuantizer, InputRange, input_grid
from bitfront.quant.packing import pack_codes, packed_weight, unpacked_weight
from bitfront.spec import QuantizerSpec
from bitfront.vlm.plan_switch import quantized_input

WIDTHS = (2, 3, 4, 5, 6, 8)
SOURCES = sorted(path for path in RUNTIME.glob("*.py") if path.name != "__init__.py")
TRAVELS_WITH = {
    *("torch", "safetensors", "PIL", "transformers", "tokenizers", "ftfy", "numpy"),
    *("onnxruntime", "openvino", "xllamacpp", "gguf"),
    *(path.stem for path in SOURCES),
}
# What an exported model is run without.
FOREIGN = {"torch", "transformers", "safetensors"}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("source", SOURCES, ids=[path.name for path in SOURCES])
def test_what_travels_imports_nothing_of_bitfront(source: Path) -> None:
    tree = ast.parse(source.read_text())
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
        )
    }

    assert imported <= TRAVELS_WITH | set(sys.stdlib_module_names)
    assert source.name != "exported_model.py" or not imported & FOREIGN


@settings(max_examples=60)
@given(st.sampled_from(WIDTHS), st.integers(1, 40), st.integers(0, 2**31))
def test_the_loader_reads_every_stream_of_codes(bits: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (count,), generator=generator, dtype=torch.uint8)

    assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, count), codes)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("group", [0, 4, 5, 16, 100])
@pytest.mark.parametrize("bits", [*WIDTHS, 16])
def test_the_loader_unpacks_every_format_to_the_bit(bits: int, group: int, scheme: str) -> None:
    quantizer = QuantizerSpec.model_validate({"scheme": scheme, "scale_search": False})
    precision = Precision(bits, 16, group)
    tensors = packed_weight(normal(7, 19), precision, quantizer)

    packed = PackedWeight(tensors, (7, 19), bits, group, torch.float32)

    wanted = unpacked_weight(tensors, 7, 19, precision, quantizer)
    assert torch.equal(packed(), wanted)
    places = torch.tensor([[6, 0], [3, 3]])
    assert torch.equal(packed.rows(places), wanted[places])


@pytest.mark.parametrize("bits", [*WIDTHS, 16])
def test_an_embedding_unpacks_only_the_rows_that_are_looked_up(bits: int) -> None:
    quantizer, precision = QuantizerSpec(scale_search=False), Precision(bits, 16, 8)
    tensors = packed_weight(normal(50, 16), precision, quantizer)
    packed = PackedWeight(tensors, (50, 16), bits, 8, torch.float32)
    places = torch.tensor([4, 49, 4])

    wanted = nn.functional.embedding(places, unpacked_weight(tensors, 50, 16, precision, quantizer))

    assert torch.equal(packed.rows(places), wanted)


def test_a_weight_in_memory_takes_its_packed_bytes() -> None:
    tensors = packed_weight(normal(64, 64), Precision(3, 16, 16), QuantizerSpec())

    packed = PackedWeight(tensors, (64, 64), 3, 16, torch.float32)

    held = sum(buffer.nbytes for buffer in packed.buffers())
    assert held == sum(tensor.nbytes for tensor in tensors.values())
    assert held < 64 * 64


@settings(max_examples=80)
@given(
    st.sampled_from([4, 6, 8]),
    st.floats(-8, 8, width=32),
    st.floats(0, 8, width=32),
    st.integers(0, 2**31),
)
def test_static_inputs_are_rounded_to_the_bit(
    bits: int, low: float, span: float, seed: int
) -> None:
    bounds = InputRange(low, low + span)
    inputs = 4 * normal(3, 11, seed=seed)
    scale, zero = input_grid(torch.tensor(bounds.low), torch.tensor(bounds.high), bits)

    rounding = InputRounding(bits, (scale.to(torch.float16), zero.to(torch.uint8)))

    assert torch.equal(rounding(inputs), InputQuantizer(bits, bounds)(inputs))


@settings(max_examples=40)
@given(
    st.sampled_from([4, 6, 8]),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e5, 1e8]),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_dynamic_inputs_are_rounded_to_the_bit(
    bits: int, size: float, seed: int, dtype: torch.dtype
) -> None:
    inputs = (size * normal(2, 5, 7, seed=seed)).clamp(-6e4, 6e4).to(dtype)

    assert torch.equal(InputRounding(bits, None)(inputs), InputQuantizer(bits, None)(inputs))
    symmetric = InputRounding(bits, None, is_symmetric=True)
    assert torch.equal(symmetric(inputs), InputQuantizer(bits, None, is_symmetric=True)(inputs))


@settings(max_examples=40)
@given(
    st.sampled_from([4, 6, 8]),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e5, 1e8]),
    st.sampled_from([7, 64, 100]),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_inputs_in_groups_are_rounded_to_the_bit(
    bits: int, size: float, columns: int, seed: int, dtype: torch.dtype
) -> None:
    inputs = (size * normal(2, 5, columns, seed=seed)).clamp(-6e4, 6e4).to(dtype)

    rounded = InputRounding(bits, None, GROUP)(inputs)

    assert torch.equal(rounded, InputQuantizer(bits, None, group=GROUP)(inputs))


@pytest.mark.parametrize("side", [12, 14])
def test_a_convolution_in_groups_rounds_the_columns_of_its_patches(side: int) -> None:
    inputs, module = normal(3, 2, side, side), nn.Conv2d(2, 5, 6, 6, bias=False)
    quantize = InputQuantizer(8, None, group=GROUP)

    by_loader = InputRounding(8, None, GROUP, (6, 6))(inputs)
    by_switch = quantized_input(quantize, module, inputs)

    patches = functional.unfold(inputs, 6, stride=6).transpose(1, 2)
    rows = quantize(patches) @ module.weight.flatten(1).T
    wanted = rows.transpose(1, 2).unflatten(2, (side // 6, side // 6))  # type: ignore[no-untyped-call]
    assert torch.allclose(module(by_loader), wanted, atol=1e-5)
    assert torch.allclose(module(by_switch), wanted, atol=1e-5)


def test_a_convolution_takes_the_range_of_a_whole_sample() -> None:
    inputs = normal(3, 2, 6, 6) * torch.tensor([1.0, 5.0, 0.1])[:, None, None, None]

    rounded = InputRounding(4, None, kernel=(2, 2))(inputs)

    assert torch.equal(rounded, InputQuantizer(4, None)(inputs.flatten(1)).view_as(inputs))

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.precision import WEIGHT_BITS, Precision
from bitfront.quant.packing import (
    pack_codes,
    packed_length,
    packed_weight,
    unpack_codes,
    unpacked_weight,
    weight_nbytes,
)
from bitfront.quant.weights import fake_quantize_weight
from bitfront.spec import QuantizerSpec

WIDTHS = (2, 3, 4, 5, 6, 8)
LENGTHS = (*range(20), 63, 64, 65, 1000)
SCHEMES = (QuantizerSpec(scheme="asymmetric"), QuantizerSpec(scheme="symmetric"))


def packed_slowly(codes: list[int], bits: int) -> bytes:
    stream = sum(code << (bits * place) for place, code in enumerate(codes))
    return stream.to_bytes((len(codes) * bits + 7) // 8, "little")


def layer(precision: Precision, quantizer: QuantizerSpec) -> dict[str, Tensor]:
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    return packed_weight(weight, precision, quantizer)


@pytest.mark.parametrize("count", LENGTHS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_one_dense_stream_of_bits(bits: int, count: int) -> None:
    codes = [(7 * place + 3) % 2**bits for place in range(count)]

    packed = pack_codes(torch.tensor(codes, dtype=torch.uint8), bits)

    assert bytes(packed.tolist()) == packed_slowly(codes, bits)
    assert packed.numel() == packed_length(count, bits)
    assert unpack_codes(packed, bits, count).tolist() == codes


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_round_trips_at_every_place(bits: int) -> None:
    for code, place in itertools.product(range(2**bits), range(8)):
        codes = torch.full((9,), 2**bits - 1 - code, dtype=torch.uint8)
        codes[place] = code

        assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, 9), codes)


@settings(max_examples=40)
@given(st.sampled_from(WIDTHS), st.data())
def test_any_codes_of_any_shape_round_trip(bits: int, data: st.DataObject) -> None:
    rows, columns = data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    size = rows * columns
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=size, max_size=size))
    codes = torch.tensor(values, dtype=torch.uint8).reshape(rows, columns)

    packed = pack_codes(codes.T, bits)

    assert torch.equal(unpack_codes(packed, bits, size).reshape(columns, rows), codes.T)


def test_a_long_stream_round_trips() -> None:
    count = 2**23 + 5  # more than one chunk of words
    codes = (torch.arange(count) * 5 % 8).to(torch.uint8)

    packed = pack_codes(codes, 3)

    assert packed.numel() == packed_length(count, 3)
    assert torch.equal(unpack_codes(packed, 3, count), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_a_code_that_is_too_large_is_refused(bits: int) -> None:
    codes = torch.tensor([0, 2**bits], dtype=torch.uint8)

    with pytest.raises(InvalidModel, match=f"the code {2**bits} does not fit into {bits} bits"):
        pack_codes(codes, bits)


def test_a_stream_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidModel, match=r"11 codes of 3 bits take 5 bytes.* holds 4"):
        unpack_codes(torch.zeros(4, dtype=torch.uint8), 3, 11)


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 70),
    st.sampled_from(WEIGHT_BITS),
    st.integers(0, 80),
    st.sampled_from(SCHEMES),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_what_is_packed_is_what_was_measured_and_counted(
    rows: int,
    columns: int,
    bits: int,
    group: int,
    scheme: QuantizerSpec,
    search: bool,
    seed: int,
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    precision = Precision(bits, group=group)
    quantizer = scheme.model_copy(update={"scale_search": search})

    tensors = packed_weight(weight, precision, quantizer)

    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    assert nbytes == weight_nbytes(rows, columns, precision, quantizer)
    unpacked = unpacked_weight(tensors, rows, columns, precision, quantizer)
    assert torch.equal(unpacked, fake_quantize_weight(weight, precision, quantizer))


def test_a_convolution_is_packed_as_a_matrix() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for bits in (4, 16):
        tensors = packed_weight(weight, Precision(bits), SCHEMES[0])

        unpacked = unpacked_weight(tensors, 4, 12, Precision(bits), SCHEMES[0])

        expected = fake_quantize_weight(weight, Precision(bits), SCHEMES[0])
        assert torch.equal(unpacked.reshape(weight.shape), expected)


@pytest.mark.parametrize(
    ("rows", "columns", "precision", "scheme", "nbytes"),
    [
        (10, 100, Precision(16), "asymmetric", 2000),
        (10, 100, Precision(4), "asymmetric", 500 + 10 * 3),
        (10, 100, Precision(4), "symmetric", 500 + 10 * 2),
        (10, 100, Precision(3, group=32), "asymmetric", 375 + 10 * 4 * 3),
        (3, 3, Precision(3, group=5), "symmetric", 4 + 3 * 2),
    ],
)
def test_bytes_are_counted_as_by_hand(
    rows: int, columns: int, precision: Precision, scheme: str, nbytes: int
) -> None:
    quantizer = QuantizerSpec.model_validate({"scheme": scheme})

    assert weight_nbytes(rows, columns, precision, quantizer) == nbytes


@pytest.mark.parametrize(
    ("bits", "name"), [(16, "weight"), (4, "codes"), (4, "scale"), (4, "zero")]
)
def test_a_missing_tensor_is_named(bits: int, name: str) -> None:
    precision = Precision(bits)
    tensors = layer(precision, SCHEMES[0])
    del tensors[name]

    with pytest.raises(InvalidModel, match=f"has no {name}"):
        unpacked_weight(tensors, 3, 10, precision, SCHEMES[0])


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("codes", torch.zeros(14, dtype=torch.uint8)),
        ("codes", torch.zeros(15, dtype=torch.int8)),
        ("scale", torch.ones(3, 2, dtype=torch.float16)),
        ("scale", torch.ones(3, 1)),
        ("zero", torch.zeros(1, 3, dtype=torch.uint8)),
    ],
)
def test_a_tensor_of_another_shape_or_dtype_is_refused(name: str, replacement: Tensor) -> None:
    tensors = layer(Precision(4), SCHEMES[0]) | {name: replacement}

    with pytest.raises(InvalidModel, match=f"a packed layer's {name} should be"):
        unpacked_weight(tensors, 3, 10, Precision(4), SCHEMES[0])

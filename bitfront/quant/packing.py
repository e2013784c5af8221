"""Packing: codes as a dense bit stream, and what a packed checkpoint holds for a layer."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.precision import Precision
from bitfront.quant.rounding.methods import rounded_weight
from bitfront.quant.weights import (
    QuantizedWeight,
    dequantize_weight,
    group_count,
    round_weight,
)
from bitfront.spec import QuantizerSpec

_CHUNK = 2**20  # words of eight codes packed at a time


def pack_codes(codes: UInt8[Tensor, "*shape"], bits: int) -> UInt8[Tensor, " nbytes"]:
    """The codes as one dense stream of bits, in row-major order.

    Code `i` takes the bits from `bits * i` on, least significant first; bit `j` of the stream
    is bit `j % 8` of byte `j // 8`. The last byte is filled up with zeros.

    Args:
        codes: Any shape, uint8, each below `2**bits`.
        bits: Width of a code, 1 to 8.

    Raises:
        InvalidModel: A code does not fit into `bits`.
    """
    flat = codes.reshape(-1)
    count = flat.numel()
    if count and int(flat.max()) >= 2**bits:
        raise InvalidModel(f"the code {int(flat.max())} does not fit into {bits} bits")
    if bits == 8:
        return flat.clone()
    padded = torch.nn.functional.pad(flat, (0, -count % 8)).reshape(-1, 8)
    packed = [_pack_words(words, bits) for words in torch.split(padded, _CHUNK)]
    return torch.cat(packed).reshape(-1)[: packed_length(count, bits)].clone()


def unpack_codes(
    packed: UInt8[Tensor, " nbytes"], bits: int, count: int
) -> UInt8[Tensor, " count"]:
    """The first `count` codes of a stream that `pack_codes` wrote.

    Raises:
        InvalidModel: The stream has another length than `count` codes take.
    """
    if packed.numel() != packed_length(count, bits):
        raise InvalidModel(
            f"{count} codes of {bits} bits take {packed_length(count, bits)} bytes, "
            f"but the checkpoint holds {packed.numel()}"
        )
    if bits == 8:
        return packed.clone()
    padded = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits)
    codes = [_unpack_words(words, bits) for words in torch.split(padded, _CHUNK)]
    return torch.cat(codes).reshape(-1)[:count].clone()


def packed_length(count: int, bits: int) -> int:
    """The bytes of `count` packed codes."""
    return -(-count * bits // 8)


def packed_weight(
    weight: Float[Tensor, "rows *shape"],
    precision: Precision,
    quantizer: QuantizerSpec,
    moment: Float[Tensor, "columns columns"] | None = None,
) -> dict[str, Tensor]:
    """What a packed checkpoint stores for one layer; arguments as in `rounded_weight`.

    Returns:
        At 16 bits `weight`, float16 `(rows, columns)`. Below, `codes`, the packed bytes;
        `scale`, `(rows, groups)`, float16 or as the format stores it; if asymmetric, `zero`, uint8
        `(rows, groups)`; and where the format has one, `tensor_scale`, float32 `()`.

    Raises:
        InvalidModel: The weight has one dimension, is empty, or holds NaN or infinity.
    """
    if not precision.quantizes_weight:
        return {"weight": round_weight(weight)}
    return packed_codes(rounded_weight(weight, precision, quantizer, moment))


def packed_codes(quantized: QuantizedWeight) -> dict[str, Tensor]:
    """What a packed checkpoint stores for codes; see `packed_weight`."""
    tensors = {"codes": pack_codes(quantized.codes, quantized.bits), "scale": quantized.scale}
    if quantized.zero is not None:
        tensors["zero"] = quantized.zero
    if quantized.tensor_scale is not None:
        tensors["tensor_scale"] = quantized.tensor_scale
    return tensors


def unpacked_weight(
    tensors: Mapping[str, Tensor],
    rows: int,
    columns: int,
    precision: Precision,
    quantizer: QuantizerSpec,
) -> Float32[Tensor, "{rows} {columns}"]:
    """The weight that `packed_weight` stored, bit for bit as `fake_quantize_weight` gives it.

    Raises:
        InvalidModel: A tensor is missing, or has another shape or dtype than this layer at
            this precision has.
    """
    if not precision.quantizes_weight:
        return _stored(tensors, "weight", (rows, columns), torch.float16).float()
    return dequantize_weight(unpacked_codes(tensors, rows, columns, precision, quantizer))


def unpacked_codes(
    tensors: Mapping[str, Tensor],
    rows: int,
    columns: int,
    precision: Precision,
    quantizer: QuantizerSpec,
) -> QuantizedWeight:
    """The codes that `packed_codes` stored.

    Raises:
        InvalidModel: As for `unpacked_weight`.
    """
    bits, form = precision.weight_bits, precision.form
    grid = (rows, group_count(columns, precision.group))
    length = (packed_length(rows * columns, bits),)
    codes = unpack_codes(_stored(tensors, "codes", length, torch.uint8), bits, rows * columns)
    codes = codes.reshape(rows, columns)
    if form is not None:
        scale = _stored(tensors, "scale", grid, getattr(torch, form.scale.value))
        whole = _stored(tensors, "tensor_scale", (), torch.float32) if form.scales_tensor else None
        return QuantizedWeight(codes, scale, None, bits, precision.group, form, whole)
    scale = _stored(tensors, "scale", grid, torch.float16)
    symmetric = quantizer.scheme == "symmetric"
    zero = None if symmetric else _stored(tensors, "zero", grid, torch.uint8)
    return QuantizedWeight(codes, scale, zero, bits, precision.group)


def weight_nbytes(rows: int, columns: int, precision: Precision, quantizer: QuantizerSpec) -> int:
    """The bytes of the tensors that `packed_weight` stores, by arithmetic."""
    if not precision.quantizes_weight:
        return 2 * rows * columns
    scales = rows * group_count(columns, precision.group)
    codes = packed_length(rows * columns, precision.weight_bits)
    if precision.form is not None:
        return codes + scales * precision.form.scale_nbytes + precision.form.tensor_nbytes
    grid_nbytes = 2 if quantizer.scheme == "symmetric" else 3  # scale, and the zero point's byte
    return codes + scales * grid_nbytes


def _stored(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise InvalidModel(f"a packed layer has no {name}, only {', '.join(tensors) or 'nothing'}")
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise InvalidModel(
            f"a packed layer's {name} should be {dtype} of shape {shape}, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor


def _pack_words(codes: Tensor, bits: int) -> Tensor:
    """`(words, 8)` codes to `(words, bits)` bytes."""
    word = torch.zeros(codes.shape[0], dtype=torch.int64, device=codes.device)
    for place in range(8):
        word |= codes[:, place].long() << (bits * place)
    return torch.stack([(word >> (8 * byte)) & 255 for byte in range(bits)], 1).to(torch.uint8)


def _unpack_words(packed: Tensor, bits: int) -> Tensor:
    """`(words, bits)` bytes to `(words, 8)` codes."""
    word = torch.zeros(packed.shape[0], dtype=torch.int64, device=packed.device)
    for byte in range(bits):
        word |= packed[:, byte].long() << (8 * byte)
    mask = 2**bits - 1
    return torch.stack([(word >> (bits * place)) & mask for place in range(8)], 1).to(torch.uint8)

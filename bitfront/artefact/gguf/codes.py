"""Codes as gguf's blocks: the same codes and scales, in the order that llama.cpp reads them."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bitfront.quant.blocks import BlockType

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_ONE = 1  # what multiplies a block's scale within it, where a type has such multipliers


def packed_blocks(codes: Bytes, scale: np.ndarray, bits: int, held: BlockType) -> Bytes:
    """The blocks of a weight, `(rows, bytes)`.

    Args:
        codes: `(rows, columns)`, from 0 to `2**bits - 1`, with the middle code for zero.
        scale: `(rows, columns / held.size)`, float16: of each block.
        bits: Width of the codes, at most that of the type.
        held: The type.
    """
    rows, columns = codes.shape
    shift = 2 ** (held.bits - 1) - 2 ** (bits - 1)
    blocks = (codes + np.uint8(shift)).reshape(-1, held.size)
    parts = _PACKERS[held.name](blocks, np.ascontiguousarray(scale, np.float16).reshape(-1, 1))
    joined: Bytes = np.concatenate(parts, axis=1)
    assert joined.shape[1] == held.nbytes, "a block has the bytes of its type"
    return joined.reshape(rows, columns // held.size * held.nbytes)


def _raw(scale: np.ndarray) -> Bytes:
    return scale.view(np.uint8)


def _nibbles(blocks: Bytes) -> Bytes:
    """The first half of a run in the low four bits, the second in the high ones."""
    half = blocks.shape[-1] // 2
    joined: Bytes = (blocks[..., :half] & np.uint8(15)) | (blocks[..., half:] << np.uint8(4))
    return joined


def _pairs(blocks: Bytes, width: int) -> Bytes:
    """Two bits of four neighbouring runs of `width`, in bytes of one run."""
    runs = blocks.reshape(len(blocks), -1, 4, width) & np.uint8(3)
    places = np.array([0, 2, 4, 6], np.uint8)[:, None]
    joined: Bytes = np.bitwise_or.reduce(runs << places, axis=2).reshape(len(blocks), -1)
    return joined


def _q4_0(blocks: Bytes, scale: np.ndarray) -> list[Bytes]:
    return [_raw(scale), _nibbles(blocks)]


def _q5_0(blocks: Bytes, scale: np.ndarray) -> list[Bytes]:
    high = np.packbits(blocks >> np.uint8(4), axis=-1, bitorder="little")
    return [_raw(scale), high, _nibbles(blocks)]


def _q8_0(blocks: Bytes, scale: np.ndarray) -> list[Bytes]:
    return [_raw(scale), blocks ^ np.uint8(128)]  # from the middle code on, as signed bytes


def _q2_k(blocks: Bytes, scale: np.ndarray) -> list[Bytes]:
    """`d * code - 2 * d`: the least code is two steps below zero."""
    multipliers = np.full((len(blocks), 16), _ONE | 2 << 4, np.uint8)
    return [multipliers, _pairs(blocks, 32), _raw(scale), _raw(scale)]


def _q3_k(blocks: Bytes, scale: np.ndarray) -> list[Bytes]:
    high = (blocks >> np.uint8(2)).reshape(len(blocks), 8, 32)
    mask = np.bitwise_or.reduce(high << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    biased = _ONE + 32  # six bits: four of two multipliers a byte, then two of four
    low = np.full((len(blocks), 8), (biased & 15) * 0x11, np.uint8)
    rest = np.full((len(blocks), 4), (biased >> 4) * 0x55, np.uint8)
    return [mask, _pairs(blocks, 32), low, rest, _raw(scale)]


def _q6_k(blocks: Bytes, scale: np.ndarray) -> list[Bytes]:
    low = _nibbles(blocks.reshape(len(blocks), 2, 128)).reshape(len(blocks), -1)
    multipliers = np.full((len(blocks), 16), _ONE, np.uint8)
    return [low, _pairs(blocks >> np.uint8(4), 32), multipliers, _raw(scale)]


_Packer = Callable[[Bytes, np.ndarray], list[Bytes]]

_PACKERS: Final = MappingProxyType[str, _Packer](
    {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_0": _q4_0, "Q5_0": _q5_0, "Q6_K": _q6_k, "Q8_0": _q8_0}
)

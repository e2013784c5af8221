"""Streams of codes that few nodes unpack: one look-up in a table for each byte of a word.

A word is the least number of bytes that holds whole codes. Each bit of it is copied to fixed bits
of the container, so a container is the exclusive or of what a table has for each byte of the word.
ONNX Runtime folds these nodes when it loads a model; a look-up takes few bytes beside its result,
where arithmetic on integers would take many times the memory of the weights.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from bitfront.artefact.onnx.graph import Graph
from bitfront.quant.packing import pack_codes

BYTE = 8


@dataclass(frozen=True, slots=True)
class Container:
    """What a code becomes: its bits in a container, of which a byte may hold several.

    Attributes:
        bits: Width of a code.
        width: Width of a container: 2, 4 or 8. It holds `code * 2**(width - bits)`, or if it is
            signed the code less its middle; the first container lies in a byte's lowest bits.
        is_signed: Whether it is an int8.
    """

    bits: int
    width: int
    is_signed: bool = False

    @property
    def masks(self) -> list[int]:
        """The bits of the container that each bit of a code is copied to."""
        if not self.is_signed:
            return [1 << (bit + self.width - self.bits) for bit in range(self.bits)]
        return [*(1 << bit for bit in range(self.bits - 1)), self.flipped]

    @property
    def flipped(self) -> int:
        """The bits of the container that are inverted: below the middle, a code is negative."""
        return 0x100 - (1 << (self.bits - 1)) if self.is_signed else 0

    @property
    def word_nbytes(self) -> int:
        """Bytes of a word."""
        return math.lcm(self.bits, BYTE) // BYTE

    def tables(self) -> NDArray[np.uint8]:
        """For each byte of a word `(bytes, 256, containers' bytes)`: what it adds to the result."""
        codes = self.word_nbytes * BYTE // self.bits
        together = BYTE // self.width
        tables = np.zeros((self.word_nbytes, 256, codes // together), np.uint8)
        values = np.arange(256)
        for place in range(self.word_nbytes * BYTE):
            byte, bit = divmod(place, BYTE)
            code, digit = divmod(place, self.bits)
            output, position = divmod(code, together)
            is_set = (values >> bit & 1).astype(np.uint8)
            tables[byte, :, output] ^= is_set * np.uint8(
                self.masks[digit] << (self.width * position)
            )
        tables[0] ^= np.uint8(self.flipped)
        return tables


_INT4: Final = Container(4, BYTE, is_signed=True)  # ONNX has a type for it, and a cast is cheaper


def contained(
    graph: Graph, name: str, codes: Tensor, container: Container, shape: tuple[int, ...]
) -> str:
    """Codes in containers; the file holds them as a dense stream.

    Args:
        graph: Where to.
        name: Of the stream.
        codes: In the order of the result, uint8.
        container: What they become.
        shape: Of the result, in bytes: uint8, or int8 if the container is signed.
    """
    if container.bits == container.width and not container.is_signed:
        return graph.store(name, pack_codes(codes, container.bits).view(shape))
    if container.bits == BYTE:
        return graph.store(name, (codes.to(torch.int16) - 128).to(torch.int8).view(shape))
    stream = pack_codes(codes, container.bits)
    if container == _INT4:
        # Less the middle, a code has its highest bit inverted: so has each half of a byte.
        return graph.cast(graph.store_int4(name, stream ^ 0x88, shape), TensorProto.INT8)
    stored = graph.store(name, stream)
    word = container.word_nbytes
    missing = -len(stream) % word
    if missing:
        stored = graph.add("Concat", stored, graph.constant([0] * missing, np.uint8), axis=0)
    places = graph.cast(stored, TensorProto.INT32)
    if word > 1:
        places = graph.shaped(places, -1, word)
    dtype = np.int8 if container.is_signed else np.uint8
    found = ""
    for byte, table in enumerate(container.tables()):
        place = places
        if word > 1:
            place = graph.add("Gather", places, graph.constant(byte, np.int64), axis=1)
        part = graph.add("Gather", graph.constant(table.view(dtype), dtype), place, axis=0)
        found = graph.add("BitwiseXor", found, part) if found else part
    count = math.prod(shape)
    if (len(stream) + missing) * BYTE // container.bits * container.width // BYTE != count:
        found = graph.sliced(graph.shaped(found, -1), 0, 0, count)
    return graph.shaped(found, *shape)

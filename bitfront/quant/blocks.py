"""Block types, as gguf has them: which one holds a layer's codes, and what llama.cpp rounds."""

from dataclasses import dataclass
from typing import Final

from jaxtyping import Float
from torch import Tensor

from bitfront.layers import Layer, LayerKind, Tower
from bitfront.precision import Precision
from bitfront.quant.inputs import GROUP, InputQuantizer, round_in_groups

KEPT_NBYTES: Final = 4
"""Bytes of an element that no plan changes, which llama.cpp wants in float32."""

_FULL_NBYTES, _VALUE_NBYTES = 2, 4


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a run of neighbouring columns lies in a file.

    Attributes:
        name: As llama.cpp calls it.
        bits: Width of its codes, which are signed numbers around zero.
        size: Columns of a block; they share a scale.
        nbytes: Bytes of a block.
    """

    name: str
    bits: int
    size: int
    nbytes: int

    def fits(self, bits: int, group: int, columns: int) -> bool:
        """Whether it holds codes of a width, each block with one scale."""
        own_group = group % self.size == 0 or group >= columns
        return bits <= self.bits and columns % self.size == 0 and own_group


BLOCK_TYPES: Final = (
    BlockType("Q2_K", 2, 256, 84),
    BlockType("Q3_K", 3, 256, 110),
    BlockType("Q4_0", 4, 32, 18),
    BlockType("Q5_0", 5, 32, 22),
    BlockType("Q6_K", 6, 256, 210),
    BlockType("Q8_0", 8, 32, 34),
)
"""Those that can hold a trial's symmetric codes, the smallest first."""


def block_type(bits: int, group: int, columns: int) -> BlockType | None:
    """The smallest type that holds codes of a width exactly; None if no block has one scale."""
    return next((one for one in BLOCK_TYPES if one.fits(bits, group, columns)), None)


def layer_block_type(layer: Layer, precision: Precision) -> BlockType | None:
    """The type of a layer's codes; None where values are stored: for a convolution always."""
    if layer.kind is LayerKind.CONVOLUTION or not precision.quantizes_weight:
        return None
    return block_type(precision.weight_bits, precision.group, layer.columns)


def blocked_nbytes(layer: Layer, precision: Precision) -> int:
    """The bytes of a layer's weight: its blocks, or values in 16 bits, or those of codes in 32."""
    held = layer_block_type(layer, precision)
    if held is not None:
        return layer.weights // held.size * held.nbytes
    return layer.weights * (_VALUE_NBYTES if precision.quantizes_weight else _FULL_NBYTES)


def block_rounding(layer: Layer, precision: Precision) -> "BlockQuantizer | None":
    """What llama.cpp makes of a layer's input; None where the input stays as it is.

    The decoder is multiplied by llama.cpp; what comes before it is not.
    """
    held = layer_block_type(layer, precision)
    if held is None or layer.tower is not Tower.LANGUAGE:
        return None
    return BlockQuantizer(held.size)


class BlockQuantizer(InputQuantizer):
    """Rounds an input as llama.cpp does: to signed bytes, with one scale for each block.

    The scale is the block's largest magnitude over 127; blocks of 32 store theirs in float16.
    The gradient passes unchanged.

    Attributes:
        size: Columns of a block, which divides those of the input.
    """

    def __init__(self, size: int) -> None:
        super().__init__(8, None)
        self.size = size

    @property
    def levels(self) -> tuple[object, ...]:
        """What two quantizers share that round alike."""
        return ("blocks", self.size)

    def __call__(self, inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The input on its levels."""
        return round_in_groups(inputs, self.bits, self.size, halves_scale=self.size == GROUP)

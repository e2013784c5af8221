"""Layers, the weight matrices that can be quantized, and the blocks they are searched in."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from bitfront.kv_cache import names_cache


class Tower(StrEnum):
    """The part of a vision-language model that a layer belongs to."""

    VISION = "vision"
    TEXT = "text"
    PROJECTOR = "projector"
    LANGUAGE = "language"

    @property
    def sees_images(self) -> bool:
        """Whether the image goes through it: all but the text tower of a dual encoder."""
        return self is not Tower.TEXT


class LayerKind(StrEnum):
    """What the weight does with its input."""

    LINEAR = "linear"
    CONVOLUTION = "convolution"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight matrix that can be quantized.

    Attributes:
        name: The parameter's name in the model as its library has it, such as
            `visual.transformer.resblocks.0.attn.in_proj_weight`.
        tower: The tower it belongs to.
        kind: What the weight does with its input.
        rows: Output channels (for an embedding, the vocabulary).
        columns: Inputs to one output (for a convolution, channels times kernel).
        positions: How often the matrix is applied for one sample (tokens or patches);
            0 for an embedding, which multiplies nothing.
        source: Layers with the same source share one input tensor (q, k and v; gate and up).
        scope: The transformer block that holds it, such as `visual.transformer.resblocks.0`;
            the tower's name for what lies outside of one.
    """

    name: str
    tower: Tower
    kind: LayerKind
    rows: int
    columns: int
    positions: int
    source: str
    scope: str

    @property
    def weights(self) -> int:
        """The number of weights."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring layers of one tower that are searched together.

    Or a place of the KV cache, as its one layer.
    """

    name: str
    tower: Tower
    layers: tuple[str, ...]

    @classmethod
    def of_place(cls, place: str) -> Self:
        """The block that a place of the KV cache is, given by its name."""
        return cls(place, Tower.LANGUAGE, (place,))

    @property
    def is_cache(self) -> bool:
        """Whether it is a place of the KV cache."""
        return names_cache(self.name)


def input_groups(block: Block, layers: Mapping[str, Layer]) -> list[Block]:
    """The block's layers in order, those that share an input (q, k and v) together.

    Layers of one group do not see each other: what the block gives leaves all of the last one's.

    Args:
        block: The block; its layers are in order of execution.
        layers: The model's, by name.
    """
    found: dict[str, list[str]] = {}
    for name in block.layers:
        found.setdefault(layers[name].source, []).append(name)
    return [Block(members[0], block.tower, tuple(members)) for members in found.values()]

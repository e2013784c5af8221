"""What a layer may take: the precisions that a job's space leaves it, or its fixed width."""

from fnmatch import fnmatchcase
from itertools import product

from bitfront.layers import Layer
from bitfront.precision import Precision
from bitfront.spec import QuantizerSpec, SpaceSpec


def short_name(name: str) -> str:
    """A layer's name as tables show it: without the `weight` at its end."""
    return name.removesuffix(".weight").removesuffix("_weight")


def kept_width(layer: Layer, space: SpaceSpec) -> int | None:
    """The fixed width of a layer that `keep` names; None where its width is searched."""
    return next((bits for text, bits in space.keep.items() if matches_pattern(text, layer)), None)


def matches_pattern(text: str, layer: Layer) -> bool:
    """Whether a pattern of `keep` names a layer, with or without the `weight` at its end."""
    return fnmatchcase(layer.name, text) or fnmatchcase(short_name(layer.name), text)


def layer_precisions(layer: Layer, space: SpaceSpec, quantizer: QuantizerSpec) -> list[Precision]:
    """What one layer may take, without two ways to say the same.

    A weight in 16 bits has no group, an input in 16 bits no clip, an embedding no input, and a
    convolution none that some quantizers round; a group of the whole row or more is one scale a
    row. Clips are not chosen here: every
    precision has the widest.
    """
    kept = kept_width(layer, space)
    found: dict[Precision, None] = {}
    takes_input = quantizer.rounds(layer.kind)
    widest = max(space.clips)
    for bits, activation, group in product(
        (kept,) if kept is not None else sorted(space.weight_bits),
        sorted(space.activation_bits) if takes_input else (16,),
        space.groups,
    ):
        coarse = bits == 16 or group >= layer.columns
        precision = Precision(
            bits, activation, 0 if coarse else group, 1.0 if activation == 16 else widest
        )
        found[precision] = None
    return list(found)

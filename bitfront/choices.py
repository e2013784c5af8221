"""What a layer may take: the precisions that a job's space leaves it, or its fixed width."""

from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product

from bitfront.kv_cache import KV_FULL, Kept, KvFormat
from bitfront.layers import Layer
from bitfront.precision import Precision
from bitfront.spec import KeySide, KvCacheSpace, KvLevels, QuantizerSpec, SpaceSpec


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
    row. Clips are not chosen here: every precision has the widest.
    """
    kept = kept_width(layer, space)
    found: dict[Precision, None] = {}
    takes_input = quantizer.rounds(layer.kind)
    widest = max(space.clips)
    weights = space.weights if kept is None else space.of_width(kept)
    widths = sorted({weight.weight_bits for weight in weights})
    inputs = sorted(space.activation_bits) if takes_input else (16,)
    for bits, activation, weight in product(widths, inputs, weights):
        if weight.weight_bits == bits:
            clip = 1.0 if activation == 16 else widest
            found[fitted(replace(weight, activation_bits=activation, clip=clip), layer)] = None
    return list(found)


def fitted(precision: Precision, layer: Layer) -> Precision:
    """A precision without a group where the layer's rows hold one group at most, or no codes."""
    is_fixed = precision.form is not None and precision.form.block
    coarse = not precision.quantizes_weight or precision.group >= layer.columns
    return replace(precision, group=0) if coarse and not is_fixed else precision


def cache_formats(kept: Kept, space: KvCacheSpace) -> list[KvFormat]:
    """What keys or values may take, narrow first, without two ways to say the same.

    16 bits have neither levels nor outliers, and no rotary embedding is about values.
    """
    sides = space.rotary if kept is Kept.KEYS else (KeySide.BEFORE,)
    found = [
        KV_FULL
        if bits == KV_FULL.bits
        else KvFormat(bits, share, levels is KvLevels.UNIFORM, side is KeySide.AFTER)
        for bits, levels, side, share in product(
            sorted(space.bits), space.levels, sides, sorted(space.outliers)
        )
    ]
    return list(dict.fromkeys(found))


def cache_forms(space: SpaceSpec) -> list[tuple[Kept, KvFormat]]:
    """All that keys and values may take; nothing where the cache is not searched."""
    cache = space.kv_cache
    return [] if cache is None else [(kept, x) for kept in Kept for x in cache_formats(kept, cache)]

"""Codes of a KV cache: keys by channel, values by token, on levels of their own, outliers apart.

After KVQuant (Hooper et al., NeurIPS 2024, arXiv:2401.18079): keys have the same range in all
tokens of a channel, before the rotary embedding turns channels into each other (section 3.1);
values have one for each token, which is found as the token is written. A vector is brought to
[-1, 1] by its two ends and rounded to the nearest of some levels, which k-means finds (section
3.2); values beyond the ends are kept as they are (section 3.3).
"""

import torch
from jaxtyping import Float
from torch import Tensor

_ITERATIONS = 100


def vector_ends(
    vectors: Float[Tensor, "vectors n"], outliers: float = 0.0
) -> tuple[Float[Tensor, " vectors"], Float[Tensor, " vectors"]]:
    """The lowest and the highest value of each vector without its outliers, rounded to float16.

    The `floor(outliers * n / 2)` lowest values and as many of the highest are outliers. A NaN
    counts as the highest value; what float16 does not hold is infinite.
    """
    ordered = vectors.float().sort(dim=-1).values
    apart = int(outliers * vectors.shape[-1] / 2)
    return ordered[:, apart].half().float(), ordered[:, -1 - apart].half().float()


def uniform_levels(bits: int) -> Float[Tensor, " levels"]:
    """`2 ** bits` levels from -1 to 1, equally far apart, in float32."""
    return torch.linspace(-1, 1, 2**bits)


def fitted_levels(
    values: Float[Tensor, " n"], weights: Float[Tensor, " n"], bits: int
) -> Float[Tensor, " levels"]:
    """Levels of the smallest weighted square error that Lloyd's iteration finds (weighted k-means).

    It begins at the uniform levels, so that the error is at most theirs, and ends when no value
    changes its level, or after 100 rounds. A level without weight stays where it is.

    Args:
        values: In [-1, 1]; brought there by their vectors' ends.
        weights: Not negative; KVQuant takes the squared gradients of the loss.
        bits: Of a code.

    Returns:
        Float32, ascending.
    """
    values, weights = values.double(), weights.double()
    levels = uniform_levels(bits).double()
    codes = _nearest(values, levels)
    for _ in range(_ITERATIONS):
        mass = torch.zeros_like(levels).index_add_(0, codes, weights)
        sums = torch.zeros_like(levels).index_add_(0, codes, weights * values)
        levels = torch.where(mass > 0, sums / mass.clamp_min(1e-300), levels)
        found = _nearest(values, levels)
        if torch.equal(found, codes):
            break
        codes = found
    return levels.float()


def normalised(
    vectors: Float[Tensor, "vectors n"],
    low: Float[Tensor, " vectors"],
    high: Float[Tensor, " vectors"],
) -> Float[Tensor, "vectors n"]:
    """Each vector with its ends brought to -1 and 1; 0 where the ends are the same."""
    half = ((high - low) / 2)[:, None]
    middle = ((high + low) / 2)[:, None]
    moved = (vectors.float() - middle) / torch.where(half > 0, half, torch.ones_like(half))
    return torch.where(half > 0, moved.clamp(-1, 1), torch.zeros_like(moved))


def round_vectors(
    vectors: Float[Tensor, "vectors n"],
    low: Float[Tensor, " vectors"],
    high: Float[Tensor, " vectors"],
    levels: Float[Tensor, " levels"],
    *,
    keeps_outliers: bool,
) -> Float[Tensor, "vectors n"]:
    """What is read back of each vector: the nearest level between its ends.

    Between two levels the lower one is taken where both are as far. With outliers apart, what in
    float16 lies beyond an end is read back in float16; otherwise it is the level at that end. A
    NaN stays one.

    Args:
        vectors: Channels of keys, or tokens of values.
        low: What `vector_ends` gave: of keys on calibration samples, of values on themselves.
        high: The same.
        levels: In [-1, 1], ascending.
        keeps_outliers: Whether outliers are kept apart.

    Returns:
        In the dtype of the vectors.
    """
    places = normalised(vectors, low, high)
    codes = _nearest(places, levels.to(places))
    half, middle = (high - low) / 2, (high + low) / 2
    read = middle[:, None] + half[:, None] * levels.to(places)[codes]
    read = torch.where(vectors.isnan(), vectors.float(), read)
    if keeps_outliers:
        stored = vectors.half().float()
        outside = (stored < low[:, None]) | (stored > high[:, None])
        read = torch.where(outside, stored, read)
    return read.to(vectors.dtype)


def round_keys(
    keys: Float[Tensor, "n tokens channels"],
    low: Float[Tensor, " channels"],
    high: Float[Tensor, " channels"],
    levels: Float[Tensor, " levels"],
    *,
    keeps_outliers: bool,
) -> Float[Tensor, "n tokens channels"]:
    """What is read back of keys whose channels have ends that calibration found."""
    channels = keys.flatten(0, 1).T.contiguous()
    read = round_vectors(channels, low, high, levels, keeps_outliers=keeps_outliers)
    return read.T.reshape(keys.shape)


def round_values(
    values: Float[Tensor, "n tokens channels"],
    levels: Float[Tensor, " levels"],
    outliers: float = 0.0,
) -> Float[Tensor, "n tokens channels"]:
    """What is read back of values, each token between its own ends."""
    tokens = values.flatten(0, 1)
    low, high = vector_ends(tokens, outliers)
    read = round_vectors(tokens, low, high, levels, keeps_outliers=outliers > 0)
    return read.reshape(values.shape)


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The place of the nearest level of each value, the lower one of two that are as far."""
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)

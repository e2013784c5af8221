"""Codes of a KV cache, against the definition by loops and scikit-learn's k-means."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.kv_cache import Kept, KvFormat, KvPlace
from bitfront.quant.kv_cache import (
    fitted_levels,
    normalised,
    round_keys,
    round_values,
    round_vectors,
    uniform_levels,
    vector_ends,
)

BITS = st.sampled_from([2, 3, 4, 8])
SHARES = st.sampled_from([0.0, 0.05, 0.3])


def drawn(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    heavy = torch.randn(*shape, generator=generator) ** 3  # with outliers
    return heavy + torch.randn(*shape[:-1], 1, generator=generator)


def by_loops(vector: list[float], levels: list[float], share: float) -> list[float]:
    """What is read back of one vector between its own ends, number by number."""
    ordered = sorted(vector)
    apart = math.floor(share * len(vector) / 2)
    low, high = (float(np.float16(x)) for x in (ordered[apart], ordered[-1 - apart]))
    found = []
    for value in vector:
        stored = float(np.float16(value))
        if share and not low <= stored <= high:
            found.append(stored)
            continue
        middle, half = (low + high) / 2, (high - low) / 2
        steps = [(abs(middle + half * level - value), place) for place, level in enumerate(levels)]
        found.append(middle + half * levels[min(steps)[1]])
    return found


@settings(max_examples=60, deadline=None)
@given(bits=BITS, share=SHARES, seed=st.integers(0, 2**31))
def test_values_are_rounded_token_by_token_as_by_loops(bits: int, share: float, seed: int) -> None:
    values = drawn(seed, 2, 3, 24)
    levels = uniform_levels(bits)

    found = round_values(values, levels, share)

    slow = [by_loops(row, levels.tolist(), share) for row in values.flatten(0, 1).tolist()]
    # Halfway between two levels either is right up to the last bit.
    distance = (found.flatten(0, 1) - values.flatten(0, 1)).abs()
    expected = (torch.tensor(slow) - values.flatten(0, 1)).abs()
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(bits=BITS, share=SHARES, seed=st.integers(0, 2**31))
def test_keys_are_rounded_channel_by_channel(bits: int, share: float, seed: int) -> None:
    keys = drawn(seed, 4, 5, 6).transpose(0, 2).contiguous()
    flat = keys.flatten(0, 1)
    low, high = vector_ends(flat.T, share)

    found = round_keys(keys, low, high, uniform_levels(bits), keeps_outliers=share > 0)

    for channel in range(keys.shape[-1]):
        slow = by_loops(flat[:, channel].tolist(), uniform_levels(bits).tolist(), share)
        distance = (found[..., channel].flatten() - flat[:, channel]).abs()
        expected = (torch.tensor(slow) - flat[:, channel]).abs()
        torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(bits=BITS, seed=st.integers(0, 2**31))
def test_the_error_is_at_most_half_a_step_and_that_of_the_ends(bits: int, seed: int) -> None:
    values = drawn(seed, 1, 4, 32)
    low, high = vector_ends(values[0])

    found = round_values(values, uniform_levels(bits))

    step = (high - low) / (2**bits - 1)
    rounded = 2.0**-10 * torch.maximum(low.abs(), high.abs())  # of the ends, in float16
    assert ((found - values)[0].abs() <= (step / 2 + rounded)[:, None] * (1 + 1e-5)).all()


def test_what_calibration_did_not_see_is_the_end_or_kept_apart() -> None:
    keys = torch.tensor([[[5.0], [-3.0], [0.25]]])
    low, high = torch.tensor([-1.0]), torch.tensor([1.0])

    clipped = round_keys(keys, low, high, uniform_levels(2), keeps_outliers=False)
    kept = round_keys(keys, low, high, uniform_levels(2), keeps_outliers=True)

    assert clipped.flatten().tolist() == pytest.approx([1.0, -1.0, 1 / 3])
    assert kept.flatten().tolist() == pytest.approx([5.0, -3.0, 1 / 3])


@settings(max_examples=25, deadline=None)
@given(bits=st.sampled_from([2, 3]), seed=st.integers(0, 2**31))
def test_levels_are_those_of_weighted_k_means(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = drawn(seed, 4, 50)
    values = normalised(vectors, *vector_ends(vectors)).flatten()
    weights = torch.rand(len(values), generator=generator) ** 4

    levels = fitted_levels(values, weights, bits)

    starts = uniform_levels(bits).double().numpy()[:, None]
    # An empty cluster is moved by scikit-learn, and stays here.
    begun = (values[:, None] - uniform_levels(bits)).abs().argmin(dim=1)
    if len(set(begun.tolist())) == len(starts):
        theirs = KMeans(len(starts), init=starts, n_init=1, tol=0, algorithm="lloyd").fit(
            values.double().numpy()[:, None], sample_weight=weights.double().numpy()
        )
        error = _weighted_error(values, weights, levels)
        assert error == pytest.approx(float(theirs.inertia_), rel=1e-3)
    assert (levels.diff() >= 0).all()


def _weighted_error(values: Tensor, weights: Tensor, levels: Tensor) -> float:
    distance = (values.double()[:, None] - levels.double()).abs().min(dim=1).values
    return float((weights.double() * distance**2).sum())


@settings(max_examples=60, deadline=None)
@given(bits=BITS, seed=st.integers(0, 2**31))
def test_fitted_levels_are_never_worse_than_uniform_ones(bits: int, seed: int) -> None:
    vectors = drawn(seed, 3, 40)
    values = normalised(vectors, *vector_ends(vectors, 0.1)).flatten()
    weights = torch.ones(len(values))

    fitted = _weighted_error(values, weights, fitted_levels(values, weights, bits))

    assert fitted <= _weighted_error(values, weights, uniform_levels(bits)) * (1 + 1e-6) + 1e-9


def test_a_vector_of_one_value_is_read_back_and_a_nan_stays_one() -> None:
    values = torch.tensor([[[0.5, 0.5, 0.5], [1.0, math.nan, 2.0]]])

    low, high = torch.tensor([0.5, 1.0]), torch.tensor([0.5, 2.0])
    read = round_vectors(values[0], low, high, uniform_levels(2), keeps_outliers=True)

    assert read[0].tolist() == [0.5, 0.5, 0.5]
    assert read[1].isnan().tolist() == [False, True, False]


def packed(codes: list[list[int]], bits: int) -> bytes:
    """Codes token by token, each token's bits filled up to whole bytes."""
    content = b""
    for row in codes:
        text = "".join(f"{code:0{bits}b}" for code in row)
        text += "0" * (-len(text) % 8)
        content += int(text, 2).to_bytes(len(text) // 8, "big")
    return content


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("is_uniform", [True, False])
def test_bytes_are_those_of_what_is_written(bits: int, share: float, *, is_uniform: bool) -> None:
    tokens, channels = 40, 20
    codes = [[0] * channels for _ in range(tokens)]
    form = KvFormat(bits, share, is_uniform)
    whole = len(packed(codes, bits)) + (0 if is_uniform else np.zeros(2**bits, np.float16).nbytes)
    outlier = np.zeros(1, [("value", np.float16), ("place", np.uint32)]).nbytes

    of_channels = drawn(0, channels, tokens)
    low, high = vector_ends(of_channels, share)
    stored = of_channels.half()
    apart = int(((stored < low[:, None]) | (stored > high[:, None])).sum()) if share else 0

    ends = np.zeros((channels, 2), np.float16).nbytes
    keys, values = (KvPlace("decoder", kept, channels) for kept in Kept)
    assert keys.nbytes(form, tokens) == whole + ends + apart * outlier
    ends = np.zeros((tokens, 2), np.float16).nbytes
    apart = tokens * 2 * math.floor(share * channels / 2)
    assert values.nbytes(form, tokens) == whole + ends + apart * outlier


def test_sixteen_bits_are_stored_as_they_are() -> None:
    assert all(KvPlace("decoder", kept, 8).nbytes(KvFormat(16), 5) == 80 for kept in Kept)


@pytest.mark.parametrize("kept", list(Kept))
def test_of_a_sliding_window_no_more_is_held_than_it_looks_back_at(kept: Kept) -> None:
    window, whole = KvPlace("decoder", kept, 8, window=100), KvPlace("decoder", kept, 8)
    for form in (KvFormat(16), KvFormat(3, 0.1)):
        assert window.nbytes(form, 8000) == whole.nbytes(form, 100)
        assert window.nbytes(form, 60) == whole.nbytes(form, 60)


@pytest.mark.parametrize("text", ["kv2", "kv3k", "kv4r", "kv8o0.01", "kv2kro0.05", "kv16"])
def test_a_short_form_is_read_as_it_was_written(text: str) -> None:
    assert str(KvFormat.parse(text)) == text


@pytest.mark.parametrize("text", ["kv5", "kv", "w4a8", "kv4rk", "kv4o1", "kv4 "])
def test_another_short_form_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        KvFormat.parse(text)


@pytest.mark.parametrize(("bits", "outliers"), [(5, 0.0), (1, 0.0), (4, 1.0), (4, -0.1)])
def test_another_format_is_refused(bits: int, outliers: float) -> None:
    with pytest.raises(SpecError, match="must be"):
        KvFormat(bits, outliers)

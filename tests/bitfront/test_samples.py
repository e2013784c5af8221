"""What comes out for samples, packed: bits where all count alike, shares elsewhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.samples import SampleResults, effective_count

SHARES = st.lists(st.floats(0, 4, width=32), min_size=1, max_size=40)


@given(shares=SHARES)
def test_shares_come_back_as_they_were(shares: list[float]) -> None:
    nats = np.arange(len(shares), dtype="<f4")

    samples = SampleResults.of_shares(shares, nats.tolist())

    assert len(samples) == len(shares)
    assert (samples.errors == shares).all()
    assert (samples.right == (np.array(shares) == 0)).all()
    assert (samples.divergence == nats).all()
    assert SampleResults(samples.packed) == samples


def test_samples_that_count_alike_take_a_bit_and_others_a_float() -> None:
    nats = [0.0] * 9

    assert len(SampleResults.of([True] * 9, nats).packed) == 4 + 2 + 36
    assert SampleResults.of([True] * 9, nats) == SampleResults.of_shares([0.0] * 9, nats)
    assert len(SampleResults.of_shares([0.5] * 9, nats).packed) == 4 + 36 + 36


def test_the_standard_error_is_that_of_a_mean_of_shares() -> None:
    shares = [0.0, 0.5, 2.0, 0.0, 1.5]

    found = SampleResults.of_shares(shares, [0.0] * 5).standard_errors

    assert found["error_se"] == pytest.approx(np.std(shares) / 5**0.5)


def test_the_effective_count_has_the_same_standard_error() -> None:
    shares = np.array([0.0, 0.5, 2.0, 0.0, 0.5, 0.0])
    share = shares.mean()

    count = effective_count(shares)

    assert (share * (1 - share) / count) ** 0.5 == pytest.approx(shares.std() / 6**0.5)
    assert effective_count(np.array([1.0, 0.0, 0.0])) == pytest.approx(3)
    assert effective_count(np.zeros(7)) == 7

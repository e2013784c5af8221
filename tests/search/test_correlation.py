"""Rank correlation against its definition: Pearson's correlation of mean ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.correlation import rank_correlation, rank_interval

coarse = st.integers(-3, 3).map(float)
pairs = st.lists(st.tuples(coarse, coarse), max_size=20)


def ranks(values: list[float]) -> list[float]:
    """Equal values share the mean of their ranks."""
    return [
        sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values
    ]


@given(pairs)
def test_it_is_spearmans(values: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in values], [b for _, b in values]

    found = rank_correlation(first, second)

    if len(set(first)) < 2 or len(set(second)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(ranks(first), ranks(second))[0, 1])


def test_any_rising_function_correlates_fully() -> None:
    assert rank_correlation([1.0, 2.0, 5.0, 9.0], [0.1, 0.2, 0.3, 100.0]) == pytest.approx(1.0)


def test_an_interval_of_a_rank_correlation_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    true = 6 / np.pi * np.arcsin(0.8 / 2)  # of normal pairs that correlate by 0.8
    inside = []
    for _ in range(400):
        x, y = rng.normal(size=30), rng.normal(size=30)
        value = rank_correlation(x.tolist(), (0.8 * x + 0.6 * y).tolist())
        assert value is not None
        low, high = rank_interval(value, 30)
        inside.append(low <= true <= high)

    assert 0.9 < np.mean(inside) < 0.99
    assert rank_interval(1.0, 9) == (1.0, 1.0)

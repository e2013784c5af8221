"""Rank correlation against its definition: Pearson's correlation of mean ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.correlation import rank_correlation

coarse = st.integers(-3, 3).map(float)
pairs = st.lists(st.tuples(coarse, coarse), max_size=20)


def ranks(values: list[float]) -> list[float]:
    """Equal values share the mean of their ranks."""
    return [
        sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values
    ]


@given(pairs)
@settings(deadline=None)
def test_it_is_spearmans(values: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in values], [b for _, b in values]

    found = rank_correlation(first, second)

    if len(set(first)) < 2 or len(set(second)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(ranks(first), ranks(second))[0, 1])


def test_any_rising_function_correlates_fully() -> None:
    assert rank_correlation([1.0, 2.0, 5.0, 9.0], [0.1, 0.2, 0.3, 100.0]) == pytest.approx(1.0)

"""Rank correlation against scipy's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from search.correlation import rank_correlation

coarse = st.integers(-3, 3).map(float)
pairs = st.lists(st.tuples(coarse, coarse), min_size=2, max_size=20)


@given(pairs)
@settings(deadline=None)
def test_it_is_spearmans(values: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in values], [b for _, b in values]
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert rank_correlation(first, second) == 0.0
        return

    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_any_rising_function_correlates_fully() -> None:
    assert rank_correlation([1.0, 2.0, 5.0, 9.0], [0.1, 0.2, 0.3, 100.0]) == pytest.approx(1.0)

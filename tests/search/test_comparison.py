"""Comparisons on the same samples, against scipy's tests and counts by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, ttest_rel

from bitfront.samples import SampleResults
from search.comparison import Comparison, error_interval, proportion_interval

flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


def results(right: list[bool], nats: list[float] | None = None) -> SampleResults:
    return SampleResults.of(right, nats or [0.0] * len(right))


@given(pairs=flags)
def test_the_test_of_errors_is_the_exact_one_of_mcnemar(pairs: list[tuple[bool, bool]]) -> None:
    first, second = results([a for a, _ in pairs]), results([b for _, b in pairs])

    found = Comparison.of(first, second)

    fixed = sum(a and not b for a, b in pairs)
    broken = sum(b and not a for a, b in pairs)
    wanted = 1.0 if fixed + broken == 0 else binomtest(fixed, fixed + broken, 0.5).pvalue
    assert (found.fixed, found.broken) == (fixed, broken)
    assert found.error_p == pytest.approx(wanted)
    assert found.error == pytest.approx((broken - fixed) / len(pairs))


def test_the_divergence_is_compared_by_paired_differences() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.exponential(1, 4000), rng.exponential(1.05, 4000)

    found = Comparison.of(
        results([True] * 4000, first.tolist()), results([True] * 4000, second.tolist())
    )

    wanted = ttest_rel(first, second)
    assert found.divergence == pytest.approx((first - second).mean(), rel=1e-5)
    assert found.divergence / found.divergence_se == pytest.approx(wanted.statistic, rel=1e-4)
    assert found.divergence_p == pytest.approx(wanted.pvalue, rel=1e-2)


def test_equal_results_are_not_told_apart_by_anything() -> None:
    same = results([True, False, True], [0.1, 0.2, 0.3])

    found = Comparison.of(same, same)

    assert (found.error_p, found.divergence_p, found.errors_differ) == (1.0, 1.0, False)
    assert found.samples_needed(0.0) == math.inf


def test_needed_samples_show_a_true_difference_as_often_as_promised() -> None:
    """By simulation: of 512 samples, 3 % come out right with the first alone, 2 % the other way."""
    rng = np.random.default_rng(1)
    kinds = rng.permutation(np.repeat([0, 1, 2], [15, 10, 487]))
    found = Comparison.of(results((kinds != 1).tolist()), results((kinds != 0).tolist()))

    needed = int(found.samples_needed(0.01))

    counts = rng.multinomial(needed, [0.03, 0.02, 0.95], size=2000)
    seen = [binomtest(int(a), int(a + b), 0.5).pvalue < 0.05 for a, b, _ in counts]
    assert 0.74 < np.mean(seen) < 0.86


@given(samples=st.integers(1, 3000), share=st.floats(0, 1))
def test_an_interval_of_a_share_is_wilsons(samples: int, share: float) -> None:
    count = round(share * samples)

    found = proportion_interval(count, samples)

    wanted = binomtest(count, samples).proportion_ci(0.95, method="wilson")
    assert found == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_the_variance_of_a_difference_is_never_zero() -> None:
    same = results([True] * 50)

    found = Comparison.of(same, same)

    assert 0 < math.sqrt(found.error_variance) < norm.ppf(0.975) / 50


def test_samples_that_count_differently_are_compared_by_their_shares() -> None:
    rng = np.random.default_rng(2)
    first, second = (
        rng.choice([0.0, 0.4, 1.7], 3000, p=p) for p in ([0.8, 0.1, 0.1], [0.85, 0.1, 0.05])
    )
    nats = [0.0] * 3000

    found = Comparison.of(
        SampleResults.of_shares(first.tolist(), nats),
        SampleResults.of_shares(second.tolist(), nats),
    )

    wanted = ttest_rel(first, second)
    assert found.error == pytest.approx((first - second).mean(), rel=1e-5)
    assert found.error_variance == pytest.approx((first - second).var() / 3000, rel=1e-2)
    assert found.error_p == pytest.approx(wanted.pvalue, rel=0.1)
    assert found.swapped.error == -found.error


def test_the_interval_of_unequal_shares_is_as_wide_as_their_standard_error_says() -> None:
    shares = np.random.default_rng(3).choice([0.0, 0.5, 1.5], 4000, p=[0.7, 0.2, 0.1])
    samples = SampleResults.of_shares(shares.tolist(), [0.0] * 4000)

    low, high = error_interval(samples)

    reach = norm.ppf(0.975) * samples.standard_errors["error_se"]
    assert (low, high) == pytest.approx((shares.mean() - reach, shares.mean() + reach), abs=1e-3)


def test_small_shares_are_not_made_as_unsure_as_whole_samples() -> None:
    """Half of a sample with the largest share of any is added each way, and not half of a whole."""
    shares = np.random.default_rng(4).exponential(0.01, 500)
    nats = [0.0] * 500

    found = Comparison.of(
        SampleResults.of_shares(shares.tolist(), nats), SampleResults.of_shares([0.0] * 500, nats)
    )

    plain = (shares - shares.mean()).var() / 500
    assert plain < found.error_variance < plain + shares.max() ** 2 / 500**2 * 1.01
    none = Comparison.of(*[SampleResults.of([True] * 500, nats)] * 2)
    assert none.error_variance == pytest.approx(1 / 500**2)

"""Racing: who may go on, and how seldom one is stopped that should not be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.samples import RACE_SHARES, SampleResults
from search.race import SIGNIFICANCE, Race, Rival


def rival(number: int, costs: tuple[float, ...], divergence: list[float]) -> Rival:
    return Rival(number, costs, SampleResults.of([True] * len(divergence), divergence))


LEVELS = st.sampled_from([0.5, 1.0, 2.0, 4.0])
TRIALS = st.lists(st.tuples(LEVELS, st.tuples(LEVELS, LEVELS)), max_size=12)


@given(TRIALS, st.tuples(LEVELS, LEVELS))
def test_the_rival_is_the_best_of_all_that_cost_no_more(
    trials: list[tuple[float, tuple[float, float]]], costs: tuple[float, float]
) -> None:
    race = Race.of(rival(n, own, [level] * 3) for n, (level, own) in enumerate(trials))

    found = race.rival(costs)

    within = [level for level, own in trials if own[0] <= costs[0] and own[1] <= costs[1]]
    if not within:
        assert found is None
    else:
        assert found is not None
        assert found.samples.divergence.mean() == min(within)
        assert all(own <= most for own, most in zip(found.costs, costs, strict=True))


def test_one_after_the_other_is_the_same_race_as_all_at_once() -> None:
    rng = np.random.default_rng(0)
    trials = [
        rival(n, tuple(rng.integers(1, 9, 2).astype(float)), rng.exponential(size=4).tolist())
        for n in range(40)
    ]
    growing = Race()
    for trial in trials:
        growing = Race.of([*growing.rivals, trial])

    assert growing == Race.of(trials)


def test_a_trial_stops_once_a_rival_is_surely_better() -> None:
    rng = np.random.default_rng(1)
    base = rng.exponential(0.1, 512)
    race = Race.of([rival(3, (100.0,), base.tolist())])
    places = np.sort(rng.permutation(512)[:64])
    worse = base[places] + rng.exponential(0.05, 64)

    stopped = race.loses_to((100.0,), places, worse)

    assert stopped is not None
    assert stopped.number == 3
    assert race.loses_to((99.0,), places, worse) is None, "nothing so small is known"
    assert race.loses_to((100.0,), places, base[places]) is None
    assert race.loses_to((100.0,), places[:1], worse[:1]) is None, "one sample has no spread"


def test_pairs_tell_what_means_do_not() -> None:
    """A difference far below the spread over the samples is seen on 64 of them."""
    rng = np.random.default_rng(2)
    base = rng.exponential(1.0, 64)
    worse = base + 0.01 + 0.002 * rng.standard_normal(64)
    race = Race.of([rival(0, (1.0,), base.tolist())])

    assert worse.mean() - base.mean() < base.std() / 8, "the means alone are not told apart"
    assert race.loses_to((1.0,), np.arange(64), worse) is not None


def test_an_equal_trial_is_hardly_ever_stopped() -> None:
    rng = np.random.default_rng(3)
    ends = [int(512 * share) for share in RACE_SHARES]
    stopped = 0
    for _ in range(1000):
        base, own = rng.exponential(0.1, (2, 512))
        race = Race.of([rival(0, (1.0,), base.tolist())])
        stopped += any(race.loses_to((1.0,), np.arange(end), own[:end]) for end in ends)

    assert stopped / 1000 < SIGNIFICANCE


def test_a_rival_of_other_samples_stops_nobody() -> None:
    race = Race.of([rival(0, (1.0,), [0.0] * 8)])

    assert race.loses_to((1.0,), np.arange(4, 12), np.ones(8)) is None


@pytest.mark.parametrize("cost", [0.0, 5.0])
def test_a_cost_that_is_not_known_yet_stops_nobody(cost: float) -> None:
    race = Race.of([rival(0, (1.0, 0.001), [0.0] * 8)])

    assert race.loses_to((cost, 0.0), np.arange(8), np.ones(8) + np.arange(8)) is None

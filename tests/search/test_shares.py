from collections import Counter

import numpy as np

from bitfront.trial import Origin
from search.shares import Shares

ORIGINS = (Origin.PROGRAM, Origin.SAMPLER)


def run(trials: int, brings: dict[Origin, bool], shares: Shares | None = None) -> Counter[Origin]:
    """Trials of two origins: what brings something extends the front, all else is dominated."""
    shares = shares or Shares()
    rng = np.random.default_rng(0)
    counts: Counter[Origin] = Counter()
    shares.finish(Origin.BASELINE, (0.5, 0.5))
    for number in range(trials):
        origin = shares.next(ORIGINS)
        shares.propose(origin)
        counts[origin] += 1
        size = 0.4 * rng.random()
        shares.finish(origin, (size, 0.4 - size) if brings[origin] else (0.9, 0.9 + number))
    return counts


def test_both_start_alike() -> None:
    counts = run(200, {Origin.PROGRAM: True, Origin.SAMPLER: True})

    assert counts == {Origin.PROGRAM: 100, Origin.SAMPLER: 100}


def test_what_never_reaches_the_front_gets_few_trials_and_is_never_shut_out() -> None:
    counts = run(200, {Origin.PROGRAM: True, Origin.SAMPLER: False})
    more = run(2000, {Origin.PROGRAM: True, Origin.SAMPLER: False})

    assert 5 <= counts[Origin.SAMPLER] <= 20
    assert more[Origin.SAMPLER] > counts[Origin.SAMPLER]


def test_where_nobody_brings_anything_trials_are_shared_evenly() -> None:
    counts = run(200, {Origin.PROGRAM: False, Origin.SAMPLER: False})

    assert abs(counts[Origin.PROGRAM] - counts[Origin.SAMPLER]) <= 2


def test_a_trial_without_values_counts_as_one_that_brought_nothing() -> None:
    shares = Shares()
    for _ in range(8):
        shares.propose(Origin.SAMPLER)
        shares.finish(Origin.SAMPLER, None)
        shares.propose(Origin.PROGRAM)
        shares.finish(Origin.PROGRAM, (0.1, 0.1))

    assert shares.next(ORIGINS) is Origin.PROGRAM

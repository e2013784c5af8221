"""What is chosen among trials, case by case."""

import numpy as np
import pytest

from bitfront.samples import SampleResults
from bitfront.trial import Measured
from search.choice import Ranking, choose, chosen_front, estimated_front

OBJECTIVES = ("error", "nbytes")
SAMPLES = 400


def measured(
    number: int, wrong: int, nats: float, nbytes: float, *, at: int = 0, recovery: bool = False
) -> Measured:
    """A trial that gets `wrong` samples wrong, from sample `at` on."""
    right = np.ones(SAMPLES, dtype=bool)
    right[at : at + wrong] = False
    spread = np.linspace(0.5, 1.5, SAMPLES)
    samples = SampleResults.of(right.tolist(), (nats * spread).tolist())
    values = {"error": wrong / SAMPLES, "nbytes": nbytes, "divergence": nats}
    return Measured("study", number, values, has_recovery=recovery, samples=samples)


FULL = measured(0, 30, 0.0, 1000)
PLAN = measured(1, 33, 0.01, 400, at=10)
LUCKY = measured(2, 29, 0.05, 300, at=15)
SMALL = measured(3, 90, 0.3, 100)
TRIALS = [FULL, PLAN, LUCKY, SMALL]


def numbers(trials: list[Measured]) -> list[int]:
    return [trial.number for trial in trials]


def test_the_luckiest_trial_is_answered_only_by_the_measured_error() -> None:
    raw = choose(TRIALS, OBJECTIVES, {"nbytes": 500}, Ranking.ERROR)
    best = choose(TRIALS, OBJECTIVES, {"nbytes": 500})

    assert raw is not None
    assert raw.answer == LUCKY
    assert best is not None
    assert best.answer == PLAN


def test_those_that_cannot_be_told_from_the_answer_are_named_with_what_it_would_take() -> None:
    best = choose(TRIALS, OBJECTIVES, {"nbytes": 500})

    assert best is not None
    assert [peer.trial for peer in best.peers] == [LUCKY]
    assert best.peers[0].comparison.samples == SAMPLES
    assert best.peers[0].samples_needed > SAMPLES


def test_nothing_within_the_limits_is_no_choice() -> None:
    assert choose(TRIALS, OBJECTIVES, {"nbytes": 50}) is None
    assert choose([], OBJECTIVES, {}) is None
    assert choose(TRIALS, OBJECTIVES, {"latency_s": 1.0}) is None


def test_a_limit_on_the_error_holds_for_the_estimate() -> None:
    """Less than the lucky trial measured is what no trial is estimated to have."""
    limit = {"error": 29.5 / SAMPLES}

    assert choose(TRIALS, OBJECTIVES, limit) is None
    raw = choose(TRIALS, OBJECTIVES, limit, Ranking.ERROR)
    assert raw is not None
    assert raw.answer == LUCKY


def test_trials_without_samples_are_chosen_by_what_was_measured() -> None:
    old = [Measured("study", n, {"error": e, "nbytes": 9.0}) for n, e in enumerate((0.2, 0.1))]

    best = choose(old, OBJECTIVES, {})

    assert best is not None
    assert (best.answer.number, best.peers, best.estimates) == (1, (), {})
    assert numbers(chosen_front(old, OBJECTIVES)) == [1]


def test_the_order_of_the_trials_does_not_matter() -> None:
    best = [choose(order, OBJECTIVES, {}) for order in (TRIALS, TRIALS[::-1])]
    fronts = [chosen_front(order, OBJECTIVES) for order in (TRIALS, TRIALS[::-1])]

    assert best[0] == best[1]
    assert fronts[0] == fronts[1]


def test_a_larger_trial_is_on_the_front_only_where_more_than_chance_speaks_for_it() -> None:
    """Sizes 100 and 110: as good by every sample; 120: farther off but for two samples' luck."""
    twin, lucky = measured(4, 90, 0.3, 110), measured(5, 88, 0.35, 120)

    front = chosen_front([*TRIALS, twin, lucky], OBJECTIVES)

    assert {3} <= set(numbers(front))
    assert not {4, 5} & set(numbers(front))


def test_a_plain_front_is_by_the_measured_error() -> None:
    assert numbers(chosen_front(TRIALS, OBJECTIVES, Ranking.ERROR)) == [2, 3]


def test_whatever_the_limit_the_answer_is_on_the_estimated_front() -> None:
    front = {(t.values["nbytes"]) for t in estimated_front(TRIALS, OBJECTIVES)}
    for nbytes in (100, 300, 400, 1000, 2000):
        best = choose(TRIALS, OBJECTIVES, {"nbytes": nbytes})
        assert best is not None
        assert best.answer.values["nbytes"] in front


def test_the_divergence_speaks_for_no_recovered_trial() -> None:
    """A recovered trial that is nearer to full precision, by chance better in one sample."""
    near = measured(7, 89, 0.2, 150, recovery=True)

    front = chosen_front([FULL, SMALL, near], OBJECTIVES)

    assert 7 not in numbers(front)


def test_a_packed_result_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="length is wrong"):
        SampleResults(b"\x05\x00\x00\x00\x1f")


@pytest.mark.parametrize("count", [1, 7, 8, 9, 512])
def test_packed_results_come_back(count: int) -> None:
    rng = np.random.default_rng(count)
    right, nats = rng.random(count) < 0.9, rng.exponential(1e-3, count).astype("<f4")

    samples = SampleResults.of(right.tolist(), nats.tolist())

    assert len(samples) == count
    assert (samples.right == right).all()
    assert (samples.divergence == nats).all()
    assert len(samples.packed) == 4 + -(-count // 8) + 4 * count

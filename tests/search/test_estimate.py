"""The estimated error: on made-up studies whose true errors are known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from bitfront.samples import SampleResults
from bitfront.trial import Measured
from search.choice import Ranking, choose
from search.estimate import _increasing, estimate_errors

SAMPLES = 512


def made_up(
    seed: int, count: int = 30, spread: float = 0.0
) -> tuple[list[Measured], NDArray[np.float64]]:
    """Trials of rising divergence and their true errors.

    A sample comes out wrong where its difficulty exceeds a threshold; noise of each trial's own
    flips some. The error rises with the divergence, apart from a deviation of each trial.
    """
    rng = np.random.default_rng(seed)
    divergences = np.concatenate([[0.0], np.sort(rng.exponential(0.05, count - 1))])
    errors = 0.08 + 0.9 * divergences + spread * rng.normal(size=count) * (divergences > 0)
    errors = errors.clip(0.01, 0.9)
    difficulty = rng.random(SAMPLES)
    trials = []
    for number, (error, nats) in enumerate(zip(errors, divergences, strict=True)):
        own = rng.random(SAMPLES) < min(0.9, 3 * nats)
        wrong = np.where(own, rng.random(SAMPLES), difficulty) < error
        shares = nats * rng.exponential(1, SAMPLES)
        samples = SampleResults.of((~wrong).tolist(), shares.tolist())
        values = {
            "error": float(wrong.mean()),
            "nbytes": 1000.0 - number,
            "divergence": float(samples.divergence.mean()),
        }
        trials.append(Measured("made up", number, values, samples=samples))
    return trials, errors


def squared_errors(spread: float) -> tuple[float, float]:
    """Of measured and estimated errors less full precision's, the mean over 40 studies."""
    plain, drawn = [], []
    for seed in range(40):
        trials, true = made_up(seed, spread=spread)
        estimates = estimate_errors(trials)
        measured = np.array([trial.values["error"] for trial in trials])
        estimated = np.array([estimates[trial.place].error for trial in trials])
        plain.append(np.mean(((measured - measured[0]) - (true - true[0])) ** 2))
        drawn.append(np.mean(((estimated - estimated[0]) - (true - true[0])) ** 2))
    return float(np.mean(plain)), float(np.mean(drawn))


def test_where_the_divergence_tells_the_error_chance_is_mostly_gone() -> None:
    plain, drawn = squared_errors(spread=0.0)

    assert drawn < 0.8 * plain


def test_where_errors_stray_from_the_divergence_the_estimate_is_no_worse_than_the_error() -> None:
    plain, drawn = squared_errors(spread=0.05)

    assert drawn < 1.05 * plain


def test_the_choice_is_better_than_the_luckiest_trial() -> None:
    lucky: list[float] = []
    chosen: list[float] = []
    for seed in range(40):
        trials, true = made_up(seed)
        for ranking, found in ((Ranking.ERROR, lucky), (Ranking.ESTIMATE, chosen)):
            choice = choose(trials[3:], ("error", "nbytes"), {}, ranking)
            assert choice is not None
            found.append(true[choice.answer.number] - true[3:].min())

    assert np.mean(chosen) < 0.25 * np.mean(lucky)


def test_the_line_joins_the_centres_of_the_isotonic_regressions_levels() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 12, 40).astype(float)
    y, weights = x + rng.normal(0, 4, 40), rng.uniform(0.2, 3, 40)

    line, _, levels = _increasing(x, y, weights)

    steps = IsotonicRegression().fit(x, y, sample_weight=weights).predict(x).round(9)
    values = np.unique(steps)
    centres = [np.average(x[steps == v], weights=weights[steps == v]) for v in values]
    assert line == pytest.approx(np.interp(x, centres, values))
    assert levels == len(values)
    assert 1 < levels < 12


def test_standard_errors_cover_the_true_error_as_often_as_they_say() -> None:
    inside = []
    for seed in range(40):
        trials, true = made_up(seed, spread=0.02)
        for place, own in estimate_errors(trials).items():
            inside.append(abs(own.error - true[place[1]]) < 1.96 * own.standard_error)

    assert 0.85 < np.mean(inside) <= 1


def test_trials_without_samples_have_no_estimate_and_change_none() -> None:
    trials, _ = made_up(0)
    old = Measured("made up", 99, {"error": 0.01, "nbytes": 5.0})

    assert estimate_errors([*trials, old]) == estimate_errors(trials)


def test_recovered_trials_are_judged_among_themselves() -> None:
    """What a recovery repairs does not come back to full precision: its divergence stays."""
    trials, _ = made_up(0)
    samples = trials[0].samples
    assert samples is not None
    far = SampleResults.of(samples.right.tolist(), [1.0] * SAMPLES)
    values = {"error": trials[0].values["error"], "nbytes": 1.0, "divergence": 1.0}
    recovered = Measured("made up", 50, values, has_recovery=True, samples=far)

    estimates = estimate_errors([*trials, recovered])

    assert estimates[recovered.place].error == pytest.approx(values["error"], abs=0.01)
    assert estimate_errors(trials).items() <= estimates.items()

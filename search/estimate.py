"""What a trial's error is, by all that its study knows: an estimate with less chance in it.

The error on a few hundred samples is a count of rare events; the divergence from full precision
is a mean over all samples, and orders configurations far more surely. So the error is regressed on
the divergence over the trials of a study, and each trial's own error is drawn towards the line by
as much as chance explains. See docs/decisions/0014-choice.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, isotonic_regression
from scipy.special import chdtri

from bitfront.samples import SampleResults
from bitfront.trial import Measured
from search.comparison import SIGNIFICANCE, Comparison

Vector = NDArray[np.float64]

_ROUNDS: Final = 3
"""The line and the spread around it depend on each other: so often each is fitted again."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An error that was estimated, with its standard error."""

    error: float
    standard_error: float


def estimate_errors(trials: Sequence[Measured]) -> dict[tuple[str, int], Estimate]:
    """The estimated error of each trial whose samples are known, by its study and number.

    Trials with and without recovery have a line each: what P4Q repairs, it repairs without coming
    back to what full precision says.

    Args:
        trials: Those of one study, or of several with the same selection samples.
    """
    known = [(t, t.samples) for t in trials if t.samples is not None and "divergence" in t.values]
    found: dict[tuple[str, int], Estimate] = {}
    if not known:
        return found
    reference = min((s for _, s in known), key=lambda s: float(s.divergence.mean()))
    for has_recovery in (False, True):
        alike = [
            (t, s) for t, s in known if t.has_recovery is has_recovery and len(s) == len(reference)
        ]
        if alike:
            found |= _estimate([t for t, _ in alike], [s for _, s in alike], reference)
    return found


def _estimate(
    trials: Sequence[Measured], samples: Sequence[SampleResults], reference: SampleResults
) -> dict[tuple[str, int], Estimate]:
    """The composite estimate of Fay and Herriot, on paired differences from a reference.

    `y_i = e_i - e_0` is trial `i`'s error less that of the configuration that is nearest to full
    precision, on the same samples, and `v_i` its sampling variance. `m` is the increasing line
    through `y` over the divergence, `t` the variance of true errors around it. Then
    `e_0 + m_i + t / (t + v_i) * (y_i - m_i)` (Journal of the American Statistical Association 74
    (1979) 269-277).
    """
    pairs = Comparison.of_each(samples, reference)
    differences = np.array([pair.error for pair in pairs])
    variances = np.array([pair.error_variance for pair in pairs])
    divergences = np.array([trial.values["divergence"] for trial in trials])
    line, line_variances, around = _fit(divergences, differences, variances)
    kept = around / (around + variances)
    shares = reference.errors
    base, base_variance = float(shares.mean()), float(shares.var()) / len(reference)
    errors = np.clip(base + line + kept * (differences - line), 0.0, 1.0)
    own = kept * variances + (1 - kept) ** 2 * line_variances
    return {
        trial.place: Estimate(float(error), math.sqrt(base_variance + float(variance)))
        for trial, error, variance in zip(trials, errors, own, strict=True)
    }


def _fit(x: Vector, y: Vector, variances: Vector) -> tuple[Vector, Vector, float]:
    """The increasing line through `y` over `x`, its variances, and the variance around it."""
    around = 0.0
    line, line_variances = y, variances
    for _ in range(_ROUNDS):
        line, line_variances, levels = _increasing(x, y, 1 / (variances + around))
        around = _variance_around(y - line, variances, len(y) - levels)
    return line, line_variances, around


def _increasing(x: Vector, y: Vector, weights: Vector) -> tuple[Vector, Vector, int]:
    """The centred isotonic regression at each `x`, its variances, and how many levels it has.

    Weighted isotonic regression gives levels; the line runs from the centre of each to that of the
    next, so that what lies lower in `x` is estimated lower (Oron and Flournoy, Statistics in
    Biopharmaceutical Research 9 (2017) 258-267). It is flat before the first and after the last.
    """
    places, members = np.unique(x, return_inverse=True)  # equal `x` have one value
    mass = np.bincount(members, weights)
    fit = isotonic_regression(np.bincount(members, weights * y) / mass, weights=mass)
    starts = np.asarray(fit.blocks)[:-1]
    masses = np.add.reduceat(mass, starts)
    centres = np.add.reduceat(mass * places, starts) / masses
    levels = np.asarray(fit.x)[starts]
    line, variances = np.interp(x, centres, levels), np.interp(x, centres, 1 / masses)
    return line, variances, len(starts)


def _variance_around(residuals: Vector, variances: Vector, freedom: int) -> float:
    """The variance that makes the squared residuals as large as expected (Paule and Mandel).

    0 where the line goes through every point, and where sampling alone explains the residuals: only
    a sum of squares that chance reaches once in twenty is taken for more (a preliminary test, as
    in Datta, Hall and Mandal, Journal of the American Statistical Association 106 (2011) 362-374).
    """

    def excess(around: float) -> float:
        return float((residuals**2 / (variances + around)).sum()) - freedom

    if freedom <= 0 or excess(0.0) + freedom <= chdtri(freedom, SIGNIFICANCE):
        return 0.0
    highest = float((residuals**2).sum()) / freedom
    return float(brentq(excess, 0.0, max(highest, 1e-12)))


def with_estimates(
    trial: Measured, estimates: Mapping[tuple[str, int], Estimate]
) -> dict[str, float]:
    """A trial's values with the estimate in place of its error, where there is one."""
    estimate = estimates.get(trial.place)
    return dict(trial.values) if estimate is None else {**trial.values, "error": estimate.error}

"""How well one ranking predicts another."""

import math
from collections.abc import Sequence
from typing import Final

from scipy.stats import spearmanr


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation in [-1, 1]; None where one of the two does not vary."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


_REACH: Final = 1.959964  # the normal deviate of a 95 % interval


def rank_interval(correlation: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a rank correlation over `count` pairs, at least 4.

    By Fisher's transformation with the variance of Bonett and Wright, Psychometrika 65 (2000)
    23-28.
    """
    if abs(correlation) >= 1:
        return correlation, correlation
    middle = math.atanh(correlation)
    half = _REACH * math.sqrt((1 + correlation**2 / 2) / (count - 3))
    return math.tanh(middle - half), math.tanh(middle + half)

"""Racing: can a trial that part of the selection samples has seen still reach the front?

A trial is evaluated part by part. After each part its divergence from full precision is compared
with that of the best trial that costs no more, on the samples that both have seen. It stops once
that one is better by more than chance, as successive halving does with confidence bounds (Jamieson
and Talwalkar, arXiv:1502.07943; Maron and Moore, Artificial Intelligence Review 11 (1997) 193-225).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.stats import t as student

from bitfront.samples import RACE_SHARES, SampleResults

SIGNIFICANCE: Final = 0.05
"""The probability, over all parts, of stopping a trial that is no worse than its rival."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A complete trial without recovery.

    Attributes:
        number: Of the trial.
        costs: The objectives after the error, all minimised.
        samples: What came out for each selection sample.
    """

    number: int
    costs: tuple[float, ...]
    samples: SampleResults


@dataclass(frozen=True, slots=True)
class Race:
    """What a trial must keep up with.

    Attributes:
        rivals: The trials so far; only those count that no other beats in divergence and costs.
    """

    rivals: tuple[Rival, ...] = ()

    @classmethod
    def of(cls, rivals: Iterable[Rival]) -> "Race":
        """The race against those of some trials that matter: nothing changes without the rest."""
        known = sorted(rivals, key=lambda rival: (_mean(rival), rival.costs, rival.number))
        kept: list[Rival] = []
        for rival in known:
            if not any(_costs_no_more(other.costs, rival.costs) for other in kept):
                kept.append(rival)
        return cls(tuple(kept))

    def rival(self, costs: Sequence[float]) -> Rival | None:
        """Whom a trial of such costs runs against: the lowest divergence at no higher cost."""
        return next((one for one in self.rivals if _costs_no_more(one.costs, costs)), None)

    def loses_to(
        self,
        costs: Sequence[float],
        places: Int[NDArray[np.int64], " n"],
        divergence: Float[NDArray[np.float64], " n"],
    ) -> Rival | None:
        """Who is surely better at no higher cost; None as long as nobody is.

        The one-sided t-test of the paired differences in divergence, with Bonferroni's correction
        for the parts: whom it is paired with is known before the trial begins.

        Args:
            costs: The trial's objectives after the error; 0 for what is not known yet.
            places: The samples that it has seen, by their places in the split.
            divergence: What came out for each of them, in nats.
        """
        rival = self.rival(costs)
        count = len(places)
        if rival is None or count < 2 or places.max() >= len(rival.samples):
            return None
        differences = divergence - rival.samples.divergence[places]
        spread = float(differences.std(ddof=1)) / math.sqrt(count)
        reach = float(student.ppf(1 - SIGNIFICANCE / len(RACE_SHARES), count - 1))
        return rival if float(differences.mean()) > reach * spread else None


def _mean(rival: Rival) -> float:
    return float(rival.samples.divergence.mean())


def _costs_no_more(these: Sequence[float], others: Sequence[float]) -> bool:
    return all(own <= other for own, other in zip(these, others, strict=True))

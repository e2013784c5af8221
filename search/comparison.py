"""Two configurations compared on the same samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from scipy.special import bdtr, ndtr, ndtri

from bitfront.samples import SampleResults

SIGNIFICANCE: Final = 0.05
"""How often a difference is seen that is none."""
POWER: Final = 0.8
"""How often a difference is to be seen that is one, where needed samples are counted."""

_AT_ONCE: Final = 256
"""Results of so many configurations are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the first of two configurations does against the second.

    Attributes:
        samples: How many samples both were evaluated on.
        fixed: Samples that add less to the error of the first than to that of the second.
        broken: Samples that add more.
        error: The first's error less the second's.
        squares: The sum of the squared differences of the samples' shares in it.
        largest: The largest share of a sample in either error; 1 where nothing is wrong.
        divergence: The first's divergence less the second's, in nats.
        divergence_se: The standard error of that mean of paired differences.
    """

    samples: int
    fixed: int
    broken: int
    error: float
    squares: float
    largest: float
    divergence: float
    divergence_se: float

    @classmethod
    def of(cls, first: SampleResults, second: SampleResults) -> Self:
        """The comparison of results on the same samples, in the same order."""
        return cls.of_each([first], second)[0]

    @classmethod
    def of_each(cls, firsts: Sequence[SampleResults], second: SampleResults) -> list[Self]:
        """The comparison of each of some results with the same second ones."""
        count = len(second)
        errors, divergence = second.errors, second.divergence
        found = []
        for start in range(0, len(firsts), _AT_ONCE):
            some = firsts[start : start + _AT_ONCE]
            own = np.stack([one.errors for one in some])
            shares, largest = own - errors, np.maximum(own.max(axis=1), errors.max())
            differences = np.stack([one.divergence for one in some]) - divergence
            columns = (
                (shares < 0).sum(axis=1).tolist(),
                (shares > 0).sum(axis=1).tolist(),
                shares.mean(axis=1).tolist(),
                (shares**2).sum(axis=1).tolist(),
                np.where(largest > 0, largest, 1.0).tolist(),
                differences.mean(axis=1).tolist(),
                (
                    differences.std(axis=1, ddof=1) if count > 1 else np.full(len(some), math.inf)
                ).tolist(),
            )
            found += [
                cls(count, fixed, broken, error, squares, most, mean, spread / math.sqrt(count))
                for fixed, broken, error, squares, most, mean, spread in zip(*columns, strict=True)
            ]
        return found

    @property
    def swapped(self) -> "Comparison":
        """How the second does against the first."""
        return replace(
            self,
            fixed=self.broken,
            broken=self.fixed,
            error=-self.error,
            divergence=-self.divergence,
        )

    @property
    def error_p(self) -> float:
        """How probable such unequal errors are by chance alone, two-sided.

        McNemar's exact test where samples are right or wrong and count alike, and elsewhere the
        normal test of the paired differences.
        """
        rarer, differing = min(self.fixed, self.broken), self.fixed + self.broken
        if self.squares == differing:
            return min(1.0, 2.0 * float(bdtr(rarer, differing, 0.5)))
        return 2.0 * float(ndtr(-abs(self.error) / math.sqrt(self.error_variance)))

    @property
    def error_variance(self) -> float:
        """The variance of the difference in error, never 0: half a sample is added each way.

        Where all count alike, the sum of squares is the number of samples that differ; elsewhere
        the sample that is added has the largest share of any.

        Agresti and Min, Statistics in Medicine 24 (2005) 729-740.
        """
        share = (self.squares + self.largest**2) / self.samples
        return (share - self.error**2) / self.samples

    @property
    def divergence_p(self) -> float:
        """The two-sided normal test of the paired differences in divergence."""
        if self.divergence_se == 0:
            return 0.0 if self.divergence else 1.0
        return 2.0 * float(ndtr(-abs(self.divergence) / self.divergence_se))

    @property
    def errors_differ(self) -> bool:
        """Whether the errors differ by more than chance."""
        return self.error_p < SIGNIFICANCE

    def samples_needed(self, difference: float) -> float:
        """About how many samples would show a true difference in error; infinite for none.

        At `SIGNIFICANCE` and `POWER`, with as many samples that tell the two apart as here.
        """
        if difference == 0:
            return math.inf
        reach = float(ndtri(1 - SIGNIFICANCE / 2) + ndtri(POWER))
        needed = reach**2 * self.error_variance * self.samples / difference**2
        return float(np.ceil(needed))


def error_interval(samples: SampleResults) -> tuple[float, float]:
    """The interval of an error at `SIGNIFICANCE`, by as many samples as count alike."""
    count = samples.effective_count
    return proportion_interval(float(samples.errors.mean()) * count, count)


def proportion_interval(count: float, samples: float) -> tuple[float, float]:
    """Wilson's interval of a share at `SIGNIFICANCE`, such as the 95 % interval of an error."""
    reach = float(ndtri(1 - SIGNIFICANCE / 2))
    share, slack = count / samples, reach**2 / samples
    middle = share + slack / 2
    half = reach * math.sqrt(share * (1 - share) / samples + slack / (4 * samples))
    return max(0.0, (middle - half) / (1 + slack)), min(1.0, (middle + half) / (1 + slack))

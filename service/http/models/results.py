"""What a study answers: its front, its best trial, how its hypervolume grew."""

import math
from collections.abc import Mapping
from typing import Self

from search.choice import Peer, Ranking
from search.estimate import Estimate
from service.http.models.content import Content, Values
from service.http.models.trials import TrialRow
from service.views.choosing import Answer as BestAnswer
from service.views.choosing import FullPrecision
from service.views.targets import Deployable


class EstimatedError(Content):
    """An error that was estimated from all trials, with its standard error."""

    error: float
    standard_error: float

    @classmethod
    def of(cls, estimate: Estimate | None) -> Self | None:
        """The estimate, where there is one."""
        if estimate is None:
            return None
        return cls(error=estimate.error, standard_error=estimate.standard_error)


class RankedTrial(Content):
    """A trial, and its estimated error where it has one."""

    trial: TrialRow
    estimate: EstimatedError | None


class Interval(Content):
    """The 95 % interval of an error."""

    low: float
    high: float


class FullPrecisionRow(Content):
    """Full precision as the study measured it, with the intervals of its errors by split."""

    trial: TrialRow
    intervals: dict[str, Interval]

    @classmethod
    def of(cls, full: FullPrecision, names: Mapping[int, str]) -> Self:
        """The row of full precision."""
        found = {split: full.interval(split) for split in ("selection", "test")}
        return cls(
            trial=TrialRow.of(full.trial, names),
            intervals={
                split: Interval(low=ends[0], high=ends[1])
                for split, ends in found.items()
                if ends is not None
            },
        )


class Front(Content):
    """The front of a study, lowest error first, and full precision beside it."""

    by: Ranking
    objectives: tuple[str, ...]
    trials: tuple[RankedTrial, ...]
    full_precision: FullPrecisionRow | None


class NotToldApart(Content):
    """A trial whose error cannot be told from that of the best one.

    `p` is McNemar's probability; `samples_needed` is absent for more than could be counted.
    """

    number: int
    p: float
    samples_needed: int | None

    @classmethod
    def of(cls, peer: Peer) -> Self:
        """What is said of a peer."""
        needed = peer.samples_needed
        return cls(
            number=peer.trial.number,
            p=peer.comparison.error_p,
            samples_needed=int(needed) if math.isfinite(needed) else None,
        )


class DeploymentTarget(Content):
    """A runtime that takes the configuration, and how many layers it has no kernel for."""

    target: str
    artefact: str
    without_kernel: int
    layers: int

    @classmethod
    def of(cls, found: Deployable) -> Self:
        """What is said of a target."""
        return cls(
            target=found.target,
            artefact=found.artefact,
            without_kernel=found.without_kernel,
            layers=found.layers,
        )


class Best(Content):
    """The best trial within limits, on how many samples it was compared, and with which ones."""

    by: Ranking
    limits: Values
    best: RankedTrial
    samples: int
    not_told_apart: tuple[NotToldApart, ...]
    targets: tuple[DeploymentTarget, ...]

    @classmethod
    def of(
        cls,
        answer: BestAnswer,
        by: Ranking,
        limits: Mapping[str, float],
        names: Mapping[int, str],
        targets: list[Deployable],
    ) -> Self:
        """The answer to a query."""
        return cls(
            by=by,
            limits=dict(limits),
            best=RankedTrial(
                trial=TrialRow.of(answer.trial, names), estimate=EstimatedError.of(answer.estimate)
            ),
            samples=answer.samples,
            not_told_apart=tuple(map(NotToldApart.of, answer.peers)),
            targets=tuple(map(DeploymentTarget.of, targets)),
        )


class HypervolumePoint(Content):
    """The front's hypervolume after so many complete trials, as a share of the box to the left."""

    completed: int
    hypervolume: float


class HypervolumeHistory(Content):
    """How the front's hypervolume grew; it is measured from `reference`."""

    reference: Values | None
    points: tuple[HypervolumePoint, ...]

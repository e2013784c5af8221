"""The choice among a study's trials: the best within limits, and the front, with chance in mind.

A view over stored trials: the same trials give the same choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

import numpy as np

from bitfront.trial import Measured
from search.comparison import SIGNIFICANCE, Comparison
from search.estimate import Estimate, estimate_errors, with_estimates
from search.front import pareto_front

_ERROR: Final = "error"

Place = tuple[str, int]


class Ranking(StrEnum):
    """What stands for a trial's error."""

    ESTIMATE = "estimate"
    """The estimate where there is one; see `search.estimate`."""
    ERROR = "error"
    """The measured error, chance included."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A trial whose error cannot be told from that of the answer.

    Attributes:
        trial: The trial.
        comparison: How the answer does against it.
        samples_needed: About how many samples would tell the two apart, if their errors differ by
            as much as is estimated; infinite where they are estimated to be the same.
    """

    trial: Measured
    comparison: Comparison
    samples_needed: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The best of some trials.

    Attributes:
        answer: The best within the limits.
        peers: Those within the limits that cannot be told from it, the likeliest to be as good
            first; empty where the ranking is by the measured error.
        estimates: The estimated error of every trial that has one, by study and number.
    """

    answer: Measured
    peers: tuple[Peer, ...]
    estimates: Mapping[Place, Estimate]


def choose(
    trials: Sequence[Measured],
    objectives: Sequence[str],
    limits: Mapping[str, float],
    ranking: Ranking = Ranking.ESTIMATE,
    estimates: Mapping[Place, Estimate] | None = None,
) -> Choice | None:
    """The best trial within the limits; None if none holds them.

    It is lowest in the first objective that is not limited (the first one if all are), then in the
    others in their order, in bytes, and in the divergence. A limit on the error holds for what
    stands for it. What can be told apart is told by McNemar's exact test on the same samples.

    Args:
        trials: All complete trials of a study that hold its job's limits, or of several studies
            with the same selection samples: those outside the limits count in the estimates.
        objectives: The study's, the first one first.
        limits: Upper limits by the name of the figure; who was not measured does not hold one.
        ranking: What stands for the error.
        estimates: What `estimate_errors` said of these trials, if it was asked before.
    """
    estimates = _estimates(trials, ranking, estimates)
    values = _values(trials, estimates)
    within = [t for t in trials if _holds(values[t.place], limits)]
    if not within:
        return None
    first = next((name for name in objectives if name not in limits), objectives[0])
    order = tuple(dict.fromkeys((first, *objectives, "nbytes", "divergence")))
    answer = min(within, key=lambda trial: (_row(values[trial.place], order), *_last(trial)))
    peers = [] if ranking is Ranking.ERROR else _peers(answer, within, estimates)
    return Choice(answer, tuple(peers), estimates)


def chosen_front(
    trials: Sequence[Measured],
    objectives: Sequence[str],
    ranking: Ranking = Ranking.ESTIMATE,
    estimates: Mapping[Place, Estimate] | None = None,
) -> list[Measured]:
    """The front, lowest error first: who is better by more than chance, or smaller at no loss.

    By the measured error it is the plain front. By the estimate, a trial of the plain front stays
    if it is better by more than chance than each one that stays and costs no more in any other
    objective: by McNemar's exact test of the errors, or, where neither has a recovery, by the
    paired differences in divergence.

    Args:
        trials: As in `choose`.
        objectives: The study's, the error first.
        ranking: What stands for the error.
        estimates: As in `choose`.
    """
    values = _values(trials, _estimates(trials, ranking, estimates))
    front = _undominated(trials, objectives, values)
    if ranking is Ranking.ESTIMATE:
        front = _told_apart(front, objectives[1:], values)
    order = (*objectives, "nbytes")
    return sorted(front, key=lambda trial: (_row(values[trial.place], order), *_last(trial)))


def estimated_front(trials: Sequence[Measured], objectives: Sequence[str]) -> list[Measured]:
    """The plain front by the estimated error: what `choose` may answer, whatever the limits.

    Whether its trials are told apart does not count.
    """
    return _undominated(trials, objectives, _values(trials, estimate_errors(trials)))


def _undominated(
    trials: Sequence[Measured], objectives: Sequence[str], values: Mapping[Place, dict[str, float]]
) -> list[Measured]:
    measured = [t for t in trials if all(name in values[t.place] for name in objectives)]
    if not measured:
        return []
    table = np.array([[values[t.place][name] for name in objectives] for t in measured])
    return [measured[row] for row in pareto_front(table)]


def _values(
    trials: Sequence[Measured], estimates: Mapping[Place, Estimate]
) -> dict[Place, dict[str, float]]:
    return {trial.place: with_estimates(trial, estimates) for trial in trials}


def _estimates(
    trials: Sequence[Measured], ranking: Ranking, known: Mapping[Place, Estimate] | None
) -> Mapping[Place, Estimate]:
    if ranking is Ranking.ERROR:
        return {}
    return estimate_errors(trials) if known is None else known


def _holds(values: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    return all(name in values and values[name] <= most for name, most in limits.items())


def _row(values: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """The values in an order; what was not measured comes last."""
    return tuple(values.get(name, float("inf")) for name in names)


def _last(trial: Measured) -> tuple[int, str]:
    """What decides between equal trials: the older one goes first."""
    return trial.number, trial.study


def _peers(
    answer: Measured, within: Sequence[Measured], estimates: Mapping[Place, Estimate]
) -> list[Peer]:
    if answer.place not in estimates:
        return []
    known = sorted(
        (t for t in within if t.place in estimates and t.place != answer.place),
        key=lambda trial: (estimates[trial.place].error, *_last(trial)),
    )
    found = []
    for trial, comparison in zip(known, _compared_each(known, answer), strict=True):
        if comparison is None or comparison.errors_differ:
            continue
        gap = estimates[trial.place].error - estimates[answer.place].error
        found.append(Peer(trial, comparison.swapped, comparison.samples_needed(gap)))
    return found


def compared(first: Measured, second: Measured) -> Comparison | None:
    """The comparison of two trials; None where they have no samples in common."""
    return _compared_each([first], second)[0]


def _compared_each(firsts: Sequence[Measured], second: Measured) -> list[Comparison | None]:
    """As `compared`, of each of some trials with the same second one."""
    other = second.samples
    if other is None:
        return [None] * len(firsts)
    alike = [t.samples for t in firsts if t.samples is not None and len(t.samples) == len(other)]
    found = iter(Comparison.of_each(alike, other))
    return [
        next(found) if t.samples is not None and len(t.samples) == len(other) else None
        for t in firsts
    ]


def _told_apart(
    front: Sequence[Measured], costs: Sequence[str], values: Mapping[Place, Mapping[str, float]]
) -> list[Measured]:
    cheapest_first = sorted(front, key=lambda t: (_row(values[t.place], costs), *_last(t)))
    kept: list[Measured] = []
    for trial in cheapest_first:
        row = np.array(_row(values[trial.place], costs))
        rivals = [t for t in kept if (np.array(_row(values[t.place], costs)) <= row).all()]
        comparisons = _compared_each(rivals, trial)
        if all(map(partial(_is_better, trial), rivals, comparisons)):
            kept.append(trial)
    return kept


def _is_better(trial: Measured, rival: Measured, comparison: Comparison | None) -> bool:
    """Whether more than chance speaks for the trial; so it is where nothing can be compared.

    Args:
        trial: The trial.
        rival: One that costs no more.
        comparison: How the rival does against the trial.
    """
    if comparison is None:
        return True
    if comparison.errors_differ:
        return comparison.error > 0
    if trial.has_recovery or rival.has_recovery:
        return False
    return comparison.divergence > 0 and comparison.divergence_p < SIGNIFICANCE

"""What a study answers: its best trial and its front, with chance in mind.

The choice itself is `search.choice`; here its trials are read from the database.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from bitfront.samples import SampleResults
from bitfront.trial import Measured, Trial, TrialState
from search.choice import Peer, Ranking, choose, chosen_front
from search.comparison import error_interval
from search.estimate import Estimate, estimate_errors
from service.views.cross_study_front import cross_study_front
from service.views.describe import FULL_NAME, trial_names
from storage.records import Limits, MeasuredTrials
from storage.store import Store

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """The best trial within limits.

    Attributes:
        trial: The trial.
        estimate: Its estimated error; None where it was not asked for or cannot be known.
        peers: The trials within the limits whose errors cannot be told from its own.
        samples: How many selection samples it was compared on; 0 where it was not.
    """

    trial: Trial
    estimate: Estimate | None = None
    peers: tuple[Peer, ...] = ()
    samples: int = 0


@dataclass(frozen=True, slots=True)
class ShownFront:
    """A front, lowest error first.

    Attributes:
        trials: Its trials.
        estimates: Their estimated errors, by study and number; empty by the measured error.
        objectives: What the studies of a model are compared by; empty for one study.
        studies: The names of those studies; empty for one study.
    """

    trials: tuple[Trial, ...]
    estimates: Mapping[Place, Estimate] = field(default_factory=dict)
    objectives: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()

    def values(self, trial: Trial) -> dict[str, float]:
        """A trial's values with the estimate in place of its error, where there is one."""
        found = self.estimates.get((trial.study, trial.number))
        return dict(trial.values) if found is None else {**trial.values, "error": found.error}


@dataclass(frozen=True, slots=True)
class Known:
    """All that a choice by the estimate looks at: it is found once for several questions.

    Attributes:
        objectives: What the study minimises, the error first.
        trials: Its complete trials that hold their job's limits.
        estimates: Their estimated errors, by study and number.
    """

    objectives: tuple[str, ...]
    trials: tuple[Measured, ...]
    estimates: Mapping[Place, Estimate]

    @classmethod
    def of(cls, measured: MeasuredTrials) -> Self:
        """What is known of trials that were measured."""
        return cls(measured.objectives, measured.trials, estimate_errors(measured.trials))


@dataclass(frozen=True, slots=True)
class FullPrecision:
    """Full precision beside a front.

    Attributes:
        trial: Its trial.
        samples: What came out for each sample, by split; empty for earlier versions' trials.
    """

    trial: Trial
    samples: Mapping[str, SampleResults]

    def interval(self, split: str) -> tuple[float, float] | None:
        """The 95 % interval of its error on a split; None where its samples are not known."""
        own = self.samples.get(split)
        return None if own is None else error_interval(own)


def best_answer(
    store: Store,
    study: str | None,
    limits: Limits,
    *,
    model: str | None = None,
    ranking: Ranking = Ranking.ESTIMATE,
) -> Answer | None:
    """The best trial of a study, or of a model's studies, within limits; None if nothing fits.

    Args:
        store: The database.
        study: The study; None for all studies of `model`.
        limits: Upper limits; one on the error holds for the estimate, where there is one.
        model: Name or hash of a model, where `study` is None.
        ranking: What stands for the error.

    Raises:
        SpecError: As `Store.best` does.
    """
    if ranking is Ranking.ESTIMATE:
        measured = store.measured(study, limits, model=model)
        if measured is not None:
            return answer_among(store, Known.of(measured), limits)
    found = store.best(study, limits, model=model)
    return None if found is None else Answer(found)


def answer_among(store: Store, known: Known, limits: Limits) -> Answer | None:
    """The best by the estimate within limits, among trials that are known; None if none fits."""
    choice = choose(known.trials, known.objectives, limits.given, estimates=known.estimates)
    if choice is None:
        return None
    (trial,) = store.trials_at([choice.answer.place])
    samples = choice.answer.samples
    estimate = choice.estimates.get(choice.answer.place)
    return Answer(trial, estimate, choice.peers, 0 if samples is None else len(samples))


def estimate_of(store: Store, trial: Trial) -> Estimate | None:
    """A trial's estimated error; None where it cannot be known."""
    known = store.measured(trial.study) if trial.state is TrialState.COMPLETE else None
    return None if known is None else estimate_errors(known.trials).get((trial.study, trial.number))


def shown_front(store: Store, study: str, ranking: Ranking = Ranking.ESTIMATE) -> ShownFront:
    """The front of a study."""
    measured = None if ranking is Ranking.ERROR else store.measured(study)
    if measured is None:
        return ShownFront(tuple(store.front(study)))
    return front_among(store, Known.of(measured))


def front_among(store: Store, known: Known) -> ShownFront:
    """The front by the estimate of a study's trials that are known."""
    front = chosen_front(known.trials, known.objectives, estimates=known.estimates)
    trials = store.trials_at([trial.place for trial in front])
    return ShownFront(tuple(trials), known.estimates)


def shown_joint_front(
    store: Store, model: str, limits: Limits, ranking: Ranking = Ranking.ESTIMATE
) -> ShownFront:
    """The front of all studies of a model, by what all of them minimised.

    Raises:
        SpecError: As `Store.model_fronts` does.
    """
    fronts = store.model_fronts(model, limits)
    has_results = ranking is Ranking.ESTIMATE and bool(fronts.studies)
    measured = store.measured(None, limits, model=model) if has_results else None
    if measured is None:
        trials = cross_study_front(fronts)
        return ShownFront(tuple(trials), {}, fronts.objectives, fronts.studies)
    known = Known.of(measured)
    front = chosen_front(known.trials, fronts.objectives, ranking, known.estimates)
    found = store.trials_at([trial.place for trial in front])
    return ShownFront(tuple(found), known.estimates, fronts.objectives, fronts.studies)


def full_precision(store: Store, study: str) -> FullPrecision | None:
    """Full precision as a study measured it; None where it did not yet."""
    baselines = store.baselines(study)
    names = trial_names(baselines)
    found = next((trial for trial in baselines if names.get(trial.number) == FULL_NAME), None)
    return (
        None if found is None else FullPrecision(found, store.sample_results(study, found.number))
    )

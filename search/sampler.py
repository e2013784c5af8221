"""Optuna's ask and tell, in memory: proposes configurations, and is rebuilt from trials."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from bitfront.plan import Configuration
from bitfront.spec import Sampler
from bitfront.trial import Origin, Proposal, Trial, TrialState
from search.front import pareto_front
from search.space import SearchSpace, Variable

optuna.logging.set_verbosity(optuna.logging.WARNING)

# An ask that returns a known configuration costs nothing but the ask: its values are told
# at once. After some in a row the sampler's neighbourhood is taken as exhausted, and chance
# chooses; after this many the space is.
_OWN_REPEATS = 16
_MAX_REPEATS = 64
_POPULATION = 32
_GENERATION_KEY = "NSGAIISampler:generation"
_FIXED_KEY = "fixed_params"


@dataclass(frozen=True, slots=True)
class Sample:
    """What the sampler keeps of a finished trial.

    Attributes:
        values: One for each objective, all finite and minimised; None where it was pruned.
        constraints: Constraint name to its excess; at most 0 where it holds.
        params: The sampler's own parameters; None where they are of no use, or not yet known.
    """

    values: tuple[float, ...] | None
    constraints: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, int] | None = None

    @property
    def excess(self) -> float:
        """By how much it breaks its constraints, summed; 0 where all hold."""
        return sum(max(excess, 0.0) for excess in self.constraints.values())


class Proposer:
    """Proposes what to evaluate next.

    Each ask draws from a generator seeded with the study's seed and the number of known
    configurations, so that an ask after a resume does not repeat an earlier one's draws.

    An ask takes time in proportion to what the sampler learns from. Beyond `history` trials it
    forgets: Optuna's study is made anew of three quarters as many, see `most_telling`. What was
    proposed stays known, and is not proposed again.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[str],
        sampler: Sampler,
        seed: int,
        *,
        history: int | None = None,
    ) -> None:
        """Starts a study of Optuna's, in memory.

        Args:
            space: What may be chosen.
            objectives: Names of the values that are minimised.
            sampler: Which of Optuna's samplers proposes.
            seed: The study's seed.
            history: The number of trials that the sampler learns from at most; None for all.
        """
        self.space = space
        self._objectives = tuple(objectives)
        self._sampler = sampler
        self._seed = seed
        self._history = history
        self._repeats = 0
        self._known: dict[str, Sample | None] = {}
        self._samples: list[Sample] = []
        self._size = 0
        variables, conditional = space.variables, space.conditional
        if sampler is Sampler.NSGA2:
            # It crosses only what all parents have: the settings of a recovery are theirs too.
            variables, conditional = (*variables, *conditional), ()
        self._always = _distributions(variables)
        self._conditional = conditional
        self._study = self._make_study()
        self._running: dict[str, optuna.Trial] = {}

    def _make_study(self) -> optuna.Study:
        return optuna.create_study(
            directions=["minimize"] * len(self._objectives), sampler=self._make_sampler()
        )

    def _make_sampler(self) -> BaseSampler:
        draws = np.random.SeedSequence((self._seed, len(self._known), self._repeats))
        seed = int(draws.generate_state(1)[0])
        if self._sampler is Sampler.RANDOM or self._repeats >= _OWN_REPEATS:
            return RandomSampler(seed=seed)
        if self._sampler is Sampler.NSGA2:
            return NSGAIISampler(population_size=_POPULATION, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=10)

    def propose(self) -> Proposal | None:
        """The next configuration that was not proposed before; None if none is found."""
        for self._repeats in range(_MAX_REPEATS):
            self._study.sampler = self._make_sampler()
            trial = self._ask()
            configuration = self.space.configuration(trial.params)
            key = configuration.digest
            if key not in self._known:
                self._known[key] = None
                self._running[key] = trial
                return Proposal(configuration, Origin.SAMPLER, dict(trial.params))
            known = self._known[key]
            if known is None or known.values is None:
                self._study.tell(trial, state=OptunaState.FAIL)
            else:
                self._tell(trial, known)
            self._grow()
        return None

    def start(self, configuration: Configuration) -> None:
        """Takes note of a trial that was not proposed here: a seed, or one that is resumed."""
        key = configuration.digest
        params = self.space.params(configuration)
        self._known.setdefault(key, None)
        if params is not None and key not in self._running:
            self._running[key] = self._enqueue(params)

    def tell(self, trial: Trial) -> None:
        """Takes in how a trial ended, whoever proposed it.

        A pruned one counts as worse than all that have values. One without a result teaches
        nothing, but is not proposed again.
        """
        key = trial.configuration.digest
        asked = self._running.pop(key, None)
        if not trial.state.is_measured:
            self._known[key] = None
            if asked is not None:
                self._study.tell(asked, state=OptunaState.FAIL)
                self._grow()
            return
        sample = self._sample(trial)
        self._known[key] = sample
        params = self.space.params(trial.configuration)
        if asked is not None:
            self._tell(asked, sample)
        elif params is not None:
            told = replace(sample, params=params)
            self._study.add_trial(self._frozen(told, len(self._samples)))
        if params is not None:
            self._samples.append(replace(sample, params=params))
            self._grow()

    def restore(self, trials: Sequence[Trial]) -> None:
        """Takes in complete and pruned trials of an earlier driver at once, oldest first."""
        samples = [self._sample(trial) for trial in trials]
        self._known.update(
            (trial.configuration.digest, sample)
            for trial, sample in zip(trials, samples, strict=True)
        )
        indexed = [
            replace(samples[place], params=self.space.params(trials[place].configuration))
            for place in self._telling(samples)
        ]
        self._samples += [sample for sample in indexed if sample.params is not None]
        self._renew()

    def _sample(self, trial: Trial) -> Sample:
        if trial.state is TrialState.PRUNED:
            return Sample(None)
        values = tuple(trial.values[name] for name in self._objectives)
        return Sample(values, trial.constraints)

    def _grow(self) -> None:
        """Counts a trial of Optuna's, and forgets where that makes too many."""
        self._size += 1
        if self._history is not None and self._size > self._history:
            kept = self._telling(self._samples)
            self._samples = [self._samples[place] for place in kept]
            self._renew()

    def _telling(self, samples: Sequence[Sample]) -> Sequence[int]:
        """The places of the trials that tell most; all of them without a limit."""
        if self._history is None or len(samples) <= self._history:
            return range(len(samples))
        return most_telling(samples, self._history * 3 // 4)

    def _renew(self) -> None:
        """Makes Optuna's study anew, of the samples and of what runs."""
        running = {key: dict(trial.params) for key, trial in self._running.items()}
        self._study = self._make_study()
        self._study.add_trials(
            [self._frozen(sample, place) for place, sample in enumerate(self._samples)]
        )
        self._running = {key: self._enqueue(params) for key, params in running.items()}
        self._size = len(self._samples)

    def _enqueue(self, params: Mapping[str, int]) -> optuna.Trial:
        """A running trial with given parameters."""
        fixed = {_FIXED_KEY: self._filled(params), **_generation(len(self._samples))}
        self._study.add_trial(create_trial(state=OptunaState.WAITING, system_attrs=fixed))
        return self._ask()

    def _ask(self) -> optuna.Trial:
        """A trial with a value for every variable that means something."""
        trial = self._study.ask(self._always)
        for variable in self._conditional:
            if trial.params.get(variable.part):
                trial.suggest_int(variable.name, 0, variable.size - 1)
        return trial

    def _filled(self, params: Mapping[str, int]) -> dict[str, int]:
        """The parameters with the first choice where one means nothing but is always sampled."""
        return {**dict.fromkeys(self._always, 0), **params}

    def _tell(self, trial: optuna.Trial, sample: Sample) -> None:
        if sample.values is None:
            self._study.tell(trial, state=OptunaState.PRUNED)
            return
        for name, excess in sample.constraints.items():
            trial.set_constraint(name, excess)
        self._study.tell(trial, list(sample.values))

    def _frozen(self, sample: Sample, place: int) -> FrozenTrial:
        """A finished trial of Optuna's; `place` counts those before it."""
        assert sample.params is not None, "only trials of the space are told"
        filled = self._filled(sample.params)
        known = {**self._always, **_distributions(self._conditional)}
        return create_trial(
            state=OptunaState.PRUNED if sample.values is None else OptunaState.COMPLETE,
            params=filled,
            distributions={name: known[name] for name in filled},
            values=None if sample.values is None else list(sample.values),
            system_attrs=_generation(place),
            constraints=dict(sample.constraints),
        )


def _generation(place: int) -> dict[str, int]:
    """Without its generation NSGA-II would not count a trial as a parent."""
    return {_GENERATION_KEY: place // _POPULATION}


def _distributions(variables: Sequence[Variable]) -> dict[str, BaseDistribution]:
    return {variable.name: IntDistribution(0, variable.size - 1) for variable in variables}


def most_telling(samples: Sequence[Sample], limit: int) -> list[int]:
    """The places of the samples that a sampler learns most from, in ascending order.

    A quarter are those on the front, then those on the front of the rest, and so on; samples
    that break a constraint follow by how much they do. The others are the latest.

    Args:
        samples: Oldest first.
        limit: How many places.
    """
    near = _nearest(samples, limit // 4)
    others = [place for place in range(len(samples)) if place not in near]
    latest = others[max(0, len(others) - (limit - len(near))) :]
    return sorted([*near, *latest])


def _nearest(samples: Sequence[Sample], limit: int) -> set[int]:
    """The places of so many samples on and near the front."""
    left = [
        (place, sample.values)
        for place, sample in enumerate(samples)
        if sample.values is not None and not sample.excess
    ]
    near: list[int] = []
    while left and len(near) < limit:
        front = set(pareto_front(np.array([values for _, values in left])))
        layer = sorted((*values, place) for n, (place, values) in enumerate(left) if n in front)
        wanted = min(len(layer), limit - len(near))
        # A layer that is too large is thinned evenly along its first objective.
        spread = np.linspace(0, len(layer) - 1, wanted).round().astype(int)
        near += [int(layer[n][-1]) for n in spread]
        left = [pair for n, pair in enumerate(left) if n not in front]
    broken = sorted((sample.excess, n) for n, sample in enumerate(samples) if sample.excess)
    return {*near, *(place for _, place in broken[: limit - len(near)])}

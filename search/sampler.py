"""Optuna's ask and tell, in memory: proposes configurations, and is rebuilt from trials."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from bitfront.plan import Configuration
from bitfront.spec import Sampler
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
class Proposal:
    """A configuration to evaluate and the sampler's own parameters for it."""

    configuration: Configuration
    params: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the sampler learns of a finished trial.

    Attributes:
        values: One for each objective, all finite and minimised.
        constraints: Constraint name to its excess; at most 0 where it holds.
    """

    values: tuple[float, ...]
    constraints: Mapping[str, float]

    @property
    def excess(self) -> float:
        """By how much it breaks its constraints, summed; 0 where all hold."""
        return sum(max(excess, 0.0) for excess in self.constraints.values())


@dataclass(frozen=True, slots=True)
class _Sample:
    """A finished trial that the sampler learns from; without an outcome it was pruned."""

    params: Mapping[str, int]
    outcome: Outcome | None


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
        objectives: int,
        sampler: Sampler,
        seed: int,
        *,
        history: int | None = None,
    ) -> None:
        """Starts a study of Optuna's, in memory.

        Args:
            space: What may be chosen.
            objectives: How many values an outcome has.
            sampler: Which of Optuna's samplers proposes.
            seed: The study's seed.
            history: The number of trials that the sampler learns from at most; None for all.
        """
        self.space = space
        self._objectives = objectives
        self._sampler = sampler
        self._seed = seed
        self._history = history
        self._repeats = 0
        self._known: dict[str, Outcome | None] = {}
        self._samples: list[_Sample] = []
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
            directions=["minimize"] * self._objectives, sampler=self._make_sampler()
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
                return Proposal(configuration, dict(trial.params))
            outcome = self._known[key]
            if outcome is None:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._tell(trial, outcome)
            self._grow()
        return None

    def start(self, configuration: Configuration) -> None:
        """Takes note of a trial that was not proposed here: a seed, or one that goes on."""
        key = configuration.digest
        params = self.space.params(configuration)
        self._known.setdefault(key, None)
        if params is not None and key not in self._running:
            self._running[key] = self._enqueue(params)

    def complete(self, configuration: Configuration, outcome: Outcome) -> None:
        """Takes in a trial's values, whoever proposed it."""
        self._finish(configuration, outcome)

    def prune(self, configuration: Configuration) -> None:
        """Takes note of a trial that cannot reach the front: it counts as worse than all."""
        self._finish(configuration, None)

    def _finish(self, configuration: Configuration, outcome: Outcome | None) -> None:
        key = configuration.digest
        self._known[key] = outcome
        trial = self._running.pop(key, None)
        params = self.space.params(configuration)
        if trial is not None and outcome is not None:
            self._tell(trial, outcome)
        elif trial is not None:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif params is not None:
            self._study.add_trial(self._frozen(_Sample(params, outcome), len(self._samples)))
        if params is not None:
            self._samples.append(_Sample(params, outcome))
            self._grow()

    def fail(self, configuration: Configuration) -> None:
        """Takes note of a trial that ended without values: it is not proposed again."""
        key = configuration.digest
        self._known[key] = None
        trial = self._running.pop(key, None)
        if trial is not None:
            self._study.tell(trial, state=TrialState.FAIL)
            self._grow()

    def restore(self, outcomes: Sequence[tuple[Configuration, Outcome | None]]) -> None:
        """Takes in what an earlier driver finished at once, oldest first; None was pruned."""
        self._known.update((known.digest, outcome) for known, outcome in outcomes)
        kept = self._telling([outcome for _, outcome in outcomes])
        chosen = [outcomes[place] for place in kept]
        indexed = [(self.space.params(known), outcome) for known, outcome in chosen]
        self._samples += [_Sample(p, outcome) for p, outcome in indexed if p is not None]
        self._renew()

    def _grow(self) -> None:
        """Counts a trial of Optuna's, and forgets where that makes too many."""
        self._size += 1
        if self._history is not None and self._size > self._history:
            kept = self._telling([sample.outcome for sample in self._samples])
            self._samples = [self._samples[place] for place in kept]
            self._renew()

    def _telling(self, outcomes: Sequence[Outcome | None]) -> Sequence[int]:
        """The places of the trials that tell most; all of them without a limit."""
        if self._history is None or len(outcomes) <= self._history:
            return range(len(outcomes))
        return most_telling(outcomes, self._history * 3 // 4)

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
        self._study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=fixed))
        return self._ask()

    def _ask(self) -> optuna.Trial:
        """A trial with a value for every variable that means something."""
        trial = self._study.ask(self._always)
        if trial.params.get("recovery"):
            for variable in self._conditional:
                trial.suggest_int(variable.name, 0, variable.size - 1)
        return trial

    def _filled(self, params: Mapping[str, int]) -> dict[str, int]:
        """The parameters with the first choice where one means nothing but is always sampled."""
        return {**dict.fromkeys(self._always, 0), **params}

    def _tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        for name, excess in outcome.constraints.items():
            trial.set_constraint(name, excess)
        self._study.tell(trial, list(outcome.values))

    def _frozen(self, sample: _Sample, place: int) -> FrozenTrial:
        """A finished trial of Optuna's; `place` counts those before it."""
        filled = self._filled(sample.params)
        known = {**self._always, **_distributions(self._conditional)}
        outcome = sample.outcome
        return create_trial(
            state=TrialState.PRUNED if outcome is None else TrialState.COMPLETE,
            params=filled,
            distributions={name: known[name] for name in filled},
            values=None if outcome is None else list(outcome.values),
            system_attrs=_generation(place),
            constraints={} if outcome is None else dict(outcome.constraints),
        )


def _generation(place: int) -> dict[str, int]:
    """Without its generation NSGA-II would not count a trial as a parent."""
    return {_GENERATION_KEY: place // _POPULATION}


def _distributions(variables: Sequence[Variable]) -> dict[str, BaseDistribution]:
    return {variable.name: IntDistribution(0, variable.size - 1) for variable in variables}


def most_telling(outcomes: Sequence[Outcome | None], limit: int) -> list[int]:
    """The places of the outcomes that a sampler learns most from, in ascending order.

    A quarter are those on the front, then those on the front of the rest, and so on; outcomes
    that break a constraint follow by how much they do. The others are the latest.

    Args:
        outcomes: Oldest first; None for a pruned trial.
        limit: How many places.
    """
    near = _nearest(outcomes, limit // 4)
    others = [place for place in range(len(outcomes)) if place not in near]
    latest = others[max(0, len(others) - (limit - len(near))) :]
    return sorted([*near, *latest])


def _nearest(outcomes: Sequence[Outcome | None], limit: int) -> set[int]:
    """The places of so many outcomes on and near the front."""
    measured = [(place, outcome) for place, outcome in enumerate(outcomes) if outcome is not None]
    left = [(place, outcome.values) for place, outcome in measured if not outcome.excess]
    near: list[int] = []
    while left and len(near) < limit:
        front = set(pareto_front(np.array([values for _, values in left])))
        layer = sorted((*values, place) for n, (place, values) in enumerate(left) if n in front)
        wanted = min(len(layer), limit - len(near))
        # A layer that is too large is thinned evenly along its first objective.
        spread = np.linspace(0, len(layer) - 1, wanted).round().astype(int)
        near += [int(layer[n][-1]) for n in spread]
        left = [pair for n, pair in enumerate(left) if n not in front]
    broken = sorted((outcome.excess, place) for place, outcome in measured if outcome.excess)
    return {*near, *(place for _, place in broken[: limit - len(near)])}

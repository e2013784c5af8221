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
from search.space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)

# An ask that returns a known configuration costs nothing but the ask: its values are told
# at once. After this many in a row the neighbourhood is taken as exhausted.
_MAX_REPEATS = 64
_POPULATION = 32
_GENERATION_KEY = "NSGAIISampler:generation"


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


class Proposer:
    """Proposes what to evaluate next.

    Each ask draws from a generator seeded with the study's seed and the number of known
    configurations, so that an ask after a resume does not repeat an earlier one's draws.
    """

    def __init__(self, space: SearchSpace, objectives: int, sampler: Sampler, seed: int) -> None:
        self.space = space
        self._sampler = sampler
        self._seed = seed
        self._repeats = 0
        self._known: dict[str, Outcome | None] = {}
        self._distributions: dict[str, BaseDistribution] = {
            variable.name: IntDistribution(0, variable.size - 1) for variable in space.variables
        }
        self._study = optuna.create_study(
            directions=["minimize"] * objectives, sampler=self._make_sampler()
        )
        self._running: dict[str, optuna.Trial] = {}

    def _make_sampler(self) -> BaseSampler:
        draws = np.random.SeedSequence((self._seed, len(self._known), self._repeats))
        seed = int(draws.generate_state(1)[0])
        if self._sampler is Sampler.RANDOM:
            return RandomSampler(seed=seed)
        if self._sampler is Sampler.NSGA2:
            return NSGAIISampler(population_size=_POPULATION, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=seed, multivariate=True, n_startup_trials=10)

    def propose(self) -> Proposal | None:
        """The next configuration that was not proposed before; None if none is found."""
        for self._repeats in range(_MAX_REPEATS):
            self._study.sampler = self._make_sampler()
            trial = self._study.ask(self._distributions)
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
        return None

    def start(self, configuration: Configuration) -> None:
        """Takes note of a trial that was not proposed here: a seed, or one that goes on."""
        key = configuration.digest
        params = self.space.params(configuration)
        self._known.setdefault(key, None)
        if params is not None and key not in self._running:
            self._study.enqueue_trial(params)
            self._running[key] = self._study.ask(self._distributions)

    def complete(self, configuration: Configuration, outcome: Outcome) -> None:
        """Takes in a trial's values, whoever proposed it."""
        key = configuration.digest
        self._known[key] = outcome
        trial = self._running.pop(key, None)
        if trial is not None:
            self._tell(trial, outcome)
            return
        params = self.space.params(configuration)
        if params is not None:
            self._study.add_trial(self._frozen(params, outcome))

    def fail(self, configuration: Configuration) -> None:
        """Takes note of a trial that ended without values: it is not proposed again."""
        key = configuration.digest
        self._known[key] = None
        trial = self._running.pop(key, None)
        if trial is not None:
            self._study.tell(trial, state=TrialState.FAIL)

    def restore(self, outcomes: Sequence[tuple[Configuration, Outcome]]) -> None:
        """Takes in the completed trials of an earlier driver at once."""
        frozen: list[FrozenTrial] = []
        for configuration, outcome in outcomes:
            self._known[configuration.digest] = outcome
            params = self.space.params(configuration)
            if params is not None:
                # Without its generation NSGA-II would not count a trial as a parent.
                generation = {_GENERATION_KEY: len(frozen) // _POPULATION}
                frozen.append(self._frozen(params, outcome, generation))
        self._study.add_trials(frozen)

    def _tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        for name, excess in outcome.constraints.items():
            trial.set_constraint(name, excess)
        self._study.tell(trial, list(outcome.values))

    def _frozen(
        self,
        params: Mapping[str, int],
        outcome: Outcome,
        system_attrs: Mapping[str, int] | None = None,
    ) -> FrozenTrial:
        constraints = {f"constraints:{name}": v for name, v in outcome.constraints.items()}
        return create_trial(
            state=TrialState.COMPLETE,
            params=dict(params),
            distributions=self._distributions,
            values=list(outcome.values),
            system_attrs={**constraints, **(system_attrs or {})},
        )

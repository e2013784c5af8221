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
from search.space import SearchSpace, Variable

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
        variables, conditional = space.variables, space.conditional
        if sampler is Sampler.NSGA2:
            # It crosses only what all parents have: the settings of a recovery are theirs too.
            variables, conditional = (*variables, *conditional), ()
        self._always = _distributions(variables)
        self._conditional = conditional
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
        return None

    def start(self, configuration: Configuration) -> None:
        """Takes note of a trial that was not proposed here: a seed, or one that goes on."""
        key = configuration.digest
        params = self.space.params(configuration)
        self._known.setdefault(key, None)
        if params is not None and key not in self._running:
            self._study.enqueue_trial(self._filled(params))
            self._running[key] = self._ask()

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

    def prune(self, configuration: Configuration) -> None:
        """Takes note of a trial that cannot reach the front: it counts as worse than all."""
        key = configuration.digest
        self._known[key] = None
        trial = self._running.pop(key, None)
        if trial is not None:
            self._study.tell(trial, state=TrialState.PRUNED)
            return
        params = self.space.params(configuration)
        if params is not None:
            self._study.add_trial(self._frozen(params, None))

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

    def _frozen(
        self,
        params: Mapping[str, int],
        outcome: Outcome | None,
        system_attrs: Mapping[str, int] | None = None,
    ) -> FrozenTrial:
        """A trial of Optuna's with an outcome, or a pruned one without."""
        filled = self._filled(params)
        known = {**self._always, **_distributions(self._conditional)}
        constraints = {} if outcome is None else outcome.constraints
        excesses = {f"constraints:{name}": excess for name, excess in constraints.items()}
        return create_trial(
            state=TrialState.PRUNED if outcome is None else TrialState.COMPLETE,
            params=filled,
            distributions={name: known[name] for name in filled},
            values=None if outcome is None else list(outcome.values),
            system_attrs={**excesses, **(system_attrs or {})},
        )


def _distributions(variables: Sequence[Variable]) -> dict[str, BaseDistribution]:
    return {variable.name: IntDistribution(0, variable.size - 1) for variable in variables}

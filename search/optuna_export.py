"""A study as an ordinary one of Optuna's, for its dashboard and its other tools; one way."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from bitfront.errors import DatabaseError
from bitfront.trial import Trial, TrialState

optuna.logging.set_verbosity(optuna.logging.WARNING)

Choice = str | bool | int | float

OPTUNA_TABLES: Final = frozenset({"studies", "trials", "version_info"})
"""Tables that every database of Optuna's has."""

NUMBER: Final = "bitfront trial"
"""The user attribute that holds a trial's number; Optuna counts in the order of arrival."""

_IDENTITY: Final = "bitfront"

_STATES: Final = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.PRUNED: OptunaState.PRUNED,
}

FINAL_STATES: Final = frozenset(_STATES)
"""States of trials that never change again: a cancelled one runs again after a resume."""


@dataclass(frozen=True, slots=True)
class ExportedTrial:
    """A trial that will not change any more, with what Optuna is shown beside its values.

    Attributes:
        trial: The trial; its state is one of `FINAL_STATES`.
        params: What was chosen, by parameter; what means nothing for the trial is left out.
        intermediate_values: Optimiser step to the error shown there.
        attributes: What else a person may want to see of it, as plain JSON.
    """

    trial: Trial
    params: Mapping[str, Choice]
    intermediate_values: Mapping[int, float]
    attributes: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ExportedStudy:
    """A study to be exported.

    Attributes:
        name: Its name, there as here.
        identity: What tells it from another study of that name.
        objectives: Names of what is minimised.
        choices: Parameter to what it may be. All numbers make an axis, anything else classes.
        attributes: What else a person may want to see of it, as plain JSON.
        trials: The trials in any order.
    """

    name: str
    identity: str
    objectives: tuple[str, ...]
    choices: Mapping[str, tuple[Choice, ...]]
    attributes: Mapping[str, object]
    trials: Sequence[ExportedTrial]


@dataclass(frozen=True, slots=True)
class OptunaExport:
    """What a call did.

    Attributes:
        added: Trials that are new there.
        known: Trials that were there already.
        partial: New trials that lack a parameter, for they chose what was not known when the
            export was first made: Optuna fixes the choices of a parameter with its first trial.
    """

    added: int
    known: int
    partial: int


def export_to_optuna(study: ExportedStudy, url: str, shown: str) -> OptunaExport:
    """Adds to an Optuna database what it lacks of a study; repeating it adds nothing.

    Args:
        study: The study.
        url: The database; empty, or Optuna's own.
        shown: The database as a person may see it.

    Raises:
        DatabaseError: The database is of another version of Optuna, cannot be written, or has
            another study of that name.
    """
    with _storage(url, shown) as storage:
        target = _open_study(study, storage, shown)
        stored = target.get_trials(deepcopy=False)
        known = {trial.user_attrs.get(NUMBER) for trial in stored}
        new = sorted(
            (exported for exported in study.trials if exported.trial.number not in known),
            key=lambda exported: exported.trial.number,
        )
        distributions = _distributions(study, stored)
        frozen = [_freeze(exported, study.objectives, distributions) for exported in new]
        target.add_trials(frozen)
        for name, value in study.attributes.items():
            target.set_user_attr(name, value)
    partial = sum(
        len(copy.params) < len(exported.params) for copy, exported in zip(frozen, new, strict=True)
    )
    return OptunaExport(len(new), len(study.trials) - len(new), partial)


@contextmanager
def _storage(url: str, shown: str) -> Iterator[RDBStorage]:
    try:
        storage = RDBStorage(url)
    except RuntimeError as error:
        raise DatabaseError(
            f"the database {shown} is of another version of Optuna: name another file, or "
            "bring it up to date with 'optuna storage upgrade'"
        ) from error
    try:
        yield storage
    except StorageInternalError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise DatabaseError(f"the database {shown} cannot be written: {reason}") from error
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _open_study(study: ExportedStudy, storage: RDBStorage, shown: str) -> optuna.Study:
    """The exported study, made if there is none."""
    target = optuna.create_study(
        study_name=study.name,
        storage=storage,
        directions=["minimize"] * len(study.objectives),
        load_if_exists=True,
    )
    identity = target.user_attrs.get(_IDENTITY)
    is_new = identity is None and not target.get_trials(deepcopy=False)
    same_form = len(target.directions) == len(study.objectives)
    if not same_form or not (is_new or identity == study.identity):
        raise DatabaseError(
            f"the database {shown} has another study {study.name!r}, which was not "
            "exported from this one: name another file"
        )
    if is_new:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            target.set_metric_names(list(study.objectives))
        target.set_user_attr(_IDENTITY, study.identity)
    return target


def _distributions(
    study: ExportedStudy, stored: Sequence[FrozenTrial]
) -> dict[str, BaseDistribution]:
    """What each parameter may be; where it is stored already, as it is stored."""
    fixed: dict[str, BaseDistribution] = {}
    for trial in stored:
        fixed |= trial.distributions
    fresh = {name: _distribution(choices) for name, choices in study.choices.items()}
    return {**fresh, **fixed}


def _distribution(choices: Sequence[Choice]) -> BaseDistribution:
    numbers = [choice for choice in choices if not isinstance(choice, str | bool)]
    if len(numbers) < len(choices):
        return CategoricalDistribution(tuple(choices))
    low, high = min(numbers), max(numbers)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high)
    return FloatDistribution(low, high)


def _freeze(
    exported: ExportedTrial,
    objectives: Sequence[str],
    distributions: Mapping[str, BaseDistribution],
) -> FrozenTrial:
    trial = exported.trial
    assert trial.started_at is not None, "a stored trial has the time of its start"
    assert trial.finished_at is not None, "the schema gives every finished trial its time"
    complete = trial.state is TrialState.COMPLETE
    params = {
        name: choice
        for name, choice in exported.params.items()
        if name in distributions and _fits(choice, distributions[name])
    }
    frozen = create_trial(
        state=_STATES[trial.state],
        values=[trial.values[name] for name in objectives] if complete else None,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs={NUMBER: trial.number, **exported.attributes},
        intermediate_values=dict(exported.intermediate_values),
        constraints=dict(trial.constraints),
    )
    # Optuna keeps local times without a zone.
    frozen.datetime_start = _local(trial.started_at)
    frozen.datetime_complete = _local(trial.finished_at)
    return frozen


def _fits(choice: Choice, distribution: BaseDistribution) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return choice in distribution.choices
    if isinstance(choice, str | bool):
        return False
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low <= choice <= distribution.high


def _local(moment: datetime) -> datetime:
    return moment.astimezone().replace(tzinfo=None)

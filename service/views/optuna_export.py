"""What Optuna's dashboard gets to see of a study: named parameters, values, and a few words."""

import json
from collections.abc import Collection, Mapping, Sequence

from bitfront.errors import DatabaseError
from bitfront.layers import Block
from bitfront.plan import Option
from bitfront.trial import Trial, TrialState
from search.optuna_export import (
    FINAL_STATES,
    OPTUNA_TABLES,
    Choice,
    ExportedStudy,
    ExportedTrial,
    OptunaExport,
    export_to_optuna,
)
from service.views.parameters import (
    DISTIL,
    RECOVERY,
    RECOVERY_KINDS,
    attributes,
    option_text,
    parameters,
)
from storage.foreign_database import open_target
from storage.records import StudyRecord
from storage.store import Store

Choices = Mapping[str, tuple[Choice, ...]]


def export_study(store: Store, name: str, url: str) -> OptunaExport:
    """Writes a study's finished trials to the Optuna database at `url`, those that it lacks.

    Raises:
        UnknownStudy: There is no study of that name.
        DatabaseError: The database is bitfront's own or another program's, cannot be written,
            or has another study of that name.
    """
    study = exported_study(store, name, FINAL_STATES)
    with open_target(url) as target:
        if target.tables and not target.tables >= OPTUNA_TABLES:
            raise DatabaseError(
                f"the database {target.shown} belongs to another program (it has a table "
                f"{min(target.tables)}): name another file"
            )
        return export_to_optuna(study, target.url, target.shown)


def exported_study(
    store: Store, name: str, states: Collection[TrialState] | None = None
) -> ExportedStudy:
    """A study as Optuna sees it, with its trials in `states`, or in all of them."""
    record = store.study(name)
    trials = store.trials(name)
    profile = store.load_profile(name)
    blocks = () if profile is None else profile.blocks
    choices = _choices(store, record, blocks, trials)
    intermediates = store.intermediates(name)
    objectives: tuple[str, ...] = tuple(json.loads(record.spec_json)["objectives"])
    exported = [
        _trial(trial, blocks, choices, intermediates.get(trial.number, {}))
        for trial in trials
        if states is None or trial.state in states
    ]
    return ExportedStudy(
        name=name,
        identity=f"{name} of {record.created_at.isoformat()}",
        objectives=objectives,
        choices=choices,
        attributes=_study_attributes(record, blocks, trials),
        trials=exported,
    )


def _study_attributes(
    record: StudyRecord, blocks: Sequence[Block], trials: Sequence[Trial]
) -> dict[str, object]:
    """What is known of the study as a whole.

    Optuna never changes a finished trial, and the test split is measured last of all: so its
    errors are here as well, by bitfront's number of the trial.
    """
    tested = {
        str(trial.number): trial.test_values["error"] for trial in trials if trial.test_values
    }
    return {
        "model": json.loads(record.spec_json)["model"]["name"],
        "state": str(record.state),
        "blocks": {block.name: list(block.layers) for block in blocks},
        "test error": tested,
    }


def _choices(
    store: Store, record: StudyRecord, blocks: Sequence[Block], trials: Sequence[Trial]
) -> dict[str, tuple[Choice, ...]]:
    """What each parameter may be: a block's options, the smallest first, and the recovery's.

    A parameter that has one choice only is none.
    """
    nbytes: dict[str, dict[str, int]] = {block.name: {} for block in blocks}
    for option in store.options(record.name):
        nbytes.setdefault(option.cell.block, {})[str(option.cell.option)] = option.cell.nbytes
    choices: dict[str, tuple[Choice, ...]] = {}
    plans = [trial.configuration.plan for trial in trials]
    for block in blocks:
        measured = sorted(nbytes[block.name], key=lambda text: (nbytes[block.name][text], text))
        others = {option_text(plan, block) for plan in plans} - set(measured)
        choices[block.name] = (*measured, *sorted(others, key=_bits))
    space = json.loads(record.spec_json)["space"]["recovery"]
    if space is not None:
        choices[RECOVERY] = RECOVERY_KINDS
        settings = {f"{RECOVERY}.{name}": values for name, values in space.items()}
        distil = settings.pop(f"{RECOVERY}.{DISTIL}") or {}
        settings |= {f"{DISTIL}.{name}": values for name, values in distil.items()}
        choices |= {name: tuple(values) for name, values in settings.items()}
    return {name: listed for name, listed in choices.items() if len(listed) > 1}


def _bits(option: str) -> tuple[int, str]:
    return sum(Option.parse(option).bits), option


def _trial(
    trial: Trial,
    blocks: Sequence[Block],
    choices: Choices,
    intermediates: Mapping[int, float],
) -> ExportedTrial:
    # A setting that means nothing, such as the blend of no adapter, may be none of the choices.
    params = {
        name: choice
        for name, choice in parameters(trial.configuration, blocks).items()
        if name in choices and (not name.startswith("recovery.") or choice in choices[name])
    }
    return ExportedTrial(
        trial, params=params, intermediate_values=intermediates, attributes=attributes(trial)
    )

"""All trials of a study as a table of pandas, with the columns that Optuna gives them."""

from datetime import datetime
from typing import Final

import pandas as pd

from bitfront.trial import TrialState
from service.views.optuna_export import exported_study
from storage.store import Store

# Optuna's words, where it has some.
_STATES: Final = {TrialState.FAILED: "FAIL"}


def trials_frame(store: Store, name: str) -> pd.DataFrame:
    """Every trial of a study in whatever state, by number.

    Columns are `number`, `values_*` in the job's order, `datetime_start`, `datetime_complete`,
    `duration`, `params_*`, `user_attrs_*` and `state`; what a trial does not have is missing.
    """
    study = exported_study(store, name)
    rows = []
    for exported in study.trials:
        trial = exported.trial
        start, end = _local(trial.started_at), _local(trial.finished_at)
        rows.append(
            {
                "number": trial.number,
                **{f"values_{key}": trial.values.get(key) for key in study.objectives},
                "datetime_start": start,
                "datetime_complete": end,
                "duration": None if start is None or end is None else end - start,
                **{f"params_{key}": choice for key, choice in exported.params.items()},
                **{f"user_attrs_{key}": fact for key, fact in exported.attributes.items()},
                "state": _STATES.get(trial.state, trial.state.upper()),
            }
        )
    frame = pd.DataFrame(rows)
    return frame[_ordered(list(frame.columns))]


def _ordered(columns: list[str]) -> list[str]:
    """The columns as Optuna orders them: by kind, parameters and attributes by name."""
    facts = [name for name in columns if name.startswith("user_attrs_")]
    params = [name for name in columns if name.startswith("params_")]
    first = [name for name in columns if name not in {*facts, *params, "state"}]
    return [*first, *sorted(params), *sorted(facts), *(["state"] if columns else [])]


def _local(moment: datetime | None) -> datetime | None:
    """The time where this runs, without a zone."""
    return None if moment is None else moment.astimezone().replace(tzinfo=None)

"""Trials as text: aligned tables for a person, plain values for other programs."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from bitfront.objective import FIGURES, OBJECTIVES, Figure, Quantity
from bitfront.plan import canonical_json
from bitfront.trial import Origin, Trial, TrialState
from service.views.describe import (
    baseline_names,
    layer_lines,
    origin_text,
    recovery_details,
    recovery_text,
    trial_names,
)
from service.views.tables import pairs_text, table

if TYPE_CHECKING:
    from storage.records import ProfileRecord

MISSING = "-"


def front_table(front: Sequence[Trial], names: Mapping[int, str]) -> str:
    """A study's front, one trial a line; `names` are those of uniform baselines."""
    return _front_table(front, lambda _: names)


def cross_study_front_table(front: Sequence[Trial]) -> str:
    """A front of several studies, one trial a line, with the study that each comes from."""
    names = names_by_study(front)
    text = _front_table(front, lambda trial: names[trial.study])
    studies = table(["study"], [[trial.study] for trial in front], left=(0,)).split("\n")
    width = max(map(len, studies))
    pairs = zip(studies, text.split("\n"), strict=True)
    return "\n".join(f"{study.ljust(width)}  {line}" for study, line in pairs)


def _front_table(front: Sequence[Trial], names_of: Callable[[Trial], Mapping[int, str]]) -> str:
    figures = [f for f in FIGURES if f.is_tabled and not (f.on_demand and _is_unknown(f, front))]
    labels = [label for figure in figures for label, _ in _columns(figure)]
    header = ["trial", *labels, "recovery", "origin"]
    rows = [
        [
            str(trial.number),
            *(text(trial) for figure in figures for _, text in _columns(figure)),
            recovery_text(trial.configuration.recovery),
            origin_text(trial, names_of(trial)),
        ]
        for trial in front
    ]
    return table(header, rows, left=(len(header) - 2, len(header) - 1))


def _is_unknown(figure: Figure, trials: Sequence[Trial]) -> bool:
    return not any(figure.name in trial.values for trial in trials)


def _columns(figure: Figure) -> list[tuple[str, Callable[[Trial], str]]]:
    """Labels and texts of a figure: one, or two where the test split has its own value."""

    def on_selection(trial: Trial) -> str:
        return optional(trial.values.get(figure.name), figure.write)

    def on_test(trial: Trial) -> str:
        return optional(trial.test_values.get(figure.name), figure.write)

    if not figure.per_split:
        return [(figure.label, on_selection)]
    return [(figure.label, on_selection), (f"test {figure.label}", on_test)]


def names_by_study(trials: Iterable[Trial]) -> dict[str, dict[int, str]]:
    """The names of uniform baselines, by study and by trial number."""
    studies: dict[str, list[Trial]] = {}
    for trial in trials:
        studies.setdefault(trial.study, []).append(trial)
    return {study: trial_names(ours) for study, ours in studies.items()}


def optional(value: float | None, text: Callable[[float], str]) -> str:
    """A value as `text` writes it; a dash where there is none."""
    return MISSING if value is None else text(value)


def _front_row(trial: Trial, names: Mapping[int, str]) -> dict[str, object]:
    """A trial's figures under stable names, the configuration left out."""
    return {
        "study": trial.study,
        "trial": trial.number,
        "origin": str(trial.origin),
        "baseline": names.get(trial.number),
        **_figures(trial),
        "seconds": trial.seconds,
    }


def _figures(trial: Trial) -> dict[str, object]:
    """Every figure under its name, and beside it that of the test split where it has its own."""
    row: dict[str, object] = {}
    for figure in FIGURES:
        row[figure.name] = figure.exported(trial.values.get(figure.name))
        if figure.per_split:
            row[figure.test_name] = figure.exported(trial.test_values.get(figure.name))
    return row


def trial_json(trial: Trial, names: Mapping[int, str]) -> str:
    """A trial with its whole configuration, as one line of JSON."""
    configuration = trial.configuration.to_dict()
    return json.dumps({**_front_row(trial, names), "configuration": configuration})


def front_rows(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """Trials of one or several studies under stable names, with their configurations."""
    names = names_by_study(trials)
    return [
        {
            **_front_row(trial, names[trial.study]),
            "configuration": trial.configuration.to_dict(),
        }
        for trial in trials
    ]


def trial_rows(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """All trials of a study in whatever state, with what became of them."""
    names = baseline_names(
        {trial.number: trial.configuration for trial in trials if trial.origin is Origin.BASELINE}
    )
    return [_trial_row(trial, names.get(trial.number)) for trial in trials]


def _trial_row(trial: Trial, baseline: str | None) -> dict[str, object]:
    recovery = trial.configuration.recovery
    return {
        "study": trial.study,
        "trial": trial.number,
        "state": str(trial.state),
        "attempts": trial.attempts,
        "origin": str(trial.origin),
        "baseline": baseline,
        **{f.name: f.exported(trial.values.get(f.name)) for f in FIGURES},
        **{f.test_name: f.exported(trial.test_values.get(f.name)) for f in OBJECTIVES},
        "feasible": trial.is_feasible if trial.state is TrialState.COMPLETE else None,
        "cached": trial.is_cached,
        "recovery": None if recovery is None else recovery_text(recovery),
        "seconds": trial.seconds,
        "worker": trial.worker,
        "cause": None if trial.cause is None else str(trial.cause),
        "message": trial.message,
        "started_at": _time(trial.started_at),
        "finished_at": _time(trial.finished_at),
        "configuration": trial.configuration.to_dict(),
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def json_lines(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as JSON, one a line."""
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def flat(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Rows for tools that know columns only: a configuration is its canonical JSON text."""
    return [
        {
            name: canonical_json(value) if isinstance(value, dict) else value
            for name, value in row.items()
        }
        for row in rows
    ]


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as CSV with a header; nothing for no rows.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    if not rows:
        return ""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _inert(value: object) -> object:
    starts_formula = isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@"))
    return f"'{value}" if starts_formula else value


def best_text(
    trial: Trial,
    names: Mapping[int, str],
    profile: "ProfileRecord | None",
    *,
    across: bool = False,
) -> str:
    """A trial in full: values on both splits, size, recovery, and the bits of each layer.

    Args:
        trial: The trial.
        names: Trial numbers to names of uniform baselines.
        profile: The layers of its study, if they are known.
        across: Whether several studies were asked, so that its own is worth naming.
    """
    configuration = trial.configuration
    pairs = [("study", trial.study)] if across else []
    pairs += [
        ("trial", f"{trial.number} ({origin_text(trial, names)})"),
    ]
    for figure in FIGURES:
        value = trial.values.get(figure.name)
        if value is None and (figure.on_demand or not figure.is_tabled):
            continue
        has_bytes = value is not None and figure.quantity is Quantity.NBYTES
        exact = f" ({value:,.0f} bytes)" if has_bytes else ""
        pairs += [(label, f"{text(trial)}{exact}") for label, text in _columns(figure)]
    pairs.append(("recovery", recovery_details(configuration.recovery)))
    lines = ["", "precision of each layer"]
    if profile is not None:
        lines += layer_lines(configuration.plan, profile.layers)
    else:
        lines += [f"  {name} {precision}" for name, precision in configuration.plan]
    return "\n".join([pairs_text(pairs), *lines])

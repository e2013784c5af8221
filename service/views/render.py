"""Trials as text: aligned tables for a person, plain values for other programs."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from bitfront.objective import FIGURES, OBJECTIVES, Figure, Quantity
from bitfront.plan import canonical_json
from bitfront.trial import Origin
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
    from storage.records import ProfileRecord, Result, TrialRow

MISSING = "-"


def front_table(front: Sequence["Result"], names: Mapping[int, str]) -> str:
    """A study's front, one trial a line; `names` are those of uniform baselines."""
    return _front_table(front, lambda _: names)


def cross_study_front_table(front: Sequence["Result"]) -> str:
    """A front of several studies, one trial a line, with the study that each comes from."""
    names = names_by_study(front)
    text = _front_table(front, lambda result: names[result.study])
    studies = table(["study"], [[result.study] for result in front], left=(0,)).split("\n")
    width = max(map(len, studies))
    pairs = zip(studies, text.split("\n"), strict=True)
    return "\n".join(f"{study.ljust(width)}  {line}" for study, line in pairs)


def _front_table(
    front: Sequence["Result"], names_of: Callable[["Result"], Mapping[int, str]]
) -> str:
    figures = [f for f in FIGURES if f.is_tabled and not (f.on_demand and _is_unknown(f, front))]
    labels = [label for figure in figures for label, _ in _columns(figure)]
    header = ["trial", *labels, "recovery", "origin"]
    rows = [
        [
            str(result.number),
            *(text(result) for figure in figures for _, text in _columns(figure)),
            recovery_text(result.configuration.recovery),
            origin_text(result, names_of(result)),
        ]
        for result in front
    ]
    return table(header, rows, left=(len(header) - 2, len(header) - 1))


def _is_unknown(figure: Figure, results: Sequence["Result"]) -> bool:
    return not any(figure.name in result.values for result in results)


def _columns(figure: Figure) -> list[tuple[str, Callable[["Result"], str]]]:
    """Labels and texts of a figure: one, or two where the test split has its own value."""

    def on_selection(result: "Result") -> str:
        return optional(result.values.get(figure.name), figure.write)

    def on_test(result: "Result") -> str:
        return optional(result.test_values.get(figure.name), figure.write)

    if not figure.per_split:
        return [(figure.label, on_selection)]
    return [(figure.label, on_selection), (f"test {figure.label}", on_test)]


def names_by_study(results: Iterable["Result"]) -> dict[str, dict[int, str]]:
    """The names of uniform baselines, by study and by trial number."""
    studies: dict[str, list[Result]] = {}
    for result in results:
        studies.setdefault(result.study, []).append(result)
    return {study: trial_names(ours) for study, ours in studies.items()}


def optional(value: float | None, text: Callable[[float], str]) -> str:
    """A value as `text` writes it; a dash where there is none."""
    return MISSING if value is None else text(value)


def result_row(result: "Result", names: Mapping[int, str]) -> dict[str, object]:
    """A trial's figures under stable names, the configuration left out."""
    return {
        "study": result.study,
        "trial": result.number,
        "origin": str(result.origin),
        "baseline": names.get(result.number),
        **_figures(result),
        "seconds": result.seconds,
    }


def _figures(result: "Result") -> dict[str, object]:
    """Every figure under its name, and beside it that of the test split where it has its own."""
    row: dict[str, object] = {}
    for figure in FIGURES:
        row[figure.name] = figure.exported(result.values.get(figure.name))
        if figure.per_split:
            row[figure.test_name] = figure.exported(result.test_values.get(figure.name))
    return row


def result_json(result: "Result", names: Mapping[int, str]) -> str:
    """A trial with its whole configuration, as one line of JSON."""
    configuration = json.loads(result.configuration_json)
    return json.dumps({**result_row(result, names), "configuration": configuration})


def result_rows(results: Sequence["Result"]) -> list[dict[str, object]]:
    """Trials of one or several studies under stable names, with their configurations."""
    names = names_by_study(results)
    return [
        {
            **result_row(result, names[result.study]),
            "configuration": json.loads(result.configuration_json),
        }
        for result in results
    ]


def trial_rows(trials: Sequence["TrialRow"]) -> list[dict[str, object]]:
    """All trials of a study in whatever state, with what became of them."""
    names = baseline_names(
        {trial.number: trial.configuration for trial in trials if trial.origin is Origin.BASELINE}
    )
    return [_trial_row(trial, names.get(trial.number)) for trial in trials]


def _trial_row(trial: "TrialRow", baseline: str | None) -> dict[str, object]:
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
        "feasible": trial.feasible,
        "cached": trial.cached,
        "recovery": None if recovery is None else recovery_text(recovery),
        "seconds": trial.seconds,
        "worker": trial.worker,
        "cause": None if trial.cause is None else str(trial.cause),
        "message": trial.message,
        "started_at": trial.started_at.isoformat(),
        "finished_at": None if trial.finished_at is None else trial.finished_at.isoformat(),
        "configuration": json.loads(trial.configuration_json),
    }


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
    result: "Result",
    names: Mapping[int, str],
    profile: "ProfileRecord | None",
    *,
    across: bool = False,
) -> str:
    """A trial in full: values on both splits, size, recovery, and the bits of each layer.

    Args:
        result: The trial.
        names: Trial numbers to names of uniform baselines.
        profile: The layers of its study, if they are known.
        across: Whether several studies were asked, so that its own is worth naming.
    """
    configuration = result.configuration
    pairs = [("study", result.study)] if across else []
    pairs += [
        ("trial", f"{result.number} ({origin_text(result, names)})"),
    ]
    for figure in FIGURES:
        value = result.values.get(figure.name)
        if value is None and (figure.on_demand or not figure.is_tabled):
            continue
        has_bytes = value is not None and figure.quantity is Quantity.NBYTES
        exact = f" ({value:,.0f} bytes)" if has_bytes else ""
        pairs += [(label, f"{text(result)}{exact}") for label, text in _columns(figure)]
    pairs.append(("recovery", recovery_details(configuration.recovery)))
    lines = ["", "precision of each layer"]
    if profile is not None:
        lines += layer_lines(configuration.plan, profile.layers)
    else:
        lines += [f"  {name} {precision}" for name, precision in configuration.plan]
    return "\n".join([pairs_text(pairs), *lines])

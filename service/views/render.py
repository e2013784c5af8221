"""Trials as text: aligned tables for a person, plain values for other programs."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

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
from service.views.units import percent_text, size_text

if TYPE_CHECKING:
    from storage.records import ProfileRecord, Result, TrialRow

MISSING = "-"

_VALUES: Final = ("error", "nbytes", "bits_per_weight", "bit_operations", "latency_s")
_TEST_VALUES: Final = ("error", "nbytes", "bit_operations", "latency_s")


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
    latency = any(result.latency_s is not None for result in front)
    header = ["trial", "error", "test error", "size", "bits/weight", "recovery", "origin"]
    rows = []
    for result in front:
        row = [
            str(result.number),
            percent_text(result.error),
            optional(result.test_error, percent_text),
            optional(result.nbytes, size_text),
            optional(result.bits_per_weight, lambda bits: f"{bits:.2f}"),
            recovery_text(result.configuration.recovery),
            origin_text(result, names_of(result)),
        ]
        if latency:
            row.insert(4, optional(result.latency_s, latency_text))
        rows.append(row)
    if latency:
        header.insert(4, "latency")
    return table(header, rows, left=(len(header) - 2, len(header) - 1))


def names_by_study(results: Iterable["Result"]) -> dict[str, dict[int, str]]:
    """The names of uniform baselines, by study and by trial number."""
    studies: dict[str, list[Result]] = {}
    for result in results:
        studies.setdefault(result.study, []).append(result)
    return {study: trial_names(ours) for study, ours in studies.items()}


def latency_text(seconds: float) -> str:
    """A latency in milliseconds."""
    return f"{1000 * seconds:.3g} ms"


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
        "error": result.error,
        "test_error": result.test_error,
        "nbytes": result.nbytes,
        "bits_per_weight": result.bits_per_weight,
        "bit_operations": result.bit_operations,
        "latency_s": result.latency_s,
        "test_latency_s": result.test_latency_s,
        "seconds": result.seconds,
    }


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
        **{name: trial.values.get(name) for name in _VALUES},
        **{f"test_{name}": trial.test_values.get(name) for name in _TEST_VALUES},
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
        ("error", percent_text(result.error)),
        ("test error", optional(result.test_error, percent_text)),
        ("size", optional(result.nbytes, lambda n: f"{size_text(n)} ({n:,.0f} bytes)")),
        ("bits/weight", optional(result.bits_per_weight, lambda bits: f"{bits:.2f}")),
    ]
    if result.latency_s is not None:
        tested = optional(result.test_latency_s, latency_text)
        pairs.append(("latency", f"{latency_text(result.latency_s)} (test {tested})"))
    if result.bit_operations is not None:
        pairs.append(("bit operations", f"{result.bit_operations:.4g}"))
    pairs.append(("recovery", recovery_details(configuration.recovery)))
    lines = ["", "precision of each layer"]
    if profile is not None:
        lines += layer_lines(configuration.plan, profile.layers)
    else:
        lines += [f"  {name} {precision}" for name, precision in configuration.plan]
    return "\n".join([pairs_text(pairs), *lines])

"""Trials as text: aligned tables for a person, plain values for other programs."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from service.describe import layer_lines, origin_text, recovery_details, recovery_text
from service.tables import pairs_text, table
from service.units import percent_text, size_text

if TYPE_CHECKING:
    from storage.records import ProfileRecord, Result

MISSING = "-"


def front_table(front: Sequence["Result"], names: Mapping[int, str]) -> str:
    """The front, one trial a line; `names` are those of uniform baselines."""
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
            origin_text(result, names),
        ]
        if latency:
            row.insert(4, optional(result.latency_s, latency_text))
        rows.append(row)
    if latency:
        header.insert(4, "latency")
    return table(header, rows, left=(len(header) - 2, len(header) - 1))


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


def flat_rows(front: Sequence["Result"], names: Mapping[int, str]) -> list[dict[str, object]]:
    """Rows for tools that know columns only: the configuration is its JSON text."""
    return [
        {**result_row(result, names), "configuration": result.configuration_json}
        for result in front
    ]


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as CSV with a header; nothing for no rows."""
    if not rows:
        return ""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def best_text(result: "Result", names: Mapping[int, str], profile: "ProfileRecord | None") -> str:
    """A trial in full: values on both splits, size, recovery, and the bits of each layer."""
    configuration = result.configuration
    pairs = [
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

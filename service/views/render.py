"""Trials as text: aligned tables for a person, plain values for other programs."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from bitfront.objective import FIGURES, OBJECTIVES, Figure, Quantity
from bitfront.plan import Plan, canonical_json
from bitfront.trial import Origin, Trial, TrialState
from bitfront.units import percent_text
from service.views.describe import (
    FULL_NAME,
    baseline_names,
    layer_lines,
    origin_text,
    recovery_details,
    recovery_text,
    trial_names,
)
from service.views.tables import pairs_text, table
from service.views.targets import Deployable, deployable_text

if TYPE_CHECKING:
    from search.estimate import Estimate
    from service.views.choosing import Answer, FullPrecision, ShownFront
    from storage.records import ProfileRecord

MISSING = "-"
CACHE_TARGETS: Final = "none rounds a KV cache: 'apply' of the Python interface does, in torch"
_SHOWN_PEERS = 3
_MOST_SAMPLES = 1e7


def front_table(
    shown: "ShownFront", names: Mapping[int, str], full: "FullPrecision | None" = None
) -> str:
    """A study's front, one trial a line, and full precision below it.

    Args:
        shown: The front.
        names: Trial numbers to names of uniform baselines.
        full: Full precision, where it was measured.
    """
    header, rows = front_cells(shown, names)
    text = table(header, rows, left=(len(header) - 2, len(header) - 1))
    return text if full is None else f"{text}\n\n{full_text(full)}"


def front_cells(shown: "ShownFront", names: Mapping[int, str]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a study's front; the last two columns are words."""
    return _cells(shown, lambda _: names)


def full_text(full: "FullPrecision") -> str:
    """Full precision's errors on both splits, with their intervals."""
    parts = []
    errors = (full.trial.values.get("error"), full.trial.test_values.get("error"))
    for split, error in zip(("selection", "test"), errors, strict=True):
        if error is not None:
            found = full.interval(split)
            ends = (
                ""
                if found is None
                else f" ({_ends(found)} on {len(full.samples[split]):,} samples)"
            )
            parts.append(
                f"{'' if split == 'selection' else 'test '}error {percent_text(error)}{ends}"
            )
    return f"full precision, trial {full.trial.number}: {', '.join(parts)}"


def _ends(interval: tuple[float, float]) -> str:
    low, high = map(percent_text, interval)
    return f"95 % interval {low} to {high}"


def cross_study_front_table(shown: "ShownFront") -> str:
    """A front of several studies, one trial a line, with the study that each comes from."""
    front = shown.trials
    names = names_by_study(front)
    header, rows = _cells(shown, lambda trial: names[trial.study])
    beside = [[trial.study, *row] for trial, row in zip(front, rows, strict=True)]
    return table(["study", *header], beside, left=(0, len(header) - 1, len(header)))


def _cells(
    shown: "ShownFront", names_of: Callable[[Trial], Mapping[int, str]]
) -> tuple[list[str], list[list[str]]]:
    front = shown.trials
    figures = [f for f in FIGURES if f.is_tabled and not (f.is_objective and _is_unknown(f, front))]
    columns = [column for figure in figures for column in _columns(figure)]
    if shown.estimates:
        columns.insert(1, ("estimate", lambda trial: _estimate_text(shown.estimates, trial)))
    header = ["trial", *(label for label, _ in columns), "recovery", "origin"]
    rows = [
        [
            str(trial.number),
            *(text(trial) for _, text in columns),
            recovery_text(trial.configuration),
            origin_text(trial, names_of(trial)),
        ]
        for trial in front
    ]
    return header, rows


def _estimate_text(estimates: "Mapping[tuple[str, int], Estimate]", trial: Trial) -> str:
    found = estimates.get((trial.study, trial.number))
    return MISSING if found is None else with_error(found.error, found.standard_error)


def with_error(share: float, standard_error: float | None) -> str:
    """A share with its standard error, such as `9.4 % ± 1.3`."""
    text = percent_text(share)
    return text if standard_error is None else f"{text} ± {100 * standard_error:.1f}"


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


def best_dict(
    answer: "Answer", names: Mapping[int, str], targets: Sequence[Deployable]
) -> dict[str, object]:
    """The best trial with its whole configuration, as plain JSON content.

    `not_told_apart` lists the trials whose errors cannot be told from its own, with McNemar's
    probability and the samples that it would take (null for more than could be counted). `targets`
    has the layers that a target has no kernel for, by the names of those that take the model.
    """
    trial = answer.trial
    peers = [
        {
            "study": peer.trial.study,
            "trial": peer.trial.number,
            "p": peer.comparison.error_p,
            "samples_needed": int(n) if math.isfinite(n := peer.samples_needed) else None,
        }
        for peer in answer.peers
    ]
    return {
        **_front_row(trial, names),
        **_uncertainty(trial, answer.estimate),
        "not_told_apart": peers,
        "targets": {one.target: one.without_kernel for one in targets},
        "configuration": trial.configuration.to_dict(),
    }


def front_rows(shown: "ShownFront") -> list[dict[str, object]]:
    """Trials of one or several studies under stable names, with their configurations."""
    names = names_by_study(shown.trials)
    return [
        {
            **_front_row(trial, names[trial.study]),
            **_uncertainty(trial, shown.estimates.get((trial.study, trial.number))),
            "configuration": trial.configuration.to_dict(),
        }
        for trial in shown.trials
    ]


def _uncertainty(trial: Trial, estimate: "Estimate | None") -> dict[str, float | None]:
    """The standard errors of what depends on samples, and the estimated error."""
    return {
        "error_se": trial.metrics.get("error_se"),
        "divergence_se": trial.metrics.get("divergence_se"),
        "estimated_error": None if estimate is None else estimate.error,
        "estimated_error_se": None if estimate is None else estimate.standard_error,
    }


def trial_rows(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """All trials of a study in whatever state, with what became of them."""
    names = baseline_names(
        {trial.number: trial.configuration for trial in trials if trial.origin is Origin.BASELINE}
    )
    return [_trial_row(trial, names.get(trial.number)) for trial in trials]


def _trial_row(trial: Trial, baseline: str | None) -> dict[str, object]:
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
        "recovery": recovery_text(trial.configuration) if trial.configuration.trained_by else None,
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
    answer: "Answer",
    names: Mapping[int, str],
    profile: "ProfileRecord | None",
    targets: Sequence[Deployable],
    *,
    across: bool = False,
) -> str:
    """A trial in full: values on both splits, size, recovery, and the bits of each layer.

    Args:
        answer: The trial, and what cannot be told from it.
        names: Trial numbers to names of uniform baselines, of peers as well.
        profile: The layers of its study, if they are known.
        targets: What it can be built for.
        across: Whether several studies were asked, so that its own is worth naming.
    """
    lines = precision_lines(answer.trial.configuration.plan, profile)
    pairs = best_pairs(answer, names, targets, across=across)
    return "\n".join([pairs_text(pairs), "", "precision of each layer", *lines])


def precision_lines(plan: Plan, profile: "ProfileRecord | None") -> list[str]:
    """The precision of every layer: as the model runs, where its layers are known."""
    if profile is not None:
        return layer_lines(plan, profile.layers)
    return [f"  {name} {text}" for name, text in plan.to_dict().items()]


def best_pairs(
    answer: "Answer",
    names: Mapping[int, str],
    targets: Sequence[Deployable],
    *,
    across: bool = False,
) -> list[tuple[str, str]]:
    """What is told of a trial before the bits of its layers, names and values; see `best_text`."""
    trial = answer.trial
    pairs = [("study", trial.study)] if across else []
    pairs += [
        ("trial", f"{trial.number} ({origin_text(trial, names)})"),
    ]
    for figure in FIGURES:
        value = trial.values.get(figure.name)
        if value is None and (figure.is_objective or not figure.is_tabled):
            continue
        has_bytes = value is not None and figure.quantity is Quantity.NBYTES
        exact = f" ({value:,.0f} bytes)" if has_bytes else ""
        pairs += [(label, f"{text(trial)}{exact}") for label, text in _columns(figure)]
        if figure.name == "error" and answer.estimate is not None:
            own = answer.estimate
            pairs.append(("estimate", with_error(own.error, own.standard_error)))
    pairs.append(
        (
            "recovery",
            recovery_details(trial.configuration.recovery, trial.configuration.plan.distil),
        )
    )
    rounds_cache = bool(trial.configuration.plan.cache)
    pairs.append(("targets", CACHE_TARGETS if rounds_cache else deployable_text(targets)))
    if answer.peers:
        pairs.append(("chance", peers_text(answer, names)))
    return pairs


def peers_text(answer: "Answer", names: Mapping[int, str]) -> str:
    """Which trials' errors differ from that of the best one by chance, and what would tell them.

    Uniform baselines are named first: they are what a person has without a search.
    """
    peers = answer.peers
    shown = sorted(peers, key=lambda peer: peer.trial.number not in names)[:_SHOWN_PEERS]
    parts = [
        f"{peer_name(peer.trial.number, names)} ({needed_text(peer.samples_needed)})"
        for peer in shown
    ]
    more = len(peers) - len(shown)
    named = "; ".join([*parts, f"{more} more"] if more else parts)
    return (
        f"on these {answer.samples:,} samples its error differs by no more than chance from {named}"
    )


def peer_name(number: int, names: Mapping[int, str]) -> str:
    """A trial as a sentence names it, such as `uniform w3`."""
    name = names.get(number)
    if name is None:
        return f"trial {number}"
    return (
        f"full precision (trial {number})"
        if name == FULL_NAME
        else f"uniform {name} (trial {number})"
    )


def needed_text(samples: float) -> str:
    """A number of samples in two digits, such as `about 4,000 would tell`."""
    if not samples < _MOST_SAMPLES:
        return "no number of samples would tell"
    step = 10 ** max(int(math.log10(samples)) - 1, 0)
    return f"about {math.ceil(samples / step) * step:,} would tell"

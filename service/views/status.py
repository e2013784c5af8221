"""The status of studies, as text and as plain values."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bitfront.trial import StudyState, TrialState
from bitfront.units import duration_text, percent_text
from service.views.render import MISSING, optional
from service.views.tables import one_line, pairs_text, table

if TYPE_CHECKING:
    from storage.records import Status, StudyRecord, StudySummary

STUDIES_LEFT = (0, 1, 5, 6)
"""The columns of the list of studies that hold words."""

ENDED = frozenset(
    {StudyState.COMPLETE, StudyState.STOPPED, StudyState.CANCELLED, StudyState.FAILED}
)


def studies_table(studies: Sequence["StudySummary"]) -> str:
    """All studies, one a line."""
    header, rows = studies_cells(studies)
    return table(header, rows, left=STUDIES_LEFT)


def studies_cells(studies: Sequence["StudySummary"]) -> tuple[list[str], list[list[str]]]:
    """The header and a row for each study."""
    header = ["study", "state", "trials", "front", "lowest error", "model", "updated"]
    rows = [
        [
            study.name,
            "interrupted" if is_interrupted(study) else str(study.state),
            f"{_finished(study.counts)}/{study.planned_trials}",
            str(study.front_size),
            optional(study.best_error, percent_text),
            study.model,
            _ago(study.updated_age_s),
        ]
        for study in studies
    ]
    return header, rows


def _finished(counts: Mapping[TrialState, int]) -> int:
    return sum(count for state, count in counts.items() if state.is_finished)


def _counts(counts: Mapping[TrialState, int]) -> dict[str, int]:
    """Every state with its trials; outdated ones only where there are some."""
    return {
        str(state): count
        for state, count in counts.items()
        if count or state is not TrialState.OUTDATED
    }


def _ago(age_s: float) -> str:
    return f"{duration_text(age_s)} ago"


def study_dict(study: "StudySummary") -> dict[str, object]:
    """A study's line under stable names."""
    return {
        "study": study.name,
        "state": str(study.state),
        "interrupted": is_interrupted(study),
        "model": study.model,
        "owner": study.owner,
        "planned_trials": study.planned_trials,
        "trials": _counts(study.counts),
        "front": study.front_size,
        "best_error": study.best_error,
        "created_at": study.created_at.isoformat(),
        "updated_at": study.updated_at.isoformat(),
    }


def is_driven(study: "StudyRecord | StudySummary") -> bool:
    """Whether some process runs the study, by the clock of the database alone.

    A sign of life that lies further ahead than a lease is none: that clock was set back, and
    a driver that lives has its next one counted.
    """
    if study.owner is None or study.heartbeat_age_s is None or study.lease_s is None:
        return False
    return abs(study.heartbeat_age_s) < study.lease_s


def is_interrupted(study: "StudyRecord | StudySummary") -> bool:
    """Whether the study is unfinished and nobody runs it."""
    return study.state not in ENDED and not is_driven(study)


def is_over(study: "StudyRecord") -> bool:
    """Whether nothing more happens to the study until somebody resumes it."""
    return (study.state in ENDED and study.owner is None) or is_interrupted(study)


def status_text(status: "Status", best_error_at_budget: float | None) -> str:
    """How far a study is, with the best error that `watch` shows beside the lowest of all."""
    return pairs_text(status_pairs(status, best_error_at_budget))


def status_pairs(status: "Status", best_error_at_budget: float | None) -> list[tuple[str, str]]:
    """What is told of a study's progress, names and values."""
    study = status.study
    finished = f"{status.finished} of {study.planned_trials}"
    counts = [f"{n} {state}" for state, n in status.counts.items() if n]
    pairs = [
        ("study", study.name),
        ("state", _state_text(study)),
        ("trials", f"{finished} ({', '.join(counts)})" if counts else finished),
        ("front", str(status.front_size)),
        ("lowest error", optional(status.best_error, percent_text)),
        ("best error at the budget", optional(best_error_at_budget, percent_text)),
        ("hypervolume", MISSING if status.hypervolume is None else f"{status.hypervolume:,.6g}"),
        ("correlation", MISSING if study.correlation is None else f"{study.correlation:.2f}"),
        ("cells", f"{status.cells} measured"),
        ("worker time", duration_text(status.seconds)),
    ]
    if study.message:
        pairs.append(("message", one_line(study.message)))
    pairs += [
        ("failures", f"{failure.count} x {failure.cause}: {one_line(failure.message)}".rstrip(": "))
        for failure in status.failures
    ]
    return pairs


def _state_text(study: "StudyRecord") -> str:
    if is_interrupted(study):
        return f"interrupted while {study.state}: 'bitfront resume {study.name}' continues it"
    if study.owner is None or study.heartbeat_age_s is None:
        return str(study.state)
    asked = "" if study.request is None else f", asked to {study.request}"
    way_on = (
        f": 'bitfront resume {study.name}' continues it" if study.state is StudyState.PAUSED else ""
    )
    seen = f"driven by {study.owner} (seen {_ago(study.heartbeat_age_s)})"
    return f"{study.state}{asked}, {seen}{way_on}"


def status_dict(status: "Status") -> dict[str, object]:
    """A study's status under stable names."""
    study = status.study
    return {
        "study": study.name,
        "state": str(study.state),
        "interrupted": is_interrupted(study),
        "owner": study.owner,
        "heartbeat_age_s": study.heartbeat_age_s,
        "request": None if study.request is None else str(study.request),
        "planned_trials": study.planned_trials,
        "trials": _counts(status.counts),
        "front": status.front_size,
        "best_error": status.best_error,
        "hypervolume": status.hypervolume,
        "correlation": study.correlation,
        "cells": status.cells,
        "worker_s": status.seconds,
        "message": study.message,
        "failures": [
            {"cause": str(failure.cause), "count": failure.count, "message": failure.message}
            for failure in status.failures
        ],
        "provenance": dict(study.provenance),
    }

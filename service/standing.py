"""How studies stand, as text and as plain values."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from bitfront.trial import StudyState, TrialState
from service.heartbeat import LEASE_S
from service.render import MISSING, optional
from service.tables import pairs_text, table
from service.units import duration_text, percent_text

if TYPE_CHECKING:
    from storage.records import Status, StudyRecord, StudySummary

ENDED = frozenset(
    {StudyState.COMPLETE, StudyState.STOPPED, StudyState.CANCELLED, StudyState.FAILED}
)


def studies_table(studies: Sequence["StudySummary"], now: datetime) -> str:
    """All studies, one a line."""
    header = ["study", "state", "trials", "front", "best error", "model", "updated"]
    rows = [
        [
            study.name,
            str(study.state),
            f"{_finished(study.counts)}/{study.planned_trials}",
            str(study.front_size),
            optional(study.best_error, percent_text),
            study.model,
            _ago(study.updated_at, now),
        ]
        for study in studies
    ]
    return table(header, rows, left=(0, 1, 5, 6))


def _finished(counts: Mapping[TrialState, int]) -> int:
    return sum(count for state, count in counts.items() if state.is_finished)


def _ago(then: datetime, now: datetime) -> str:
    return f"{duration_text((now - then).total_seconds())} ago"


def study_dict(study: "StudySummary") -> dict[str, object]:
    """A study's line under stable names."""
    return {
        "study": study.name,
        "state": str(study.state),
        "model": study.model,
        "owner": study.owner,
        "planned_trials": study.planned_trials,
        "trials": {str(state): count for state, count in study.counts.items()},
        "front": study.front_size,
        "best_error": study.best_error,
        "created_at": study.created_at.isoformat(),
        "updated_at": study.updated_at.isoformat(),
    }


def is_driven(study: "StudyRecord", now: datetime) -> bool:
    """Whether some process runs the study."""
    if study.owner is None or study.heartbeat_at is None:
        return False
    return (now - study.heartbeat_at).total_seconds() < LEASE_S


def is_interrupted(study: "StudyRecord", now: datetime) -> bool:
    """Whether the study is unfinished and nobody runs it."""
    return study.state not in ENDED and not is_driven(study, now)


def status_text(status: "Status", now: datetime) -> str:
    """How far a study is."""
    study = status.study
    finished = f"{status.finished} of {study.planned_trials}"
    counts = [f"{n} {state}" for state, n in status.counts.items() if n]
    pairs = [
        ("study", study.name),
        ("state", _state_text(study, now)),
        ("trials", f"{finished} ({', '.join(counts)})" if counts else finished),
        ("front", str(status.front_size)),
        ("best error", MISSING if status.best_error is None else percent_text(status.best_error)),
        ("hypervolume", MISSING if status.hypervolume is None else f"{status.hypervolume:,.6g}"),
        ("correlation", MISSING if study.correlation is None else f"{study.correlation:.2f}"),
        ("cells", f"{status.cells} measured"),
        ("worker time", duration_text(status.seconds)),
    ]
    if study.message:
        pairs.append(("message", study.message))
    pairs += [
        ("failures", f"{failure.count} x {failure.cause}: {failure.message}")
        for failure in status.failures
    ]
    return pairs_text(pairs)


def _state_text(study: "StudyRecord", now: datetime) -> str:
    if is_interrupted(study, now):
        return f"interrupted while {study.state}: 'bitfront resume {study.name}' goes on"
    if study.owner is None or study.heartbeat_at is None:
        return str(study.state)
    return f"{study.state}, driven by {study.owner} (seen {_ago(study.heartbeat_at, now)})"


def status_dict(status: "Status", now: datetime) -> dict[str, object]:
    """A study's standing under stable names."""
    study = status.study
    return {
        "study": study.name,
        "state": str(study.state),
        "interrupted": is_interrupted(study, now),
        "owner": study.owner,
        "planned_trials": study.planned_trials,
        "trials": {str(state): count for state, count in status.counts.items()},
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

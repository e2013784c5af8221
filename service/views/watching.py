"""Watching a study that another process runs, from what it writes to the database."""

import time
from collections.abc import Callable

from bitfront.trial import StudyState
from service.views.describe import reported_budget
from service.views.progress import Reporter
from service.views.status import ENDED, is_over
from storage.records import Limits, LogLine, Status, StudyRecord
from storage.store import Store

POLL_S = 1.0


def watch(
    store: Store, name: str, reporter: Reporter, *, pause: Callable[[float], None] = time.sleep
) -> Status:
    """Reports on a study until it ends, or until nobody runs it any more.

    Args:
        store: Where the study is.
        name: The study.
        reporter: Hears of the progress; its context is open.
        pause: Waits for so many seconds between two looks.

    Returns:
        How the study stood at the last look.
    """
    state: StudyState | None = None
    cells = 0
    while True:
        status = store.status(name)
        study = status.study
        if study.state != state and study.state not in ENDED:
            state = study.state
            _begin(reporter, state, study)
        if study.state is StudyState.PROFILING:
            reporter.advance(status.cells - cells)
            cells = status.cells
        elif state is not None or is_over(study):  # a driver may have just begun to resume it
            _show_trials(store, status, reporter)
        if is_over(study):
            return status
        pause(POLL_S)


def follow_log(
    store: Store,
    name: str,
    hear: Callable[[LogLine], None],
    *,
    trial: int | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> StudyRecord:
    """Tells the study's log from its start, until the study ends or nobody runs it any more.

    Args:
        store: Where the study is.
        name: The study.
        hear: Hears each line once, oldest first.
        trial: Only what is about this trial.
        pause: Waits for so many seconds between two looks.

    Returns:
        The study as it was before the last look at its log.
    """
    last = 0
    while True:
        study = store.study(name)
        last = tell_log(store, name, hear, trial=trial, after_id=last)
        if is_over(study):
            return study
        pause(POLL_S)


def tell_log(
    store: Store,
    name: str,
    hear: Callable[[LogLine], None],
    *,
    trial: int | None = None,
    after_id: int = 0,
) -> int:
    """Tells what is new in the study's log after an event; the last event that was told."""
    while lines := store.log(name, after_id, trial=trial):
        for line in lines:
            hear(line)
        after_id = lines[-1].event.id
    return after_id


def _begin(reporter: Reporter, state: StudyState, study: StudyRecord) -> None:
    if state is StudyState.PAUSED:
        reporter.note(f"study {study.name} is paused: 'bitfront resume {study.name}' continues it")
    elif state is StudyState.PROFILING:
        reporter.stage("cells", None)
    else:
        reporter.stage("trials", study.planned_trials)


def _show_trials(store: Store, status: Status, reporter: Reporter) -> None:
    reporter.trial(
        done=status.finished,
        total=status.study.planned_trials,
        best_error=best_error_at_budget(store, status.study),
        hypervolume=status.hypervolume or 0.0,
    )


def best_error_at_budget(store: Store, study: StudyRecord) -> float | None:
    """The lowest error within the study's budget, as its driver shows it; None if there is none."""
    budget = reported_budget(study)
    best = None if budget is None else store.best(study.name, Limits(**budget.limits))
    return None if best is None else best.values["error"]

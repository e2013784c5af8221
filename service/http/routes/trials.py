"""Trials, a page at a time, and the attempts at one."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from bitfront.trial import TrialState
from service.http.models.trials import AttemptRow, Attempts, TrialPage, TrialRow
from service.http.parameters import LARGEST_NUMBER, StudyName, TrialNumber
from service.http.problems import Refused
from service.http.service import Service, ServiceDependency
from service.views.describe import trial_names

router = APIRouter(tags=["trials"])


@router.get("/studies/{study}/trials")
def trials(
    study: StudyName,
    service: ServiceDependency,
    state: Annotated[
        list[TrialState] | None, Query(description="Only trials in these states.")
    ] = None,
    after: Annotated[int, Query(ge=-1, le=LARGEST_NUMBER)] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> TrialPage:
    """The trials numbered above `after`, by number, at most `limit` of them."""
    states = None if state is None else set(state)
    found = service.store.trials_page(study, states, after=after, limit=limit)
    names = baseline_names_of(service, study)
    return TrialPage(
        trials=tuple(TrialRow.of(trial, names) for trial in found),
        next_after=found[-1].number if len(found) == limit else None,
    )


def baseline_names_of(service: Service, study: str) -> dict[int, str]:
    """The names of a study's uniform baselines by their numbers."""
    return service.answers.of(
        study, "baselines", lambda: trial_names(service.store.baselines(study))
    )


@router.get("/studies/{study}/trials/{number}")
def trial(study: StudyName, number: TrialNumber, service: ServiceDependency) -> TrialRow:
    """One trial."""
    found = service.store.trials_page(study, after=number - 1, limit=1)
    if not found or found[0].number != number:
        raise Refused(HTTPStatus.NOT_FOUND, f"study {study!r} has no trial {number}")
    return TrialRow.of(found[0], baseline_names_of(service, study))


@router.get("/studies/{study}/trials/{number}/attempts")
def attempts(study: StudyName, number: TrialNumber, service: ServiceDependency) -> Attempts:
    """Every attempt at a trial, with the traceback of one that failed."""
    found = service.store.attempts(study, [number])
    if not found:
        raise Refused(HTTPStatus.NOT_FOUND, f"study {study!r} has no trial {number}")
    return Attempts(attempts=tuple(map(AttemptRow.of, found)))

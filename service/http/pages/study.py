"""All studies, and one of them as it runs."""

import json
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from bitfront.objective import BY_NAME
from bitfront.spec import ErrorMeasure
from bitfront.trial import TrialState
from service.http.models.log import LogEntry
from service.http.models.studies import StudyLine
from service.http.models.trials import AttemptRow
from service.http.pages.rendering import job_text, page
from service.http.parameters import StudyName
from service.http.routes.artefacts import study_artefacts
from service.http.routes.queries import kept_front
from service.http.routes.studies import (
    study_status,
)
from service.http.routes.trials import baseline_names_of
from service.http.service import Service, ServiceDependency
from service.views.describe import reported_budget
from storage.records import EventKind

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

MEASURES: Final = {
    ErrorMeasure.OUTPUT_KL: "KL divergence of the output, in nats",
    ErrorMeasure.GRADIENT: "block's output error weighted by its gradient",
    ErrorMeasure.FISHER: "output error weighted by the Fisher information",
    ErrorMeasure.GAUSS_NEWTON: "squared change of the log-likelihood, in nats",
    ErrorMeasure.ENTROPY: "output error weighted by the entropy",
    ErrorMeasure.LOSS_DELTA: "KL divergence beyond that of 8 bits, in nats",
    ErrorMeasure.LIM: "relative error weighted by what a block changes",
    ErrorMeasure.ZD: "relative error weighted by the spread of the weights",
    ErrorMeasure.MASKED: "relative error weighted by what a mask does",
    ErrorMeasure.RELEVANCE: "relative error weighted by a layer's relevance",
}
_LIMITED: Final = ("nbytes", "latency_s", "token_s", "error")
_LOG_LINES: Final = 40
_EVENTS_BACK: Final = 120
_TRIALS_BACK: Final = 40
_MOST_FAILURES: Final = 20


@router.get("/")
def studies(request: Request, service: ServiceDependency) -> HTMLResponse:
    """The list of all studies."""
    rows = []
    for summary in service.store.studies():
        line = StudyLine.of(summary)
        status = study_status(service, line.name)
        front = kept_front(service, line.name) if line.front else None
        rows.append({"line": line, "status": status, "front": front})
    return page(request, "studies.html", rows=rows)


@router.get("/studies/{study}")
def study(request: Request, study: StudyName, service: ServiceDependency) -> HTMLResponse:
    """One study, live."""
    record = service.store.study(study)
    return page(
        request,
        "study.html",
        study=study,
        figures=[BY_NAME[name] for name in _LIMITED],
        budget=reported_budget(record),
        artefacts=study_artefacts(service, study),
        spec=job_text(record),
        provenance=dict(sorted(record.provenance.items())),
        **_live(service, study),
    )


@router.get("/studies/{study}/live")
def live(request: Request, study: StudyName, service: ServiceDependency) -> HTMLResponse:
    """The part of a study's page that changes while it runs."""
    return page(request, "parts.html", study=study, **_live(service, study))


def _live(service: Service, study: str) -> dict[str, object]:
    activity = service.answers.of(study, "activity", lambda: _activity(service, study))
    return {"status": study_status(service, study), **activity}


def _activity(service: Service, study: str) -> dict[str, object]:
    """What changes on a study's page with its events only."""
    store = service.store
    last = store.last_event(study)
    lines = store.log(study, max(0, last - _EVENTS_BACK))
    running = store.trials_page(study, {TrialState.RUNNING}, limit=_TRIALS_BACK)
    total = sum(study_status(service, study).trials.values())
    recent = store.trials_page(study, after=total - _TRIALS_BACK, limit=_TRIALS_BACK)
    workers = {trial.worker: trial for trial in recent if trial.worker is not None}
    failed = store.trials_page(study, {TrialState.FAILED}, limit=_MOST_FAILURES)
    retried = [
        line.event.trial
        for line in lines
        if line.event.kind is EventKind.ATTEMPT_FAILED and line.event.trial is not None
    ]
    numbers = sorted({trial.number for trial in failed} | set(retried[-_MOST_FAILURES:]))
    attempts = store.attempts(study, numbers) if numbers else []
    return {
        "front_size": len(kept_front(service, study).trials),
        "last_event": last,
        "running": running,
        "workers": sorted(workers.items()),
        "failures": [AttemptRow.of(one) for one in attempts if one.cause is not None],
        "log": [LogEntry.of(study, line) for line in reversed(lines[-_LOG_LINES:])],
        "names": baseline_names_of(service, study),
    }


@router.get("/studies/{study}/sensitivity")
def sensitivity(request: Request, study: StudyName, service: ServiceDependency) -> HTMLResponse:
    """The sensitivities of a study's layers."""
    record = service.store.study(study)
    has_profile = service.store.load_profile(study) is not None
    return page(
        request,
        "sensitivity.html",
        study=study,
        has_profile=has_profile,
        correlation=record.correlation,
        measure=MEASURES[ErrorMeasure(json.loads(record.spec_json)["profile"]["measure"])],
    )

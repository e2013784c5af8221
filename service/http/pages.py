"""The web page: the same answers as the interface's, as HTML."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Final, cast
from urllib.parse import parse_qs, quote

import yaml
from fastapi import APIRouter, Query, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from bitfront.errors import BitfrontError
from bitfront.objective import BY_NAME, FIGURES
from bitfront.precision import Precision
from bitfront.spec import ErrorMeasure
from bitfront.trial import TrialState
from bitfront.units import duration_text, percent_text, size_text
from search.choice import Ranking
from service.http import session
from service.http.bits import BitsTable, bits_tables
from service.http.models import AttemptRow, Best, Front, LogEntry, RankedTrial, Resume, StudyLine
from service.http.parameters import LimitsDependency, StudyName, TrialNumber
from service.http.problems import Mistake, Refused
from service.http.routes.artefacts import study_artefacts
from service.http.routes.queries import best_within, study_front
from service.http.routes.studies import (
    ask,
    delete_study,
    resume_study,
    study_status,
    submit_job,
)
from service.http.routes.trials import baseline_names_of
from service.http.routes.trials import trial as trial_row
from service.http.service import Service, ServiceDependency
from service.http.sparkline import sparkline
from service.views.describe import recovery_details, recovery_text, reported_budget
from service.views.refusal import refusal
from storage.records import EventKind, StudyRecord
from storage.records import Request as Asked

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

MISSING: Final = "\N{EN DASH}"

_MEASURES: Final = {
    ErrorMeasure.OUTPUT_KL: "KL divergence of the output, in nats",
    ErrorMeasure.GRADIENT: "block's output error weighted by its gradient",
    ErrorMeasure.FISHER: "output error weighted by the Fisher information",
    ErrorMeasure.ENTROPY: "output error weighted by the entropy",
}
_LIMITED: Final = ("nbytes", "latency_s", "error")
_LOG_LINES: Final = 40
_EVENTS_BACK: Final = 120
_TRIALS_BACK: Final = 40
_MOST_FAILURES: Final = 20
_EXAMPLE: Final = """\
study: first
model: {source: reference}
data: {source: reference}
space: {weight_bits: [2, 3, 4, 8]}
stop: {trials: 40}
"""


@cache
def static_version() -> str:
    """A name for the static files as they are now: it changes with any of them."""
    digest = hashlib.sha256(version("plotly").encode())
    for path in sorted(files("service.http").joinpath("static").iterdir(), key=lambda f: f.name):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("service.http"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share: MISSING if share is None else percent_text(share),
        "size": lambda nbytes: MISSING if nbytes is None else size_text(nbytes),
        "duration": lambda seconds: MISSING if seconds is None else duration_text(seconds),
        "moment": lambda at: MISSING if at is None else f"{at:%Y-%m-%d %H:%M:%S}Z",
        "path": lambda text: quote(str(text), safe=""),
        "figure": lambda value, name: MISSING if value is None else BY_NAME[name].write(value),
        "recovery": recovery_text,
        "recovery_details": recovery_details,
    }
    environment.globals |= {
        "static": f"/static/{static_version()}",
        "version": version("bitfront"),
        "sparkline": sparkline,
    }
    return environment


def page(request: Request, name: str, **content: object) -> HTMLResponse:
    """A template as a response."""
    service = cast("Service", request.app.state.service)
    shared = {"has_token": service.settings.token is not None, "path": request.url.path}
    text = _environment().get_template(name).render(**shared, **content)
    return HTMLResponse(text)


def _with_status(response: HTMLResponse, status: HTTPStatus) -> HTMLResponse:
    response.status_code = status
    return response


def problem_page(
    request: Request, status: HTTPStatus, detail: str, mistakes: tuple[Mistake, ...] = ()
) -> HTMLResponse:
    """What is wrong with a request, for a person."""
    found = page(request, "problem.html", title=status.phrase, detail=detail, mistakes=mistakes)
    return _with_status(found, status)


@router.get("/")
def studies(request: Request, service: ServiceDependency) -> HTMLResponse:
    """The list of all studies."""
    rows = []
    for summary in service.store.studies():
        line = StudyLine.of(summary)
        status = study_status(service, line.name)
        front = _front(service, line.name) if line.front else None
        rows.append({"line": line, "status": status, "front": front})
    return page(request, "studies.html", rows=rows)


def _front(service: Service, study: str) -> Front:
    by = Ranking.ESTIMATE
    return service.answers.of(study, ("front", by), lambda: study_front(service, study, by))


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
        spec=_job_text(record),
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
        "front_size": len(_front(service, study).trials),
        "last_event": last,
        "running": running,
        "workers": sorted(workers.items()),
        "failures": [AttemptRow.of(one) for one in attempts if one.cause is not None],
        "log": [LogEntry.of(study, line) for line in reversed(lines[-_LOG_LINES:])],
        "names": baseline_names_of(service, study),
    }


def shown_value(ranked: RankedTrial, name: str) -> float | None:
    """A figure of a trial, its estimated error in place of the measured one."""
    if name == "error" and ranked.estimate is not None:
        return ranked.estimate.error
    return ranked.trial.values.get(name)


@router.get("/studies/{study}/choice")
def choice(
    request: Request, study: StudyName, service: ServiceDependency, limits: LimitsDependency
) -> HTMLResponse:
    """The best configuration within limits, and what the next ones would cost."""
    question = ("best", Ranking.ESTIMATE, tuple(sorted(limits.given.items())))
    found = service.answers.of(
        study, question, lambda: best_within(service, study, limits, Ranking.ESTIMATE)
    )
    if found is None:
        nearest = service.store.nearest(study, limits)
        sentence = refusal(f"study {study!r}", limits, nearest, way_out=f"status {study}")
        return page(request, "choice.html", study=study, found=None, sentence=sentence)
    smaller, better = _neighbours(_front(service, study), found)
    asked = " ".join(
        f"{BY_NAME[name].option} {BY_NAME[name].exported(most)}"
        for name, most in limits.given.items()
    )
    return page(
        request,
        "choice.html",
        study=study,
        found=found,
        smaller=smaller,
        better=better,
        figures=_figure_rows(found.best),
        tables=_tables(service, study, found.best.trial.configuration.plan),
        names=baseline_names_of(service, study),
        command=f"bitfront best {study} {asked}",
        shown_value=shown_value,
    )


def _neighbours(front: Front, found: Best) -> tuple[RankedTrial | None, RankedTrial | None]:
    """The largest of the front that is smaller, and the smallest that is estimated better."""
    sizes = [(shown_value(one, "nbytes"), shown_value(one, "error"), one) for one in front.trials]
    own_size, own_error = shown_value(found.best, "nbytes"), shown_value(found.best, "error")
    known = [(size, error, one) for size, error, one in sizes if size is not None]
    smaller = [(size, one) for size, _, one in known if own_size is not None and size < own_size]
    better = [
        (size, one)
        for size, error, one in known
        if error is not None and own_error is not None and error < own_error
    ]
    return (
        max(smaller, key=lambda pair: pair[0])[1] if smaller else None,
        min(better, key=lambda pair: pair[0])[1] if better else None,
    )


def _figure_rows(ranked: RankedTrial) -> list[tuple[str, str, str, str]]:
    """Each figure that is known: its label, its value on both splits, and the bare number."""
    trial = ranked.trial
    rows = []
    for figure in FIGURES:
        value = trial.values.get(figure.name)
        if value is None:
            continue
        tested = trial.test_values.get(figure.name) if figure.per_split else None
        exact = figure.exported(value)
        rows.append(
            (
                "divergence (nats)" if figure.name == "divergence" else figure.label,
                figure.write(value),
                "" if tested is None else figure.write(tested),
                f"{exact:,}" if isinstance(exact, int) else f"{exact:.6g}",
            )
        )
    return rows


def _tables(service: Service, study: str, plan: Mapping[str, str]) -> list[BitsTable]:
    profile = service.store.load_profile(study)
    layers = () if profile is None else profile.layers
    return bits_tables(layers, {name: Precision.parse(text) for name, text in plan.items()})


@router.get("/studies/{study}/trials/{number}")
def configuration(
    request: Request, study: StudyName, number: TrialNumber, service: ServiceDependency
) -> HTMLResponse:
    """A trial, with everything to reproduce it."""
    row = trial_row(study, number, service)
    record = service.store.study(study)
    spec = json.loads(record.spec_json)
    front = {one.trial.number: one for one in _front(service, study).trials}
    ranked = front.get(number, RankedTrial(trial=row, estimate=None))
    return page(
        request,
        "trial.html",
        study=study,
        trial=row,
        estimate=ranked.estimate,
        on_front=number in front,
        figures=_figure_rows(ranked),
        tables=_tables(service, study, row.configuration.plan),
        attempts=[AttemptRow.of(one) for one in service.store.attempts(study, [number])],
        artefacts=[one for one in study_artefacts(service, study) if one.trial == number],
        seeds={"search.seed": spec["search"]["seed"], "data.seed": spec["data"]["seed"]},
        digests={"configuration": row.configuration.digest, "job": record.spec.digest},
        provenance=dict(sorted(record.provenance.items())),
        spec=_job_text(record),
    )


def _job_text(record: StudyRecord) -> str:
    return yaml.safe_dump(json.loads(record.spec_json), sort_keys=False, width=88)


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
        measure=_MEASURES[ErrorMeasure(json.loads(record.spec_json)["profile"]["measure"])],
    )


@router.get("/compare")
def compare(
    request: Request,
    service: ServiceDependency,
    a: Annotated[str, Query(max_length=64)] = "",
    b: Annotated[str, Query(max_length=64)] = "",
) -> HTMLResponse:
    """Two studies side by side."""
    names = [summary.name for summary in service.store.studies()]
    pair = [name for name in (a, b) if name]
    statuses = [study_status(service, name) for name in pair]
    fronts = [_front(service, name) for name in pair]
    records = [service.store.study(name) for name in pair]
    differences = _differences(*records) if len(records) == 2 else []
    return page(
        request,
        "compare.html",
        names=names,
        a=a,
        b=b,
        statuses=statuses,
        fronts=fronts,
        differences=differences,
        shown_value=shown_value,
    )


def _differences(first: StudyRecord, second: StudyRecord) -> list[tuple[str, str, str]]:
    """Where two jobs differ, by dotted key; their names left out."""
    ours, theirs = (dict(_flat(json.loads(one.spec_json))) for one in (first, second))
    keys = [key for key in dict.fromkeys((*ours, *theirs)) if key != "study"]
    return [
        (key, ours.get(key, MISSING), theirs.get(key, MISSING))
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]


def _flat(content: Mapping[str, object], before: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{before}{key}.")
        else:
            found.append((f"{before}{key}", json.dumps(value)))
    return found


@router.get("/submit")
def submit_form(request: Request) -> HTMLResponse:
    """Where a job file is pasted."""
    return page(request, "submit.html", text=_EXAMPLE, mistakes=(), detail="")


@router.post("/submit")
async def submit(request: Request, service: ServiceDependency) -> Response:
    """Checks a job and starts its study; or shows all that is wrong with it."""
    text = (await _form(request)).get("job", "").replace("\r\n", "\n")
    try:
        done = await run_in_threadpool(submit_job, service, text.encode(), "application/yaml")
    except Refused as error:
        mistakes: tuple[Mistake, ...] = error.mistakes
        detail = "" if mistakes else error.detail
    except BitfrontError as error:
        mistakes, detail = (), str(error)
    else:
        return RedirectResponse(f"/studies/{done.study}", HTTPStatus.SEE_OTHER)
    found = page(request, "submit.html", text=text, mistakes=mistakes, detail=detail)
    return _with_status(found, HTTPStatus.UNPROCESSABLE_ENTITY)


@router.post("/studies/{study}/{action}")
async def act(
    request: Request, study: StudyName, action: str, service: ServiceDependency
) -> Response:
    """What a button of a study's page asks for."""
    form = await _form(request)
    if action == "delete":
        await run_in_threadpool(delete_study, service, study)
        return RedirectResponse("/", HTTPStatus.SEE_OTHER)
    if action == "resume":
        number = form.get("trials", "")
        wanted = Resume(trials=int(number)) if number.isdigit() and int(number) else Resume()
        await run_in_threadpool(resume_study, service, study, wanted)
    elif action in set(Asked):
        await run_in_threadpool(ask, service, study, Asked(action))
    else:
        raise Refused(HTTPStatus.NOT_FOUND, f"a study cannot be asked to {action[:20]!r}")
    return RedirectResponse(f"/studies/{study}", HTTPStatus.SEE_OTHER)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form, as browsers send it; each once."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind not in ("application/x-www-form-urlencoded", ""):
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a form is sent urlencoded")
    body = (await request.body()).decode("utf-8", errors="replace")
    try:
        fields = parse_qs(body, keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "the form has too many fields") from error
    return {name: values[0] for name, values in fields.items()}


@router.get("/login")
def login_form(
    request: Request, onward: Annotated[str, Query(alias="next", max_length=500)] = "/"
) -> HTMLResponse:
    """Where the token is shown once."""
    return page(request, "login.html", onward=session.safe_path(onward), is_wrong=False)


@router.post("/login")
async def login(request: Request, service: ServiceDependency) -> Response:
    """Lets a browser in that shows the token."""
    form = await _form(request)
    onward = session.safe_path(form.get("next", "/"))
    if not session.is_token(service.settings, form.get("token", "")):
        found = page(request, "login.html", onward=onward, is_wrong=True)
        return _with_status(found, HTTPStatus.UNAUTHORIZED)
    response = RedirectResponse(onward, HTTPStatus.SEE_OTHER)
    session.let_in(response, service.settings, is_secure=request.url.scheme == "https")
    return response


@router.post("/logout")
def logout() -> Response:
    """Lets a browser forget the token."""
    response = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    session.let_out(response)
    return response

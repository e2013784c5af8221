"""What a person sends: a job, a wish, the token."""

from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from bitfront.errors import BitfrontError
from service.http import session
from service.http.models.studies import Resume
from service.http.pages.rendering import page, with_status
from service.http.parameters import StudyName
from service.http.problems import Mistake, Refused
from service.http.routes.studies import (
    ask,
    delete_study,
    resume_study,
    submit_job,
)
from service.http.service import ServiceDependency
from storage.records import Request as Asked

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

_EXAMPLE: Final = """\
study: first
model: {source: reference}
data: {source: reference}
space: {weight_bits: [2, 3, 4, 8]}
stop: {trials: 40}
"""


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
    return with_status(found, HTTPStatus.UNPROCESSABLE_ENTITY)


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
        return with_status(found, HTTPStatus.UNAUTHORIZED)
    response = RedirectResponse(onward, HTTPStatus.SEE_OTHER)
    session.let_in(response, service.settings, is_secure=request.url.scheme == "https")
    return response


@router.post("/logout")
def logout() -> Response:
    """Lets a browser forget the token."""
    response = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    session.let_out(response)
    return response

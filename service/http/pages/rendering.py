"""Templates as responses, and what they are given."""

import hashlib
import json
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from importlib.resources import files
from typing import Final, cast
from urllib.parse import quote

import yaml
from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from bitfront.objective import BY_NAME
from bitfront.units import duration_text, percent_text, size_text
from service.http.problems import Mistake
from service.http.service import Service
from service.http.sparkline import sparkline
from service.views.describe import recovery_details, recovery_text
from storage.records import StudyRecord

MISSING: Final = "\N{EN DASH}"


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


def with_status(response: HTMLResponse, status: HTTPStatus) -> HTMLResponse:
    """A page with another status than 200."""
    response.status_code = status
    return response


def problem_page(
    request: Request, status: HTTPStatus, detail: str, mistakes: tuple[Mistake, ...] = ()
) -> HTMLResponse:
    """What is wrong with a request, for a person."""
    found = page(request, "problem.html", title=status.phrase, detail=detail, mistakes=mistakes)
    return with_status(found, status)


def job_text(record: StudyRecord) -> str:
    """A study's job as a file."""
    return yaml.safe_dump(json.loads(record.spec_json), sort_keys=False, width=88)

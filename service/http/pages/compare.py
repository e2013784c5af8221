"""Two studies side by side."""

import json
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse

from service.http.pages.choice import shown_value
from service.http.pages.rendering import MISSING, page
from service.http.routes.queries import kept_front
from service.http.routes.studies import (
    study_status,
)
from service.http.service import ServiceDependency
from storage.records import StudyRecord

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


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
    fronts = [kept_front(service, name) for name in pair]
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
    sections = {key.rpartition(".")[0] for key in keys}  # one of the jobs has them as null
    return [
        (key, ours.get(key, MISSING), theirs.get(key, MISSING))
        for key in keys
        if ours.get(key) != theirs.get(key) and key not in sections
    ]


def _flat(content: Mapping[str, object], before: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{before}{key}.")
        else:
            found.append((f"{before}{key}", json.dumps(value)))
    return found

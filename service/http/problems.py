"""What is wrong with a request, as one sentence in `application/problem+json` (RFC 9457)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bitfront.errors import (
    BitfrontError,
    ChangedJob,
    DatabaseError,
    DuplicateStudy,
    FailedDriver,
    LeaseHeld,
    UnknownStudy,
    UnreachableCluster,
    UnusableSpool,
)
from bitfront.job.document import cut, one_line
from bitfront.job.error_messages import sentence
from bitfront.passwords import masked
from service.http.models.studies import Resume

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"

_STATUS: Final[Mapping[type[BitfrontError], HTTPStatus]] = {
    UnknownStudy: HTTPStatus.NOT_FOUND,
    DuplicateStudy: HTTPStatus.CONFLICT,
    LeaseHeld: HTTPStatus.CONFLICT,
    ChangedJob: HTTPStatus.CONFLICT,
    DatabaseError: HTTPStatus.SERVICE_UNAVAILABLE,
    UnusableSpool: HTTPStatus.SERVICE_UNAVAILABLE,
    UnreachableCluster: HTTPStatus.SERVICE_UNAVAILABLE,
    FailedDriver: HTTPStatus.UNPROCESSABLE_ENTITY,
}


class Mistake(BaseModel):
    """One thing that is wrong with a job file; `line` is None where the file has no lines."""

    model_config = ConfigDict(frozen=True)

    line: int | None = Field(None, ge=1)
    message: str


class Problem(BaseModel):
    """Why a request is refused.

    Attributes:
        type: Always `about:blank`: the status says what kind of problem it is.
        title: The status in words.
        status: The status code.
        detail: One sentence for a person.
        mistakes: Everything that is wrong with a job file; empty for any other problem.
    """

    model_config = ConfigDict(frozen=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    mistakes: tuple[Mistake, ...] = ()


class Refused(Exception):
    """A request that is refused with a status and a sentence."""

    def __init__(self, status: HTTPStatus, detail: str, mistakes: Sequence[Mistake] = ()) -> None:
        super().__init__(status, detail, mistakes)  # it crosses processes
        self.status = status
        self.detail = detail
        self.mistakes = tuple(mistakes)


def problem_response(
    status: HTTPStatus,
    detail: str,
    mistakes: Sequence[Mistake] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as a response; passwords in it are masked."""
    problem = Problem(
        title=status.phrase,
        status=status,
        detail=masked(one_line(detail)),
        mistakes=tuple(mistakes),
    )
    content = problem.model_dump_json().encode()
    return Response(content, status, headers, MEDIA_TYPE)


def status_of(error: BitfrontError) -> HTTPStatus:
    """The status that one of our own errors is answered with."""
    found = (status for kind, status in _STATUS.items() if isinstance(error, kind))
    return next(found, HTTPStatus.UNPROCESSABLE_ENTITY)


Page = Callable[[Request, HTTPStatus, str, tuple[Mistake, ...]], Response]


def add_handlers(app: FastAPI, page: Page) -> None:
    """Lets every error of a route be answered with a problem; those of pages with a page."""

    def answer(
        request: Request,
        status: HTTPStatus,
        detail: str,
        mistakes: tuple[Mistake, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        if request.url.path.startswith(("/api/", "/static/")):
            return problem_response(status, detail, mistakes, headers)
        return page(request, status, masked(one_line(detail)), mistakes)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return answer(request, error.status, error.detail, error.mistakes)

    @app.exception_handler(BitfrontError)
    async def own(request: Request, error: BitfrontError) -> Response:
        return answer(request, status_of(error), str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, HTTPStatus.UNPROCESSABLE_ENTITY, _sentence(error))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        sentence = _routing_sentence(request, error)
        return answer(request, HTTPStatus(error.status_code), sentence, headers=error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        logger.error("%s %s", request.method, request.url.path, exc_info=error)
        return answer(
            request,
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "this is a fault of bitfront: its log, where 'bitfront serve' runs, says more",
        )


def _routing_sentence(request: Request, error: HTTPException) -> str:
    path = cut(repr(request.url.path))
    if error.status_code == HTTPStatus.NOT_FOUND:
        return f"there is nothing at {path}: /api/v1/openapi.json lists what there is"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{request.method} is not possible for {path}"
    return str(error.detail)


def _sentence(error: RequestValidationError) -> str:
    """The first mistake of a request, in the words in which one of a job is told."""
    first = error.errors()[0]
    kind, *rest = first["loc"]
    place = tuple(part for part in rest if isinstance(part, str))
    if first["type"] == "json_invalid":
        return f"the body is not valid JSON: {one_line(str(first['ctx']['error']))}"
    if kind == "body" and not place:
        return 'the body is sent as application/json, and is a mapping such as {"trials": 100}'
    if first["type"] == "string_pattern_mismatch" and place == ("artefact",):
        return f"artefact: {cut(repr(first['input']))} is not possible: 'artefacts' lists their ids"
    noun = {"query": "the parameter ", "header": "the header "}.get(str(kind), "")
    # FastAPI's errors are pydantic's.
    return noun + sentence(cast("ErrorDetails", {**first, "loc": place}), Resume)

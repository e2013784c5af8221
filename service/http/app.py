"""The application that `bitfront serve` runs."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from service.http import static_files
from service.http.guard import Guard
from service.http.pages import choice, compare, forms, study
from service.http.pages.rendering import problem_page
from service.http.parameters import refuse_unknown
from service.http.problems import MEDIA_TYPE, Problem, add_handlers
from service.http.routes import artefacts, events, pictures, profile, queries, studies, trials
from service.http.service import make_service
from service.http.settings import Settings
from storage.store import Store

PREFIX: Final = "/api/v1"

_PROBLEMS: Final[Mapping[HTTPStatus, str]] = {
    HTTPStatus.BAD_REQUEST: "The request is none of HTTP's, or its body is no JSON.",
    HTTPStatus.UNAUTHORIZED: "The token is missing or is another one.",
    HTTPStatus.FORBIDDEN: "A page of another site asked for a change.",
    HTTPStatus.NOT_FOUND: "There is no such study, trial or artefact, or nothing fits the limits.",
    HTTPStatus.CONFLICT: "The study is not in a state that allows it.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is of another type.",
    HTTPStatus.MISDIRECTED_REQUEST: "The server does not go by that name.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A parameter or the job is wrong.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The database or the cluster cannot be reached.",
}
_PAGES: Final = (study, choice, compare, forms)
_ROUTERS: Final = (studies, trials, queries, profile, pictures, artefacts, events)


def make_app(settings: Settings, store: Store) -> FastAPI:
    """The application on an open store; who makes it closes the store after it."""
    service = make_service(settings, store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="bitfront",
        summary="Searches of mixed-precision configurations: submit, watch, and take the best.",
        version=version("bitfront"),
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_operation_name,
    )
    app.state.service = service
    add_handlers(app, problem_page)
    for module in _ROUTERS:
        app.include_router(module.router, prefix=PREFIX, dependencies=[Depends(refuse_unknown)])
    app.include_router(static_files.router)
    for page in _PAGES:
        app.include_router(page.router)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]  # FastAPI's own way
    app.add_middleware(Guard, settings=settings)
    return app


def _operation_name(route: APIRoute) -> str:
    return route.name


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description: every refusal of every route is a problem."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        schemas = schema["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schemas["Problem"].pop("$defs")
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        for path in schema["paths"].values():
            for operation in path.values():
                for status, words in _PROBLEMS.items():
                    operation["responses"][str(int(status))] = {
                        "description": words,
                        "content": content,
                    }
                operation["security"] = [{}, {"token": []}]
        app.openapi_schema = schema
    return app.openapi_schema

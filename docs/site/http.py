"""The page of the HTTP interface, from the OpenAPI description that the server itself gives."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from docs.site.markdown import code, table
from service.database_url import file_url
from service.http.app import PREFIX, make_app
from service.http.settings import Settings
from storage.store import open_store

_INTRODUCTION: Final = """\
# The HTTP API

What `bitfront serve` answers below `/api/v1`; a running server describes itself at
`/api/v1/openapi.json`. How it is used, and when a request is refused, is in
[the web page and the HTTP interface](../serve.md#what-programs-ask).
"""


def description() -> Mapping[str, Any]:
    """The OpenAPI description."""
    with TemporaryDirectory() as folder:
        url = file_url(Path(folder, "empty.db"))
        with open_store(url) as store:
            return make_app(Settings(url), store).openapi()


def page() -> str:
    """All requests: parameters, bodies, answers; refusals are the same for all."""
    lines = [_INTRODUCTION]
    for path, methods in description()["paths"].items():
        for method, operation in methods.items():
            lines += _operation(f"{method.upper()} {path.removeprefix(PREFIX)}", operation)
    return "\n".join(lines)


def _operation(title: str, operation: Mapping[str, Any]) -> list[str]:
    lines = [f"## {title}", "", operation.get("description", operation["summary"]), ""]
    parameters = operation.get("parameters", ())
    if parameters:
        rows = [
            (code(own["name"]), own["in"], _kind(own["schema"]), own.get("description", ""))
            for own in parameters
        ]
        lines += table(["parameter", "in", "value", "meaning"], rows)
    if "requestBody" in operation:
        kinds = ", ".join(code(kind) for kind in operation["requestBody"]["content"])
        lines += [f"Body: {kinds}.", ""]
    answers = [
        (status, ", ".join(code(kind) for kind in answer.get("content", ())), answer["description"])
        for status, answer in operation["responses"].items()
        if status < "400"
    ]
    return [*lines, *table(["status", "body", "meaning"], answers)]


def _kind(schema: Mapping[str, Any]) -> str:
    ways = [way for way in schema.get("anyOf", [schema]) if way.get("type") != "null"]
    return " or ".join(
        ", ".join(code(json.dumps(value)) for value in way["enum"])
        if "enum" in way
        else str(way.get("type", "text"))
        for way in ways
    )

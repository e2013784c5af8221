"""The page's own scripts and styles, and Plotly's script from its package."""

import gzip
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.http.pages.rendering import static_version
from service.http.problems import Refused

router = APIRouter(include_in_schema=False)

PLOTLY: Final = "plotly.js"

_TYPES: Final = {
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_FOR_GOOD: Final = "public, max-age=31536000, immutable"


@router.get("/static/{digest}/{name}")
def static(request: Request, digest: str, name: str) -> Response:
    """A static file; under the version of now, it never changes."""
    content = _packed(name) if name in _names() else None
    if content is None:
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such file")
    headers = {
        "cache-control": _FOR_GOOD if digest == static_version() else "no-cache",
        "vary": "accept-encoding",
    }
    media_type = _TYPES[name.rpartition(".")[2]]
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        return Response(content, headers=headers, media_type=media_type)
    return Response(gzip.decompress(content), headers=headers, media_type=media_type)


@cache
def _names() -> frozenset[str]:
    folder = files("service.http").joinpath("static")
    own = {path.name for path in folder.iterdir() if path.name.rpartition(".")[2] in _TYPES}
    return frozenset(own | {PLOTLY})


@cache
def _packed(name: str) -> bytes:
    if name == PLOTLY:
        # Its package would load pandas for its own function that reads this file.
        place = files("plotly.package_data").joinpath("plotly.min.js")
    else:
        place = files("service.http").joinpath("static", name)
    return gzip.compress(place.read_bytes(), 6, mtime=0)

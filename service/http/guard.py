"""What every request passes first: who may ask, from where, and how much it may send."""

import hmac
from collections.abc import Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import problem_response
from service.http.settings import BODY_NBYTES, Settings

COOKIE: Final = "bitfront_session"

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN_PATHS: Final = ("/login", "/static/")
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """The outermost part of the application.

    It refuses a request that addresses the server by a name that is not its own (a page of another
    site that had its name point here), one that changes something and was sent by a page of
    another origin, one without the token, and one with too large a body. Each response gets the
    headers that keep a browser from loading or framing anything else.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_dressed)
            return
        body = await _read_body(receive)
        if body is None:
            response = problem_response(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is larger than {BODY_NBYTES:,} bytes: this is not a job file",
                headers={"connection": "close"},
            )
            await response(scope, receive, send_dressed)
            return
        await self._app(scope, _replay(body, receive), send_dressed)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_own(host):
            return problem_response(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this server is not called {host[:60]!r}: start it with --host-name to give it "
                "that name",
            )
        if scope["method"] not in _READS and not _is_same_origin(headers):
            return problem_response(
                HTTPStatus.FORBIDDEN, "a page of another site may not change anything here"
            )
        if int_or_none(headers.get("content-length", "0")) is None:
            return problem_response(
                HTTPStatus.BAD_REQUEST, "the header content-length is not a number"
            )
        return self._unknown_caller(scope, headers)

    def _is_own(self, host: str) -> bool:
        known = self._settings.hosts
        return known is None or _without_port(host) in known

    def _unknown_caller(self, scope: Scope, headers: Headers) -> Response | None:
        path = str(scope["path"])
        if self._settings.token is None or path.startswith(_OPEN_PATHS):
            return None
        if self._is_known(headers):
            return None
        if path.startswith("/api/") or scope["method"] not in _READS:
            return problem_response(
                HTTPStatus.UNAUTHORIZED,
                "this is not the server's token, which is what BITFRONT_TOKEN held when it started"
                if "authorization" in headers
                else "this server asks for its token: send it as 'Authorization: Bearer TOKEN'",
                headers={"www-authenticate": 'Bearer realm="bitfront"'},
            )
        return RedirectResponse(f"/login?next={quote(path)}", HTTPStatus.SEE_OTHER)

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return same(shown.strip(), self._settings.token)
        return same(_cookie(headers), self._settings.session)


def same(shown: str, wanted: str | None) -> bool:
    """Whether two texts are the same, in a time that does not tell where they differ."""
    return wanted is not None and hmac.compare_digest(shown.encode(), wanted.encode())


def int_or_none(text: str) -> int | None:
    """The whole number, not below zero, that a text is."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _cookie(headers: Headers) -> str:
    try:
        jar = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return jar[COOKIE].value if COOKIE in jar else ""


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def _is_same_origin(headers: Headers) -> bool:
    """Whether a request was sent by one of our own pages, or by no page."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:  # such as of an address in brackets that is none
        return False


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None as soon as it is too large."""
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(parts)
        parts += message.get("body", b"")
        if len(parts) > BODY_NBYTES:
            return None
        if not message.get("more_body", False):
            return bytes(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    is_told = False

    async def replay() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay

"""How a browser that has shown the token is known again."""

from typing import Final

from starlette.responses import Response

from service.http.guard import COOKIE, same
from service.http.settings import Settings

_LASTS_S: Final = 7 * 24 * 3600


def is_token(settings: Settings, shown: str) -> bool:
    """Whether the token was shown; anything is where none is asked for."""
    return settings.token is None or same(shown, settings.token)


def let_in(response: Response, settings: Settings, *, is_secure: bool) -> None:
    """Gives the browser what stands for the token; no script reads it, no other site sends it."""
    if settings.session is not None:
        response.set_cookie(
            COOKIE,
            settings.session,
            max_age=_LASTS_S,
            httponly=True,
            samesite="strict",
            secure=is_secure,
        )


def let_out(response: Response) -> None:
    """Takes that back from the browser."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


def safe_path(text: str) -> str:
    """A path of this server that a form names; the list of studies where it is anything else."""
    is_own = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    return text if is_own else "/"

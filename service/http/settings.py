"""What `bitfront serve` is set to: database, token, names of this host, cluster."""

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from bitfront.errors import SpecError
from service.study.background import TOKEN_VARIABLE

BODY_NBYTES: Final = 2**20
"""The largest body of a request."""
SHORTEST_TOKEN: Final = 16

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")
_EVERYWHERE: Final = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server is set to.

    Attributes:
        url: The database.
        token: What every request has to show; None asks for nothing.
        hosts: The names, in lower case, by which a request may address the server; None takes any.
        address: The cluster that studies are submitted to; None is this machine.
    """

    url: str
    token: str | None = None
    hosts: frozenset[str] | None = frozenset(_LOOPBACK)
    address: str | None = None

    @property
    def session(self) -> str | None:
        """What a browser that has shown the token keeps in its place; None without a token."""
        if self.token is None:
            return None
        return hmac.new(self.token.encode(), b"bitfront session", hashlib.sha256).hexdigest()


def checked_settings(
    url: str,
    host: str,
    *,
    token: str | None = None,
    names: tuple[str, ...] = (),
    address: str | None = None,
) -> Settings:
    """The settings of a server that listens on `host`.

    Args:
        url: The database.
        host: Where it listens.
        token: What every request has to show.
        names: Further names by which browsers reach it, such as behind a reverse proxy.
        address: The cluster that studies are submitted to.

    Raises:
        SpecError: The host is not this machine's own and there is no token, or the token is short,
            or a name is none.
    """
    if not token and not is_loopback(host):
        raise SpecError(
            f"--host {host} can be reached from other machines, and without a token whoever "
            f"reaches it may start and delete studies: set {TOKEN_VARIABLE}, such as to the output "
            "of 'openssl rand -hex 32'"
        )
    if token and (len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable())):
        raise SpecError(
            f"{TOKEN_VARIABLE} must have {SHORTEST_TOKEN} characters or more, all of ASCII and "
            "without spaces at its ends: take the output of 'openssl rand -hex 32'"
        )
    for name in names:
        if not _HOST_NAME.fullmatch(name):
            raise SpecError(f"--host-name {name!r}: write a name such as bitfront.example.org")
    known = {*_LOOPBACK, _bracketed(host).lower(), *(name.lower() for name in names)}
    # Whoever listens everywhere does not know its own names, and has a token.
    hosts = None if host in _EVERYWHERE and not names else frozenset(known)
    return Settings(url, token or None, hosts, address)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

"""What a deployment sets: the database and the workers, by option or by environment."""

import math
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click
from platformdirs import user_state_path

from bitfront.errors import SpecError

Command = TypeVar("Command", bound=Callable[..., object])


VARIABLE: Final = "BITFRONT_DB"
PATIENCE_VARIABLE: Final = "BITFRONT_DB_PATIENCE_S"

_FILE: Final = "sqlite:///"
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+]+:", re.IGNORECASE)


def default_database() -> str:
    """The URL of the SQLite file in the person's state folder."""
    return file_url(user_state_path("bitfront") / "bitfront.db")


def file_url(path: Path) -> str:
    """The URL of an SQLite file."""
    return f"{_FILE}{path.absolute()}"


def file_folder(url: str) -> Path | None:
    """The folder of a database that is an SQLite file; None for one on a server."""
    return Path(url.removeprefix(_FILE)).parent if url.startswith(_FILE) else None


def as_url(text: str) -> str:
    """The URL that a person means; a bare path is an SQLite file."""
    if _SCHEME.match(text):
        return text
    if "?" in text:
        raise SpecError(
            f"--db {text}: a ? begins the options of a database URL: name the file without it"
        )
    return file_url(Path(os.path.expandvars(text)).expanduser())


def patience_s() -> float:
    """How long a driver waits for a database that is away: BITFRONT_DB_PATIENCE_S, or 600 s.

    Raises:
        SpecError: The variable holds no number of seconds.
    """
    text = os.environ.get(PATIENCE_VARIABLE, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise SpecError(f"{PATIENCE_VARIABLE} must be a number of seconds, not {text!r}")
    return seconds


def command_line(command: str, url: str) -> str:
    """A command to type for a database: names it unless it is the one taken anyway."""
    usual = os.environ.get(VARIABLE)
    if url == (as_url(usual) if usual else default_database()):
        return f"bitfront {command}"
    if not url.startswith(_FILE):
        return f"bitfront {command} --db URL"  # a URL may hold a password
    path = Path(url.removeprefix(_FILE))
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"bitfront {command} --db {shlex.quote(str(path))}"


class DatabaseUrl(click.ParamType[str]):
    """A database URL; a bare path means an SQLite file."""

    name = "url"

    def convert(
        self,
        value: str,
        param: click.Parameter | None,  # noqa: ARG002  # click's signature
        ctx: click.Context | None,  # noqa: ARG002
    ) -> str:
        """The URL."""
        return as_url(value)


def database_option(command: Command) -> Command:
    """Adds `--db`."""
    option = click.option(
        "--db",
        "url",
        envvar=VARIABLE,
        show_envvar=True,
        type=DatabaseUrl(),
        default=default_database,
        show_default=default_database(),
        help="Database: a file, sqlite:///PATH or postgresql://USER@HOST/NAME.",
    )
    return option(command)


def workers_option(command: Command) -> Command:
    """Adds `--workers`."""
    option = click.option(
        "--workers",
        envvar="BITFRONT_WORKERS",
        show_envvar=True,
        type=click.IntRange(1, 4096),
        help="Trials that run side by side.  [default: what the job says]",
    )
    return option(command)


def address_option(command: Command) -> Command:
    """Adds `--address`."""
    option = click.option(
        "--address",
        envvar="BITFRONT_ADDRESS",
        show_envvar=True,
        metavar="ADDRESS",
        help="Ray cluster to run on: http://HEAD:8265 submits a job to it, HOST:PORT or auto "
        "connects from one of its machines.  [default: this machine]",
    )
    return option(command)

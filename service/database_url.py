"""Where the database is that a person means, and how to name it to them."""

import math
import os
import re
import shlex
from pathlib import Path
from typing import Final

from platformdirs import user_state_path

from bitfront.errors import SpecError

VARIABLE: Final = "BITFRONT_DB"
PATIENCE_VARIABLE: Final = "BITFRONT_DB_PATIENCE_S"

_FILE: Final = "sqlite:///"
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+]+:", re.IGNORECASE)


def default_database() -> str:
    """The URL of the SQLite file in the person's state folder."""
    return file_url(user_state_path("bitfront") / "bitfront.db")


def usual_database() -> str:
    """The URL of the database that is meant where none is named: BITFRONT_DB, or the default."""
    named = os.environ.get(VARIABLE)
    return as_url(named) if named else default_database()


def file_url(path: Path) -> str:
    """The URL of an SQLite file."""
    return f"{_FILE}{path.absolute()}"


def file_folder(url: str) -> Path | None:
    """The folder of a database that is an SQLite file; None for one on a server."""
    return Path(url.removeprefix(_FILE)).parent if url.startswith(_FILE) else None


def as_url(text: str) -> str:
    """The URL that a person means; a bare path is an SQLite file.

    Raises:
        SpecError: It is a path with options of a URL.
    """
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
    if url == usual_database():
        return f"bitfront {command}"
    if not url.startswith(_FILE):
        return f"bitfront {command} --db URL"  # a URL may hold a password
    path = Path(url.removeprefix(_FILE))
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"bitfront {command} --db {shlex.quote(str(path))}"

"""What a deployment sets: the database and the workers, by option or by environment."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
from platformdirs import user_state_path

Command = TypeVar("Command", bound=Callable[..., object])


def default_database() -> str:
    """The URL of the SQLite file in the person's state folder."""
    return file_url(user_state_path("bitfront") / "bitfront.db")


def file_url(path: Path) -> str:
    """The URL of an SQLite file."""
    return f"sqlite:///{path.absolute()}"


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
        return value if ":" in value else file_url(Path(value).expanduser())


def database_option(command: Command) -> Command:
    """Adds `--db`."""
    option = click.option(
        "--db",
        "url",
        envvar="BITFRONT_DB",
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
        metavar="HOST:PORT",
        help="Ray cluster to run on.  [default: this machine]",
    )
    return option(command)

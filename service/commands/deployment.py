"""Options that a deployment sets: the database, the workers and the cluster."""

from collections.abc import Callable
from typing import TypeVar

import click
from click.shell_completion import CompletionItem

from service.database_url import VARIABLE, as_url, default_database

Command = TypeVar("Command", bound=Callable[..., object])


class StudyName(click.ParamType[str]):
    """The name of a study, which a shell can complete."""

    name = "study"

    def convert(
        self,
        value: str,
        param: click.Parameter | None,  # noqa: ARG002  # click's signature
        ctx: click.Context | None,  # noqa: ARG002
    ) -> str:
        """The name as it is: whether there is such a study is for the database to say."""
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The studies that begin so, in the database that is meant; none where it cannot tell."""
        from bitfront.errors import BitfrontError
        from service.api.database import open_database

        del param
        try:
            with open_database(ctx.params.get("url")) as database:
                names = [study.name for study in database.studies]
        except BitfrontError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


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

"""The command that answers over HTTP: serve."""

import os
from typing import Final

import click

from service.commands.deployment import address_option, database_option
from service.database_url import file_folder

# Everything that takes long to import is imported by the command that needs it.


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option("--port", type=click.IntRange(0, 65535), default=8480, show_default=True)
@click.option(
    "--host-name",
    "names",
    multiple=True,
    metavar="NAME",
    help="A name by which browsers reach it, such as behind a reverse proxy; may be repeated.",
)
@address_option
@database_option
def serve(host: str, port: int, names: tuple[str, ...], address: str | None, url: str) -> None:
    """Answer over HTTP: a web page, and what programs ask.

    Studies that are submitted run in processes of their own: they go on when this one ends. Where
    other machines reach it, whoever asks must know the token in BITFRONT_TOKEN.
    """
    from service.api.database import open_database
    from service.http.server import run_server
    from service.http.settings import checked_settings
    from service.study.background import TOKEN_VARIABLE

    token = os.environ.get(TOKEN_VARIABLE)
    settings = checked_settings(url, host, token=token, names=names, address=address)
    folder = file_folder(url)
    with open_database(url) as database:
        if folder is not None and not _is_there(url):
            database.create()
        run_server(settings, database.connection.store(), host, port)


def _is_there(url: str) -> bool:
    from pathlib import Path

    return Path(url.removeprefix("sqlite:///")).exists()


COMMANDS: Final = (serve,)

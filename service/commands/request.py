"""Commands that end something: pause, stop and cancel what runs, delete what does not."""

from typing import TYPE_CHECKING, Final

import click

from bitfront.errors import UnusableSpool
from service.commands.deployment import command_line, database_option

if TYPE_CHECKING:
    from storage.records import Request

# Everything that takes long to import is imported by the command that needs it.


@click.command()
@click.argument("study")
@database_option
def pause(study: str, url: str) -> None:
    """Let STUDY finish the trials that run, and wait.

    Its driver keeps its place; 'bitfront resume STUDY' continues it.
    """
    from storage.records import Request

    _request(study, url, Request.PAUSE, "finishes what runs and waits; '{}' continues it")


@click.command()
@click.argument("study")
@database_option
def stop(study: str, url: str) -> None:
    """Let STUDY finish the trials that run and start no more."""
    from storage.records import Request

    _request(study, url, Request.STOP, "finishes what runs, then stops; '{}' continues it later")


@click.command()
@click.argument("study")
@database_option
def cancel(study: str, url: str) -> None:
    """End STUDY now; complete trials are kept."""
    from storage.records import Request

    _request(study, url, Request.CANCEL, "ends now; '{}' continues it later")


def _request(study: str, url: str, asked: "Request", consequence: str) -> None:
    from service.views.status import is_driven
    from storage.store import open_store

    with open_store(url, create=False) as store:
        record = store.study(study)
        if not is_driven(record):
            click.echo(f"study {study} is {record.state}, and nobody runs it", err=True)
            return
        store.request(study, asked)
    command = command_line(f"resume {study}", url)
    click.echo(f"study {study} {consequence.format(command)}", err=True)


@click.command()
@click.argument("study")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@database_option
def delete(study: str, yes: bool, url: str) -> None:
    """Delete STUDY with its trials and its front.

    What it measured stays for other studies: cells, evaluations and the cached features.
    """
    from service.study.spools import study_spool
    from storage.store import open_store

    with open_store(url, create=False) as store:
        status = store.status(study)
        spool = study_spool(url, status.study)
        if not yes:
            what = f"study {study} with {sum(status.counts.values())} trials"
            click.confirm(f"delete {what} from {store}?", abort=True, err=True)
        store.delete_study(study)
    try:
        spool.remove()
    except UnusableSpool as error:
        click.echo(f"its files stay, delete them by hand: {error}", err=True)
    click.echo(f"study {study} is deleted", err=True)


COMMANDS: Final = (pause, stop, cancel, delete)

"""Commands that end something: pause, stop and cancel what runs, delete what does not."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from bitfront.errors import UnusableSpool
from service.commands.deployment import StudyName, database_option
from service.commands.messages import tell
from service.database_url import command_line

if TYPE_CHECKING:
    from service.api.study import Study

# Everything that takes long to import is imported by the command that needs it.


@click.command()
@click.argument("study", type=StudyName())
@database_option
def pause(study: str, url: str) -> None:
    """Let STUDY finish the trials that run, and wait.

    Its driver keeps its place; 'bitfront resume STUDY' continues it.
    """
    _ask(study, url, lambda it: it.pause(), "finishes what runs and waits; '{}' continues it")


@click.command()
@click.argument("study", type=StudyName())
@database_option
def stop(study: str, url: str) -> None:
    """Let STUDY finish the trials that run and start no more."""
    _ask(
        study, url, lambda it: it.stop(), "finishes what runs, then stops; '{}' continues it later"
    )


@click.command()
@click.argument("study", type=StudyName())
@database_option
def cancel(study: str, url: str) -> None:
    """End STUDY now; complete trials are kept."""
    _ask(study, url, lambda it: it.cancel(), "ends now; '{}' continues it later")


def _ask(study: str, url: str, ask: Callable[["Study"], bool], consequence: str) -> None:
    from service.api.database import open_database

    with open_database(url) as database:
        found = database.study(study)
        if not ask(found):
            tell(f"study {study} is {found.state}, and nobody runs it")
            return
    command = command_line(f"resume {study}", url)
    tell(f"study {study} {consequence.format(command)}")


@click.command()
@click.argument("study", type=StudyName())
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@database_option
def delete(study: str, yes: bool, url: str) -> None:
    """Delete STUDY with its trials and its front.

    What it measured stays for other studies: cells, evaluations and the cached features.
    """
    from service.api.database import open_database

    with open_database(url) as database:
        found = database.study(study)
        if not yes:
            count = sum(found.status.status.counts.values())
            what = f"study {study} with {count} trials"
            click.confirm(f"delete {what} from {database}?", abort=True, err=True)
        try:
            found.delete()
        except UnusableSpool as error:
            tell(f"its files stay, delete them by hand: {error}")
    tell(f"study {study} is deleted")


COMMANDS: Final = (pause, stop, cancel, delete)

"""What a person is told beside the data, on stderr; not with `--quiet`."""

from typing import Final

import click

from workers.observability.logs import messages

QUIET: Final = "bitfront.quiet"
"""Where a command's context says that only data and errors are wanted."""


def tell(text: object) -> None:
    """Tells the person something apart from the data that a command prints."""
    context = click.get_current_context(silent=True)
    if context is None or not context.meta.get(QUIET, False):
        click.echo(text, file=messages())

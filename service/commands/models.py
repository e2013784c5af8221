"""The command that lists the families of models."""

import json
from dataclasses import asdict
from typing import Final

import click

from service.commands.formats import TEXT_OR_JSON
from service.views.tables import table

_HEADER: Final = ("family", "source", "standing", "what to know")


@click.command()
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
def models(form: str) -> None:
    """List the families of models: which are known, generic or refused, and why.

    The layers of a generic one are found by running it; 'bitfront validate' says what is left.
    """
    from bitfront.families import FAMILIES  # takes a while to import

    if form == "json":
        for family in FAMILIES:
            click.echo(json.dumps(asdict(family)))
        return
    rows = [(f.name, f.source or "any", f.standing, f.tells) for f in FAMILIES]
    click.echo(table(_HEADER, rows, left=range(len(_HEADER))))


COMMANDS: Final = (models,)

"""The command that lists the methods a job can ask for."""

import json
from dataclasses import asdict
from typing import Final

import click

from bitfront.methods import METHODS
from service.commands.formats import TEXT_OR_JSON
from service.views.tables import table

_HEADER: Final = ("setting", "value", "source", "what it brought")


@click.command()
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
def methods(form: str) -> None:
    """List the methods that a job can ask for: the source of each, and what it brought.

    Percentages are accuracies on the bundled models; docs/results.md has the whole tables.
    """
    if form == "json":
        for method in METHODS:
            click.echo(json.dumps(asdict(method)))
        return
    rows = [(m.setting, m.value, m.source, m.brought or "not measured") for m in METHODS]
    click.echo(table(_HEADER, rows, left=range(len(_HEADER))))


COMMANDS: Final = (methods,)

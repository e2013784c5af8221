"""The forms that a command prints its data in."""

from typing import Final

import click

TEXT_OR_JSON: Final = click.Choice(["table", "json"])
"""For a person, or one object a line for programs."""

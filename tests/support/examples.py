"""Examples of the command line, as documents and every `--help` have them."""

import re
import shlex
from pathlib import Path

import click

from service.cli import main

_END = re.compile(r"\s(?:>|\||&|#)(?:\s|$)|\s#")
_FILE = re.compile(r"[\w/-]+\.(?:yaml|jpg|png)")


def parse(example: str) -> click.Context:
    """What the real parser makes of an example, without the word `bitfront` in front.

    Files that it names are made, for some have to be there: call it in a folder of its own.

    Raises:
        click.ClickException: The example cannot be typed.
    """
    command, *words = shlex.split(_END.split(example)[0])
    if command == "init":
        return main.commands[command].make_context(command, words)
    for word in words:
        if _FILE.fullmatch(word):
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            Path(word).touch()
        elif word == "tuned":
            Path(word).mkdir(exist_ok=True)
    return main.commands[command].make_context(command, words)

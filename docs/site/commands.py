"""The page of the command line, from the commands themselves."""

import inspect
from typing import Final

import click

from docs.site.markdown import code, table
from service.cli import main
from service.commands.examples import EXAMPLES

_INTRODUCTION: Final = """\
# The command line

Data goes to stdout, messages go to stderr. The exit code is 0; 1 where nothing fits or a study did
not end well; 2 for a mistake, with a sentence that says what to do. Every command takes
`--verbose`, which shows where an error was raised, and `--quiet`, which leaves data and errors.
"""
_EVERYWHERE: Final = {"verbose", "quiet", "help"}


def page() -> str:
    """All commands in the order of use: usage, meaning, options, examples."""
    lines = [_INTRODUCTION]
    for name, command in main.commands.items():
        context = click.Context(command, info_name=f"bitfront {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        help_text = inspect.cleandoc(command.help or "").replace("\b\n", "")
        lines += [f"## {name}", "", f"```\n{usage}\n```", "", help_text, ""]
        rows = [
            _option(option, context)
            for option in command.params
            if isinstance(option, click.Option) and option.name not in _EVERYWHERE
        ]
        lines += table(["option", "meaning", "environment", "default"], rows) if rows else []
        examples = "\n".join(f"bitfront {example}" for example in EXAMPLES[name])
        lines += [f"```\n{examples}\n```", ""]
    return "\n".join(lines)


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str, str]:
    names, meaning = option.get_help_record(context) or ("", "")
    extra = option.get_help_extra(context)
    return (
        code(names),
        (option.help or meaning).partition("  [")[0],
        ", ".join(code(name) for name in extra.get("envvars", ())),
        code(extra.get("default", "")),
    )

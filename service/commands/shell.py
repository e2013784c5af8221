"""Commands for a person's shell and editor: completion, schema."""

import json
from typing import Final

import click

_VARIABLE: Final = "_BITFRONT_COMPLETE"
_SHELLS: Final = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options and names of studies.

    Put it where the shell looks for completions, as below, and open a new shell. For zsh that
    folder has to be in fpath: 'fpath+=~/.zfunc; autoload -U compinit; compinit' in ~/.zshrc.
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, "bitfront", _VARIABLE).source())


@click.command()
@click.option("--path", is_flag=True, help="Print where the file is that bitfront brings along.")
def schema(path: bool) -> None:
    """Print the JSON schema of a job file, for editors and other programs.

    An editor with a YAML language server checks and completes a job whose first line is
    '# yaml-language-server: $schema=FILE'. 'bitfront validate' knows more than any schema.
    """
    from bitfront.job.json_schema import SCHEMA_FILE, job_schema

    click.echo(SCHEMA_FILE if path else json.dumps(job_schema(), indent=2))


COMMANDS: Final = (schema, completion)

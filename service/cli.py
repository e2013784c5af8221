"""The command line: `bitfront demo | submit | list | status | logs | front | best | ...`.

What a person types, and what they see::

    $ bitfront submit job.yaml
    single-layer cells ━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 150/150
    joint cells        ━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 410/410
    trials             ━━━━━━━━━━━━━━━━━━╸━━━━━━━━━ 38/60  error 7.9 %  hypervolume 0.7312  front 11

    $ bitfront front first
    trial   error  test error    size  bits/weight  recovery             origin
       38   7.9 %       8.2 %  212 kB         3.12  prompt 4, adapter /4  sampler
        9  12.1 %      12.6 %  187 kB         2.74  -                    program

    $ bitfront best first --max-nbytes 100kB
    Error: study 'first' has no trial with size at most 100 kB: the nearest is trial 9 ...

Data goes to stdout, messages to stderr. The exit code is 0, 1 where nothing fits or a study did
not end well, and 2 for a mistake, with a sentence that says what to do.
"""

from difflib import get_close_matches
from typing import Final, cast

import click

from bitfront.errors import BitfrontError, NothingFits, traceback_text
from bitfront.passwords import masked
from service.commands import (
    build,
    doctor,
    init,
    methods,
    model,
    models,
    query,
    request,
    run,
    serve,
    share,
    shell,
    tune,
)
from service.commands.examples import epilog
from service.commands.messages import QUIET
from workers.observability.logs import set_up, silence_messages

_VERBOSE: Final = "bitfront.verbose"


class Refusal(click.ClickException):
    """One of our own errors, on its way to stderr."""

    exit_code = 2


class Group(click.Group):
    """The commands; each of our errors ends one with its sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command."""
        try:
            return cast("object", super().invoke(ctx))
        except NothingFits as error:
            raise click.ClickException(_plain(masked(str(error)))) from error
        except BitfrontError as error:
            if ctx.meta.get(_VERBOSE):
                click.echo(masked(traceback_text(error)), err=True)
            raise Refusal(_plain(masked(str(error)))) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant; a mistyped one is refused with the nearest that there is."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], list(self.commands), n=1)
            if not near:
                raise
            raise click.UsageError(
                f"there is no command '{args[0]}': did you mean '{near[0]}'?", ctx
            ) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which they are met, not by the alphabet."""
        return [name for name in self.commands if self.get_command(ctx, name) is not None]


def _plain(text: str) -> str:
    """The text without what a terminal would obey, such as an escape code in a file's name."""
    from bitfront.job.document import one_line  # not needed where nothing goes wrong

    return "\n".join(map(one_line, text.splitlines()))


def _remember(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    ctx.meta[_VERBOSE] = value or ctx.meta.get(_VERBOSE, False)


def _verbose() -> click.Option:
    return click.Option(
        ["--verbose"],
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="Show where an error was raised, on whichever machine.",
    )


def _silence(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    ctx.meta[QUIET] = value or ctx.meta.get(QUIET, False)
    if value:
        silence_messages()


def _quiet() -> click.Option:
    return click.Option(
        ["--quiet", "-q"],
        is_flag=True,
        expose_value=False,
        callback=_silence,
        help="Print data and errors only: no progress, no notes.",
    )


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bitfront")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find the trade-off between quality, memory and speed of a quantized model.

    Start with 'bitfront demo'; 'bitfront init' writes a job for a model of your own.
    """
    set_up()
    if ctx.meta.get(QUIET):
        silence_messages()


for command in (
    *init.COMMANDS,
    *run.COMMANDS,
    *request.COMMANDS,
    *query.COMMANDS,
    *share.COMMANDS,
    *tune.COMMANDS,
    *model.COMMANDS,
    *build.COMMANDS,
    *methods.COMMANDS,
    *models.COMMANDS,
    *doctor.COMMANDS,
    *shell.COMMANDS,
    *serve.COMMANDS,
):
    command.params += [_verbose(), _quiet()]
    command.epilog = epilog(str(command.name))
    main.add_command(command)
main.params += [_verbose(), _quiet()]

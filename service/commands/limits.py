"""Upper limits as options of the command line."""

from collections.abc import Callable
from typing import Final, TypeVar

import click

from bitfront.objective import FIGURES, Quantity
from bitfront.units import parse_nbytes, parse_share

Command = TypeVar("Command", bound=Callable[..., object])


class Size(click.ParamType[int]):
    """A number of bytes, such as 4096, 40kB or 1.5GiB."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The bytes."""
        try:
            nbytes = parse_nbytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not isinstance(nbytes, int) or nbytes < 1:
            self.fail(f"{value!r} is not a valid size: it must be at least one byte", param, ctx)
        return nbytes


class Share(click.FloatRange):
    """A share of at most 1, such as 0.15 or 15%."""

    name = "share"

    def __init__(self) -> None:
        super().__init__(0, 1, min_open=True)

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The share."""
        return super().convert(parse_share(value), param, ctx)


_TYPES: Final[dict[Quantity, click.ParamType[int] | click.ParamType[float]]] = {
    Quantity.SHARE: Share(),
    Quantity.NBYTES: Size(),
    Quantity.NUMBER: click.FloatRange(min=0, min_open=True),
}


def limit_options(command: Command) -> Command:
    """Adds an option for the limit of each figure; they arrive as `max_nbytes` and its like."""
    for figure in reversed(FIGURES):
        kind, shown = _TYPES[figure.quantity], figure.metavar
        option = click.option(figure.option, type=kind, metavar=shown, help=figure.limit_help)
        command = option(command)
    return command


def ranking_option(command: Command) -> Command:
    """Adds `--by`: what stands for the error of a trial."""
    option = click.option(
        "--by",
        type=click.Choice(["estimate", "error"]),
        default="estimate",
        show_default=True,
        help="What stands for the error: an estimate from all trials, or what was measured.",
    )
    return option(command)

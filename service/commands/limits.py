"""Upper limits as a person writes them, and how far a trial is from holding them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import click

from bitfront.objective import BY_NAME, FIGURES, Quantity
from bitfront.units import parse_nbytes, parse_share, percent_text

if TYPE_CHECKING:
    from bitfront.trial import Trial
    from storage.records import Limits

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


def refusal(
    scope: str,
    limits: "Limits",
    nearest: "Trial | None",
    *,
    way_out: str,
    across: bool = False,
) -> str:
    """Says that no trial holds the limits, and what comes nearest.

    Args:
        scope: What was asked, such as `study 'pets'`.
        limits: The limits.
        nearest: The trial that comes nearest, if any has the limited values.
        way_out: The command that says more where there is no trial at all.
        across: Whether several studies were asked, so that the trial's own is worth naming.
    """
    asked = " and ".join(
        f"{BY_NAME[name].option} {BY_NAME[name].text(limit)}"
        for name, limit in limits.given.items()
    )
    if nearest is None:
        if not asked:
            return f"{scope} has no complete trial yet: see 'bitfront {way_out}'"
        return f"no trial of {scope} has a measured value for {asked}"
    misses = [
        f"{BY_NAME[name].text(nearest.values[name])} ({_over(nearest.values[name], limit)} over)"
        for name, limit in limits.given.items()
        if nearest.values[name] > limit
    ]
    found = f" of study {nearest.study!r}" if across else ""
    return (
        f"no trial of {scope} holds {asked}: the nearest is trial {nearest.number}{found} "
        f"with {' and '.join(misses)}, error {percent_text(nearest.values['error'])}"
    )


def nearest_of(trials: "Sequence[Trial]", limits: "Limits") -> "Trial | None":
    """The first of the trials that exceed the limits the least; None if none has their values."""
    excesses = [(limits.excess(trial.values), trial) for trial in trials]
    known = [(excess, trial) for excess, trial in excesses if excess is not None]
    return min(known, key=lambda pair: pair[0])[1] if known else None


def _over(value: float, limit: float) -> str:
    share = 100 * (value / limit - 1)
    return f"{share:.0f} %" if share >= 1 else "less than 1 %"

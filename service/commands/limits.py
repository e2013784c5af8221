"""Upper limits as a person writes them, and how far a trial is from holding them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import click

from bitfront.sizes import parse_nbytes
from service.views.units import percent_text, size_text

if TYPE_CHECKING:
    from storage.records import Limits, Result

Command = TypeVar("Command", bound=Callable[..., object])

# Field of Limits and of Result, and how a value of it is written.
_FIELDS: Final[dict[str, tuple[str, Callable[[float], str]]]] = {
    "max_nbytes": ("nbytes", size_text),
    "max_latency_s": ("latency_s", lambda seconds: f"{seconds:g} s"),
    "max_error": ("error", percent_text),
    "max_bits": ("bits_per_weight", lambda bits: f"{bits:.2f} bits a weight"),
}


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
            self.fail(f"{value!r} is no size: it must be at least one byte", param, ctx)
        return nbytes


def limit_options(command: Command) -> Command:
    """Adds an option for each limit."""
    positive = click.FloatRange(min=0, min_open=True)
    options = [
        click.option("--max-nbytes", type=Size(), help="Largest checkpoint, such as 40kB or 8GB."),
        click.option(
            "--max-latency-s", type=positive, metavar="SECONDS", help="Time for a sample."
        ),
        click.option(
            "--max-error",
            type=click.FloatRange(0, 1, min_open=True),
            metavar="SHARE",
            help="Highest error on the selection split, such as 0.1.",
        ),
        click.option("--max-bits", type=positive, metavar="BITS", help="Mean bits of a weight."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def option_name(field: str) -> str:
    """The option that sets a limit, such as `--max-nbytes`."""
    return f"--{field.replace('_', '-')}"


def given(limits: "Limits") -> dict[str, float]:
    """The limits that were set."""
    pairs = {field: getattr(limits, field) for field in _FIELDS}
    return {field: limit for field, limit in pairs.items() if limit is not None}


def refusal(
    study: str, limits: "Limits", nearest: "Result | None", *, model: str | None = None
) -> str:
    """Says that no trial holds the limits, and what comes nearest.

    Args:
        study: The study that was asked; of no interest where a model was.
        limits: The limits.
        nearest: The trial that comes nearest, if any has the limited values.
        model: The model whose studies were asked, in place of one study.
    """
    scope = f"study {study!r}" if model is None else f"model {model!r}"
    asked = " and ".join(
        f"{option_name(field)} {_FIELDS[field][1](limit)}" for field, limit in given(limits).items()
    )
    if nearest is None:
        if not asked:
            way_out = "list" if model is not None else f"status {study}"
            return f"{scope} has no complete trial yet: see 'bitfront {way_out}'"
        return f"no trial of {scope} has a measured value for {asked}"
    misses = []
    for field, limit in given(limits).items():
        name, text = _FIELDS[field]
        value = getattr(nearest, name)
        if value > limit:
            misses.append(f"{text(value)} ({_over(value, limit)} over)")
    found = "" if model is None else f" of study {nearest.study!r}"
    return (
        f"no trial of {scope} holds {asked}: the nearest is trial {nearest.number}{found} "
        f"with {' and '.join(misses)}, error {percent_text(nearest.error)}"
    )


def _over(value: float, limit: float) -> str:
    share = 100 * (value / limit - 1)
    return f"{share:.0f} %" if share >= 1 else "less than 1 %"

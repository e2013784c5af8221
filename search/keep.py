"""`space.keep`: the layers whose width a person fixed, and what makes such a wish meaningless."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

from bitfront.choices import kept_width, matches_pattern, short_name
from bitfront.errors import SpecError
from bitfront.layers import Layer
from bitfront.plan import Plan
from bitfront.spec import SpaceSpec
from search.ties import Ties

_SHOWN: Final = 3


def holds_keep(plan: Plan, layers: Sequence[Layer], space: SpaceSpec) -> bool:
    """Whether a plan gives every kept layer its fixed width."""
    return all(
        plan.precision(layer.name).weight_bits == width
        for layer in layers
        if (width := kept_width(layer, space)) is not None
    )


def check_keep(layers: Sequence[Layer], space: SpaceSpec, ties: Ties = ()) -> None:
    """Refuses patterns that fix nothing, or one layer at two widths.

    Raises:
        SpecError: A pattern matches no layer, two patterns contradict each other, or tied layers
            are to have several widths.
    """
    known = {layer.name: layer for layer in layers}
    for tie in ties:
        fixed = {kept_width(known[name], space) for name in tie}
        if len(fixed) > 1:
            names = ", ".join(map(short_name, tie))
            raise SpecError(
                f"space.keep: the target multiplies {names} as one matrix, and they are to have "
                "several widths: write a pattern that matches all of them, or none"
            )
    for text in space.keep:
        if not any(matches_pattern(text, layer) for layer in layers):
            raise SpecError(
                f"space.keep: {text!r} matches no layer of this model: {_nearest(text, layers)}"
            )
    for layer in layers:
        widths = {text: bits for text, bits in space.keep.items() if matches_pattern(text, layer)}
        if len(set(widths.values())) > 1:
            told = " and ".join(f"{bits} ({text!r})" for text, bits in widths.items())
            raise SpecError(
                f"space.keep: {short_name(layer.name)} is to be kept at {told}: "
                "write patterns that do not overlap"
            )


def _nearest(text: str, layers: Sequence[Layer]) -> str:
    names = [short_name(layer.name) for layer in layers]
    bare = text.strip("*.")
    parts = [name for name in names if bare and bare.lower() in name.lower()]
    close = parts or get_close_matches(text, names, n=_SHOWN, cutoff=0.5)
    if close:
        return f"the nearest are {', '.join(close[:_SHOWN])}"
    return f"its layers are {', '.join(names[:_SHOWN])} and so on"

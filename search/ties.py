"""Ties: layers that a target multiplies as one matrix, and that share a precision therefore."""

from collections.abc import Sequence

from bitfront.choices import short_name
from bitfront.layers import Layer
from bitfront.plan import Plan
from bitfront.targets import DeploymentTarget, target_named

Ties = Sequence[tuple[str, ...]]


def ties_of(target: DeploymentTarget, layers: Sequence[Layer]) -> Ties:
    """The layers of a model that a target fuses, such as q, k and v of each attention.

    Args:
        target: The job's.
        layers: In order of execution; fused ones follow each other.
    """
    known = target_named(target)
    if known is None:
        return ()
    names = {short_name(layer.name): layer.name for layer in layers}
    found = {}
    for short in names:
        parent, _, last = short.rpartition(".")
        for fused in known.fused:
            if last in fused:
                members = [f"{parent}.{other}" for other in fused]
                found[parent, fused] = tuple(names[one] for one in members if one in names)
    return tuple(members for members in found.values() if len(members) > 1)


def holds_ties(plan: Plan, ties: Ties) -> bool:
    """Whether a plan gives tied layers one precision."""
    return all(len({plan.precision(layer) for layer in members}) == 1 for members in ties)

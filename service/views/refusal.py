"""What is said where no trial holds the limits: what comes nearest, and by how much it misses."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitfront.objective import BY_NAME
from bitfront.units import percent_text

if TYPE_CHECKING:
    from bitfront.trial import Trial
    from storage.records import Limits


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
    asked = [(BY_NAME[name], limit) for name, limit in limits.given.items()]
    if nearest is None:
        if not asked:
            return f"{scope} has no complete trial yet: see 'bitfront {way_out}'"
        return f"{scope} has no trial with a measured {' and '.join(one.label for one, _ in asked)}"
    misses = [
        f"{figure.text(nearest.values[figure.name])} "
        f"({_over(nearest.values[figure.name], limit)} over)"
        for figure, limit in asked
        if nearest.values[figure.name] > limit
    ]
    wanted = " and ".join(f"{figure.label} at most {figure.write(most)}" for figure, most in asked)
    found = f" of study {nearest.study!r}" if across else ""
    return (
        f"{scope} has no trial with {wanted}: the nearest is trial {nearest.number}{found} "
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

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

"""A trial as other programs list it: named parameters, and what else a person may want to see."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from bitfront.layers import Block
from bitfront.plan import Configuration, Plan
from bitfront.trial import Trial, TrialState
from service.views.describe import recovery_details

Parameter = str | bool | int | float

RECOVERY: Final = "recovery"
DISTIL: Final = "distil"
_P4Q_KINDS: Final = ("prompt", "adapter", "prompt and adapter")
RECOVERY_KINDS: Final = (
    *("none", *_P4Q_KINDS, DISTIL),
    *(f"{DISTIL} and {kind}" for kind in _P4Q_KINDS),
)


def parameters(configuration: Configuration, blocks: Sequence[Block]) -> dict[str, Parameter]:
    """What was chosen: each block's option by the block's name, and the recovery's settings."""
    chosen: dict[str, Parameter] = {
        block.name: option_text(configuration.plan, block) for block in blocks
    }
    chosen[RECOVERY] = _kind(configuration)
    trained = {DISTIL: configuration.plan.distil, RECOVERY: configuration.recovery}
    for part, kind in trained.items():
        settings = {} if kind is None else json.loads(json.dumps(asdict(kind)))
        chosen |= {f"{part}.{name}": v for name, v in settings.items() if v is not None}
    return chosen


def option_text(plan: Plan, block: Block) -> str:
    """The precisions of a block's layers, such as `w4a8+w8a8`."""
    return str(plan.option(block))


def attributes(trial: Trial) -> dict[str, object]:
    """What is known of a trial beside its parameters and values; what is unknown is left out."""
    configuration = trial.configuration
    counts = Counter(configuration.plan.to_dict().values())
    facts: dict[str, object] = {
        "origin": str(trial.origin),
        "attempts": trial.attempts,
        "plan": ", ".join(f"{n} x {text}" for text, n in sorted(counts.items())),
        "recovery": recovery_details(configuration.recovery, configuration.plan.distil),
        "bits per weight": trial.values.get("bits_per_weight"),
        "nbytes": trial.values.get("nbytes"),
        "test error": trial.test_values.get("error"),
        "feasible": trial.is_feasible if trial.state is TrialState.COMPLETE else None,
        "worker": trial.worker,
        "seconds": trial.seconds,
        "cause": None if trial.cause is None else str(trial.cause),
        "message": trial.message,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _kind(configuration: Configuration) -> str:
    recovery = configuration.recovery
    parts = [DISTIL] * (configuration.plan.distil is not None)
    if recovery is not None:
        parts += ["prompt"] * bool(recovery.context_length) + ["adapter"] * bool(recovery.reduction)
    return " and ".join(parts) or "none"

"""A trial as other programs list it: named parameters, and what else a person may want to see."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from bitfront.layers import Block
from bitfront.plan import Configuration, Option, Plan, Recovery
from bitfront.trial import Trial, TrialState
from service.views.describe import recovery_details

Parameter = str | bool | int | float

RECOVERY: Final = "recovery"
RECOVERY_KINDS: Final = ("none", "prompt", "adapter", "prompt and adapter")


def parameters(configuration: Configuration, blocks: Sequence[Block]) -> dict[str, Parameter]:
    """What was chosen: each block's option by the block's name, and the recovery's settings."""
    chosen: dict[str, Parameter] = {
        block.name: option_text(configuration.plan, block) for block in blocks
    }
    recovery = configuration.recovery
    chosen[RECOVERY] = _kind(recovery)
    if recovery is not None:
        settings = json.loads(json.dumps(asdict(recovery)))
        chosen |= {f"{RECOVERY}.{name}": value for name, value in settings.items()}
    return chosen


def option_text(plan: Plan, block: Block) -> str:
    """The precisions of a block's layers, such as `w4a8+w8a8`."""
    return str(Option(tuple(plan.precision(layer) for layer in block.layers)))


def attributes(trial: Trial) -> dict[str, object]:
    """What is known of a trial beside its parameters and values; what is unknown is left out."""
    configuration = trial.configuration
    counts = Counter(str(precision) for _, precision in configuration.plan)
    facts: dict[str, object] = {
        "origin": str(trial.origin),
        "attempts": trial.attempts,
        "plan": ", ".join(f"{n} x {text}" for text, n in sorted(counts.items())),
        "recovery": recovery_details(configuration.recovery),
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


def _kind(recovery: Recovery | None) -> str:
    if recovery is None:
        return "none"
    parts = ["prompt"] * bool(recovery.context_length) + ["adapter"] * bool(recovery.reduction)
    return " and ".join(parts)

"""Configurations in a few words: baselines by name, recoveries, the precisions of layers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from bitfront.kv_cache import place_behind
from bitfront.layers import Layer
from bitfront.objective import BY_LIMIT, Budget
from bitfront.plan import Configuration, Distillation, Plan, Recovery
from bitfront.trial import Origin

if TYPE_CHECKING:
    from bitfront.trial import Trial
    from storage.records import StudyRecord

FULL_NAME = "16 bits"


def recovery_text(configuration: Configuration) -> str:
    """What is trained, such as `distilled, prompt 4, adapter /4`; a dash for nothing."""
    recovery = configuration.recovery
    parts = [] if configuration.plan.distil is None else ["distilled"]
    if recovery is not None and recovery.context_length:
        parts.append(f"prompt {recovery.context_length}")
    if recovery is not None and recovery.reduction:
        parts.append(f"adapter /{recovery.reduction}")
    return ", ".join(parts) or "-"


def recovery_details(recovery: Recovery | None, distil: Distillation | None) -> str:
    """All settings of what is trained, in one line."""
    parts = [] if distil is None else [_distil_details(distil)]
    parts += [] if recovery is None else [_p4q_details(recovery)]
    return "; ".join(parts) or "none"


def _distil_details(distil: Distillation) -> str:
    parts = [f"distilled in {distil.steps} steps"]
    if distil.codes:
        parts.append("with codes")
    if distil.share < 1:
        parts.append(f"{distil.share:.0%} of the layers")
    if distil.learning_rate_multiplier != 1:
        parts.append(f"learning rates times {distil.learning_rate_multiplier:g}")
    return ", ".join(parts)


def _p4q_details(recovery: Recovery) -> str:
    parts = []
    if recovery.context_length:
        parts.append(f"a prompt of {recovery.context_length} vectors")
    if recovery.reduction:
        parts.append(
            f"an adapter of width/{recovery.reduction} in {recovery.adapter_bits} bits, "
            f"blend {recovery.blend:g}"
        )
    parts.append(f"distillation {recovery.distillation:g}, {recovery.steps} steps")
    if recovery.learning_rate_multiplier != 1:
        parts.append(f"learning rates times {recovery.learning_rate_multiplier:g}")
    return ", ".join(parts)


def baseline_names(baselines: Mapping[int, Configuration]) -> dict[int, str]:
    """Trial numbers of uniform configurations to names: `w4`, or `w4a8` where w4 is not enough.

    Layers that have one width in all of them are taken for kept ones (`space.keep`), and do not
    count. A configuration whose other layers are not uniform gets no name.
    """
    kept = _constant_layers(list(baselines.values()))
    pairs = {
        number: pair
        for number, configuration in baselines.items()
        if (pair := _uniform(configuration, kept)) is not None
    }
    widths = [weight for weight, _ in pairs.values()]
    return {
        number: FULL_NAME
        if weight == activation == 16
        else f"w{weight}"
        if widths.count(weight) == 1
        else f"w{weight}a{activation}"
        for number, (weight, activation) in pairs.items()
    }


def _constant_layers(configurations: Sequence[Configuration]) -> frozenset[str]:
    """The layers whose weights have one width in all configurations, if the others do not."""
    widths: dict[str, set[int]] = {}
    for configuration in configurations:
        for name, precision in configuration.plan:
            widths.setdefault(name, set()).add(precision.weight_bits)
    constant = frozenset(name for name, found in widths.items() if len(found) == 1)
    return constant if len(constant) < len(widths) else frozenset()


def _uniform(configuration: Configuration, kept: frozenset[str]) -> tuple[int, int] | None:
    members = [precision for name, precision in configuration.plan if name not in kept]
    weights = {precision.weight_bits for precision in members}
    # Embeddings have no input to quantize, so the layers with a narrow one name the plan.
    activations = {precision.activation_bits for precision in members}
    if len(weights) != 1 or len(activations - {16}) > 1 or configuration.trained_by:
        return None
    return weights.pop(), min(activations)


def trial_names(trials: "Iterable[Trial]") -> dict[int, str]:
    """The names of the uniform baselines among some trials."""
    return baseline_names(
        {t.number: t.configuration for t in trials if t.origin is Origin.BASELINE}
    )


def origin_text(trial: "Trial", names: Mapping[int, str]) -> str:
    """Who proposed a trial; a baseline with its name."""
    name = names.get(trial.number)
    return trial.origin.replace("_", " ") if name is None else f"{trial.origin} {name}"


def reported_budget(study: "StudyRecord") -> Budget | None:
    """Where a study's best error is read off; None before the full model's figures are known."""
    spec = json.loads(study.spec_json)
    given = {limit: spec["constraints"].get(limit) for limit in BY_LIMIT}
    limits = {BY_LIMIT[limit].name: most for limit, most in given.items() if most is not None}
    return Budget.of(spec["objectives"], limits, study.reference or {})


def layer_lines(plan: Plan, layers: Iterable[Layer]) -> list[str]:
    """The precision of every layer: a line for each scope, in order of execution.

    A layer whose outputs are kept in codes has the format of its cache beside its own.
    """
    lines: list[str] = []
    tower, scope, cache = "", "", dict(plan.cache)
    for layer in layers:
        if layer.tower != tower:
            tower, scope = layer.tower, ""
            lines.append(f"{tower}")
        inside = layer.name.startswith(f"{layer.scope}.")
        leaf = layer.name.removeprefix(f"{layer.scope}.") if inside else layer.name
        entry = (
            f"{leaf.removesuffix('.weight').removesuffix('_weight')} {plan.precision(layer.name)}"
        )
        place = place_behind(layer.name)
        if place in cache:
            entry += f" (its {place.rpartition(':')[2]} {cache[place]})"
        if inside and layer.scope == scope:
            lines[-1] += f", {entry}"
        else:
            lines.append(f"  {layer.scope}: {entry}" if inside else f"  {entry}")
        scope = layer.scope if inside else ""
    return lines

"""Tunings as text: what a recovery wins and weighs, and the table of the samples."""

from collections.abc import Iterable, Mapping

from bitfront.plan import Recovery
from bitfront.trial import TrialState
from bitfront.tuning import TuningSample
from bitfront.units import percent_text, size_text
from service.views.tables import table

_STATES = {TrialState.PRUNED: "stopped early"}


def errors_line(errors: Mapping[str, float], split: str = "selection") -> str:
    """How a plan does without recovery, with it, and in full precision."""
    return (
        f"error on the {split} split: {percent_text(errors['quantized'])} quantized, "
        f"{percent_text(errors['tuned'])} tuned, "
        f"{percent_text(errors['full_precision'])} in full precision"
    )


def refused_recovery(errors: Mapping[str, float]) -> str:
    """Says that a recovery does not help, and is not kept."""
    return (
        f"this recovery does not help: the error on the selection split is "
        f"{percent_text(errors['quantized'])} without it and {percent_text(errors['tuned'])} "
        "with it, so it is not kept: try other settings, or give --keep-worse"
    )


def size_line(nbytes: Mapping[str, int]) -> str:
    """What a plan takes with its recovery, and what that takes of it."""
    parts = [
        f"{part} {size_text(nbytes[part])}" for part in ("prompt", "adapter") if part in nbytes
    ]
    return f"{size_text(sum(nbytes.values()))}, of which {' and '.join(parts)}"


def samples_table(samples: Iterable[TuningSample]) -> str:
    """One sample a line, the lowest error at the last rung first; those without one last."""
    ranked = sorted(samples, key=lambda s: (s.error is None, -s.step, s.error or 0.0, s.number))
    header = ["sample", "error", "step", "size", "state", "settings"]
    rows = [
        [
            str(sample.number),
            "-" if sample.error is None else percent_text(sample.error),
            str(sample.step),
            size_text(sample.nbytes),
            _STATES.get(sample.state, str(sample.state)),
            settings_text(sample.recovery),
        ]
        for sample in ranked
    ]
    return table(header, rows, left=(4, 5))


def settings_text(recovery: Recovery) -> str:
    """The settings that a tuning searches, in short."""
    parts = []
    if recovery.context_length:
        own = " per class" if recovery.class_specific else ""
        parts.append(f"prompt {recovery.context_length}{own}, class {recovery.class_position}")
    if recovery.reduction:
        parts.append(
            f"adapter /{recovery.reduction} in {recovery.adapter_bits} bits, "
            f"blend {recovery.blend:g}"
        )
    parts.append(f"distillation {recovery.distillation:g}")
    parts.append(f"rate x{recovery.learning_rate_multiplier:g}")
    parts.append(f"{recovery.steps} steps")
    return ", ".join(parts)

"""Everything that is known of one configuration: what it is, its figures, what reproduces it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bitfront.objective import FIGURES
from bitfront.units import duration_text, percent_text, size_text
from service.views.describe import origin_text
from service.views.render import best_pairs, precision_lines
from service.views.tables import one_line, pairs_text, table

if TYPE_CHECKING:
    from service.views.choosing import Answer
    from service.views.targets import Deployable
    from storage.records import AttemptRecord, ProfileRecord, StudyRecord

_PART = "nbytes."


def dossier_text(
    answer: "Answer",
    names: Mapping[int, str],
    study: "StudyRecord",
    profile: "ProfileRecord | None",
    attempts: Sequence["AttemptRecord"],
    targets: Sequence["Deployable"],
    *,
    is_on_front: bool,
) -> str:
    """A trial in full.

    Args:
        answer: The trial with its estimate.
        names: Trial numbers to names of uniform baselines.
        study: Its study.
        profile: The study's layers and blocks, if they are known.
        attempts: Every attempt at it.
        targets: What it can be built for.
        is_on_front: Whether it is on the front.
    """
    trial = answer.trial
    pairs = [
        ("study", trial.study),
        ("trial", f"{trial.number} ({origin_text(trial, names)})"),
        ("state", f"{trial.state}{', on the front' if is_on_front else ''}"),
    ]
    if trial.values:
        pairs += best_pairs(answer, names, targets)[1:]
    for key, unit in (("error_se", "error"), ("divergence_se", "divergence")):
        if key in trial.metrics:
            value = trial.metrics[key]
            text = percent_text(value) if unit == "error" else f"{value:.2g}"
            pairs.append((f"standard error of {unit}", text))
    shares = {name: value for name, value in trial.metrics.items() if _is_share(name)}
    pairs += [(name.replace("_", " "), percent_text(value)) for name, value in shares.items()]
    broken = [name for name, excess in trial.constraints.items() if excess > 0]
    if broken:
        pairs.append(("breaks", ", ".join(broken)))
    parts = {
        name.removeprefix(_PART): nbytes
        for name, nbytes in trial.metrics.items()
        if name.startswith(_PART)
    }
    if parts:
        shown = (f"{name} {size_text(nbytes)}" for name, nbytes in parts.items() if nbytes)
        pairs.append(("of its bytes", ", ".join(shown)))
    blocks = [pairs_text(pairs)]
    blocks.append("attempts\n" + "\n".join(map(_attempt_line, attempts)))
    if profile is not None:
        blocks.append(f"bits of each block\n{_block_lines(answer, profile)}")
    lines = precision_lines(trial.configuration.plan, profile)
    blocks.append("\n".join(["precision of each layer", *lines]))
    blocks.append(f"what reproduces it\n{pairs_text(_sources(answer, study))}")
    return "\n\n".join(blocks)


def _is_share(metric: str) -> bool:
    """Whether a figure that only some tasks have is a share of samples."""
    return "_recall_at_" in metric or metric in ("unparsed", "agreement")


def _attempt_line(attempt: "AttemptRecord") -> str:
    took = "" if attempt.seconds is None else f", {duration_text(attempt.seconds)}"
    by = "" if attempt.worker is None else f" by {one_line(attempt.worker)}"
    end = "" if attempt.cause is None else f": {attempt.cause}, {one_line(attempt.message or '')}"
    at = f"{attempt.started_at:%Y-%m-%d %H:%M:%S}Z"
    return f"  {attempt.attempt}: {at}{by}{took}{end}"


def _block_lines(answer: "Answer", profile: "ProfileRecord") -> str:
    plan = answer.trial.configuration.plan
    layers = {layer.name: layer for layer in profile.layers}
    rows = []
    for block in profile.blocks:
        option = plan.option(block)
        sizes = [] if block.is_cache else [layers[name].weights for name in block.layers]
        bits = sum(size * own for size, own in zip(sizes, option.bits, strict=False))
        mean = f"{bits / sum(sizes):.2f}" if sizes else "-"
        rows.append([f"  {block.name}", str(option), mean])
    return table(["  block", "option", "bits/weight"], rows, left=(0, 1))


def _sources(answer: "Answer", study: "StudyRecord") -> list[tuple[str, str]]:
    trial = answer.trial
    facts = [("configuration", trial.configuration.digest)]
    facts += [(name, value) for name, value in sorted(study.provenance.items())]
    facts.append(("its files", f"bitfront build {trial.study} --trial {trial.number} --out FOLDER"))
    return facts


def dossier_dict(
    answer: "Answer",
    best: Mapping[str, object],
    study: "StudyRecord",
    profile: "ProfileRecord | None",
    attempts: Sequence["AttemptRecord"],
    *,
    is_on_front: bool,
) -> dict[str, object]:
    """The same as plain JSON content, beyond what `best --format json` has."""
    trial = answer.trial
    blocks = () if profile is None else profile.blocks
    plan = trial.configuration.plan
    return {
        **best,
        "state": str(trial.state),
        "on_front": is_on_front,
        "constraints": dict(trial.constraints),
        "metrics": {
            name: value
            for name, value in trial.metrics.items()
            if name not in {figure.name for figure in FIGURES}
        },
        "blocks": {block.name: str(plan.option(block)) for block in blocks},
        "attempts": [
            {
                "attempt": one.attempt,
                "started_at": one.started_at.isoformat(),
                "seconds": one.seconds,
                "worker": one.worker,
                "cause": None if one.cause is None else str(one.cause),
                "message": one.message,
            }
            for one in attempts
        ],
        "digest": trial.configuration.digest,
        "provenance": dict(study.provenance),
    }

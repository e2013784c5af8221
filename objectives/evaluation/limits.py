"""What some architectures cannot be searched with, whatever they are asked to do."""

from collections.abc import Mapping, Sequence

from bitfront.errors import SpecError
from bitfront.objective import Objective
from bitfront.quant.inputs import InputRange
from bitfront.spec import CellSelection, ErrorMeasure, JobSpec, KeySide, Rounding
from bitfront.vlm import GenerativeModel, LayeredModel
from bitfront.vlm.kv_rounding import cache_places, refuse_rotated
from bitfront.vlm.models.layered import LeftReason
from bitfront.vlm.models.whole import NO_PARTS
from objectives.profiling.calibration import Ranges

_NAMED = 8
_TOLD_SHARE = 0.05


def refuse_limits(spec: JobSpec, model: LayeredModel) -> None:
    """Refuses a job that asks for what is not known of its model's architecture.

    Raises:
        SpecError: It does.
    """
    if model.residency is not None:
        refuse_blockwise(spec)
    if isinstance(model, GenerativeModel) and not model.has_features:
        if spec.space.p4q is not None:
            raise SpecError(f"space.p4q {NO_PARTS}")
        if spec.profile.vision is not None:
            raise SpecError(f"profile.vision {NO_PARTS}")
    cache = spec.space.kv_cache
    if cache is not None or spec.context_tokens is not None:
        cache_places(model)
    if cache is not None and isinstance(model, GenerativeModel) and KeySide.AFTER in cache.rotary:
        refuse_rotated(model)
    if not model.has_experts:
        return
    measure = spec.profile.measure
    if measure is not ErrorMeasure.OUTPUT_KL:
        raise SpecError(
            f"profile.measure: {measure.value} compares what layers give, and in a mixture of "
            f"experts tokens go to others under a plan: write {ErrorMeasure.OUTPUT_KL.value}"
        )
    if len(spec.space.clips) > 1:
        raise SpecError(
            "space.clips: clips are chosen by what layers give, and in a mixture of experts tokens "
            "go to others under a plan: write one clip"
        )


def refuse_blockwise(spec: JobSpec) -> None:
    """Refuses what needs more of a model than a transformer block at a time.

    Raises:
        SpecError: The job asks for it.
    """
    profile, scored = spec.profile, (ErrorMeasure.OUTPUT_KL, ErrorMeasure.GAUSS_NEWTON)
    is_scored = profile.cells is CellSelection.ADAPTIVE
    asked = {
        "quantizer.rounding: write nearest": spec.quantizer.rounding is not Rounding.NEAREST,
        "space.recovery: leave it out": spec.space.recovery is not None,
        "space.clips: write one clip": len(spec.space.clips) > 1,
        "space.kv_cache: leave it out": spec.space.kv_cache is not None,
        "profile.vision: leave it out": profile.vision is not None,
        "profile.measure: write output_kl or gauss_newton": profile.measure not in scored,
        "profile.score: write gauss_newton": (
            is_scored and profile.score is not ErrorMeasure.GAUSS_NEWTON
        ),
        "objectives and constraints: leave times and activation_nbytes out": (
            spec.is_timed or spec.needs(Objective.ACTIVATION_NBYTES)
        ),
    }
    found = [setting for setting, is_asked in asked.items() if is_asked]
    if found:
        raise SpecError(
            "the weights take more than half of resources.memory, so they are read a transformer "
            f"block at a time, which is not enough for {'; '.join(found)}; or raise "
            "resources.memory"
        )


def left_notes(model: LayeredModel) -> tuple[str, ...]:
    """A sentence for each reason why matrices of a model stay at 16 bits, where that may surprise.

    Embeddings of positions and the like are a small part of every model, and are not told.
    """
    total = sum(layer.weights for layer in model.layers) + sum(model.kept.values())
    notes = []
    for reason in LeftReason:
        left = [one for one in model.left if one.reason is reason]
        share = sum(one.weights for one in left) / total
        if not left or (reason is LeftReason.NOT_MULTIPLIED and share < _TOLD_SHARE):
            continue
        notes.append(
            f"{len(left)} matrices with {share:.1%} of the weights stay at 16 bits, since of each "
            f"it holds that {reason}: {_listed([one.name for one in left])}"
        )
    return tuple(notes)


def with_unreached_experts(model: LayeredModel, ranges: Ranges) -> tuple[Ranges, tuple[str, ...]]:
    """The ranges with those of experts that no calibration token reached, and a note on these.

    Such an expert's inputs have the range that its siblings' inputs have together: these are the
    same tokens, sent elsewhere.

    Args:
        model: The model.
        ranges: What `calibrate` returned.
    """
    found = dict(ranges)
    missing = [
        layer.name
        for layer in model.layers
        if layer.name not in ranges and model.multiplying(layer.name)
    ]
    unreached = []
    for name in missing:
        siblings = [known for other, known in ranges.items() if _packed(other) == _packed(name)]
        if siblings:
            found[name] = _union(siblings)
            unreached.append(name)
    if not unreached:
        return found, ()
    return found, (
        f"no calibration token reaches {len(unreached)} weights of experts: {_listed(unreached)}; "
        "their codes are chosen without inputs, so give more calibration samples where they matter",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def _packed(name: str) -> str:
    """What an expert's layer has in common with its siblings."""
    parts = name.split(".")
    return ".".join(
        "*" if part.isdigit() and "experts" in parts[:n] else part for n, part in enumerate(parts)
    )


def _union(siblings: list[Mapping[float, InputRange]]) -> dict[float, InputRange]:
    return {
        clip: InputRange(
            min(known[clip].low for known in siblings), max(known[clip].high for known in siblings)
        )
        for clip in siblings[0]
    }

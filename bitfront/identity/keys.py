"""The recipe of every cache key: a hash of all that the cached result depends on.

A recipe may gain an entry, never lose one: where a specification does not need the entry, the
digest stays what it was, so a database made by an earlier version keeps its results.
`bitfront.identity.decisions` says for each field of a specification which of these keys it
enters.
"""

from collections.abc import Iterable, Mapping, Sequence

from bitfront.identity.identities import CellKey, Identities
from bitfront.layers import Block
from bitfront.objective import BY_NAME, Objective
from bitfront.plan import Configuration, Option, Plan, digest
from bitfront.precision import Precision
from bitfront.spec import DataSpec, ErrorMeasure, JobSpec, QuantizerSpec, Rounding, VisionSpec
from bitfront.targets import SMALLEST_INPUT_GROUP

# Goes up when the same option of the same model would come out with another error.
CELL_VERSION = 1

# Goes up with the content of a checkpoint of visual-encoder optimisation.
VISION_FORMAT = "bitfront.vision.1"

# Both look at values that are picked batch by batch, or at gradients summed within a batch.
_BATCHED_MEASURES = frozenset(
    {ErrorMeasure.FISHER, ErrorMeasure.GAUSS_NEWTON, ErrorMeasure.ENTROPY}
)

# Layer name to clip to the two ends of the layer's input range.
RangeTable = Mapping[str, Mapping[float, tuple[float, float]]]


def quantizer_identity(
    spec: JobSpec,
    device_type: str,
    bounds: Mapping[str, object],
    timed_on: Sequence[object] = (),
) -> str:
    """The hash of what a cell depends on beside model, samples and option.

    Args:
        spec: The job.
        device_type: Such as `cpu` or `cuda`.
        bounds: The learned bounds, as JSON content; empty without.
        timed_on: The device, the batch size and the target of the cells' latencies; empty for a
            job that needs none.
    """
    quantizer = _quantizer_content(spec.quantizer)
    content = [CELL_VERSION, quantizer, spec.profile.measure, spec.data.seed]
    if spec.profile.measure is ErrorMeasure.GRADIENT:
        content.append("all outputs")  # it once looked at the last of those that leave a block
    if device_type != "cpu":  # ranges come out a little different there
        content.append(device_type)
    if bounds:
        content.append(dict(bounds))
    if timed_on:
        content.append({"latency": list(timed_on)})
    if spec.is_blocked:
        content.append(_runtime_entry(spec))
    return digest(content)


def cell_key(spec: JobSpec, identities: Identities, block: Block, option: Option) -> CellKey:
    """The key of one option of a block."""
    quantizer = identities.quantizer
    is_batched = spec.profile.measure in _BATCHED_MEASURES
    is_batched |= spec.quantizer.rounding is not Rounding.NEAREST  # moments are sums over batches
    searched = _searched_entry(spec.quantizer, option.precisions)
    if searched:
        quantizer = digest([quantizer, searched])
        is_batched = True  # the rows that a range is searched on are taken batch by batch
    if is_batched or any(precision.clip < 1.0 for precision in option.precisions):
        batch = _batch_entry(spec)
        quantizer = digest([quantizer, batch]) if batch else quantizer
    return CellKey.of(identities.model, identities.calibration, quantizer, block, option)


def clips_key(
    spec: JobSpec, identities: Identities, chain: Sequence[tuple[Block, Option]], prefix: Plan
) -> str:
    """The key of the clips that are searched for a chain of blocks, after a prefix."""
    precisions = [precision for _, option in chain for precision in option.precisions]
    precisions += [precision for _, precision in prefix]
    return digest(
        {
            **_batch_entry(spec),
            **_searched_entry(spec.quantizer, precisions),
            "chain": [[list(block.layers), str(option)] for block, option in chain],
            "prefix": prefix.to_dict(),
            "model": [identities.model, identities.calibration, identities.quantizer],
            "clips": sorted(spec.space.clips),
            "search": spec.profile.clip_search,
        }
    )


def bounds_key(spec: JobSpec, identities: Identities) -> str:
    """The key of the bounds that visual-encoder optimisation learns.

    The device has no part in it, so that a study that moves to another one keeps its bounds:
    they are an input of what is measured later, whose keys hold their content.

    Args:
        spec: The job; it has `profile.vision`.
        identities: Of its model and data.
    """
    return digest({**_bounds_content(spec, identities), "batch_size": spec.data.batch_size})


def bounds_key_without_batches(spec: JobSpec, identities: Identities) -> str:
    """The key that 0.1.0 kept learned bounds under, whatever batches they were trained in.

    Nothing is kept under it any more, but a study that used such bounds resumes with them.
    """
    return digest(_bounds_content(spec, identities))


def _bounds_content(spec: JobSpec, identities: Identities) -> dict[str, object]:
    assert spec.profile.vision is not None
    return {
        "model": [identities.model, identities.calibration],
        "quantizer": _quantizer_content(spec.quantizer),
        "vision": spec.profile.vision.model_dump(mode="json"),
        "seed": spec.search.seed,
    }


def evaluation_key(
    spec: JobSpec, identities: Identities, device: str, configuration: Configuration
) -> str:
    """The key of a configuration's values on the selection split.

    Args:
        spec: The job.
        identities: Of its model, quantizer and data.
        device: The device's name, as in the study's provenance.
        configuration: What is evaluated.
    """
    ids = identities
    content: dict[str, object] = {
        "configuration": configuration.digest,
        "splits": [ids.model, ids.calibration, ids.tuning, ids.selection],
        "quantizer": _quantizer_content(spec.quantizer),
        "objectives": [objective.value for objective in spec.objectives],
        "device": device,
        "seed": spec.search.seed,
    }
    content |= _measure_entry(spec.data)
    if spec.profile.vision is not None:
        content["bounds"] = ids.quantizer
    if configuration.recovery is not None and configuration.recovery.views:
        content["views"] = {"flip": spec.data.horizontal_flip, "seed": spec.data.seed}
    precisions = [precision for _, precision in configuration.plan]
    searched = _searched_entry(spec.quantizer, precisions)
    content |= searched | _target_entry(spec.quantizer) | _runtime_entry(spec)
    goes_by_batches = bool(searched) or spec.quantizer.rounding is not Rounding.NEAREST
    goes_by_batches |= configuration.plan.distil is not None
    if goes_by_batches or any(precision.clip < 1.0 for _, precision in configuration.plan):
        content["ranges"] = {"batch_size": spec.data.batch_size}
    # Such as a latency: taken at the job's batch size, and only for a job that needs it.
    needed = [o.value for o in Objective if BY_NAME[o].on_demand and spec.needs(o)]
    if needed:
        content["on demand"] = {"figures": needed, "batch_size": spec.data.batch_size}
    if spec.timed_in is not None:
        content["timed on"] = ids.quantizer  # which holds the runtime with its version
    if spec.context_tokens is not None:
        content["context"] = spec.context_tokens
    content |= _levels_entry(spec, configuration.plan)
    return digest(content)


def features_key(
    spec: JobSpec,
    *,
    model: str,
    samples: str,
    device_type: str,
    bounds: Mapping[str, object],
    ranges: RangeTable,
) -> str:
    """The hash of all that features and recoveries depend on beside their configuration.

    Args:
        spec: The job.
        model: The model's identity.
        samples: The identity of all samples.
        device_type: Such as `cpu` or `cuda`.
        bounds: The learned bounds, as JSON content; empty without.
        ranges: What calibration found. The clip 1.0, the exact extremes, follows from model,
            samples and device; any other depends on how the samples were cut into batches.
    """
    cut = {
        layer: {clip: ends for clip, ends in known.items() if clip < 1.0}
        for layer, known in ranges.items()
    }
    content: dict[str, object] = {
        "model": model,
        "samples": samples,
        "quantizer": _quantizer_content(spec.quantizer),
        "flip": spec.data.horizontal_flip,
        "bounds": dict(bounds),
        "device": device_type,
        "seeds": [spec.search.seed, spec.data.seed],
        **_measure_entry(spec.data),
    }
    if any(cut.values()):
        content["ranges"] = _range_content(cut)
    searches = spec.quantizer.may_search
    if searches:
        content["searched"] = spec.quantizer.ranges.value
    content |= _target_entry(spec.quantizer) | _runtime_entry(spec)
    trains_by_batches = spec.space.distil is not None
    if searches or trains_by_batches or spec.quantizer.rounding is not Rounding.NEAREST:
        content["moments"] = {"batch_size": spec.data.batch_size}
    return digest(content)


def feature_file_key(features: str, stream: str, plan: Plan) -> str:
    """The name of a file of features: of a stream, under its towers' part of a plan.

    Args:
        features: What `features_key` gives.
        stream: The stream's key.
        plan: The plan of the towers that the stream runs through.
    """
    distil = [] if plan.distil is None else [plan.distil.to_dict()]
    return digest([features, stream, plan.to_dict(), *distil])


def recovery_checkpoint_key(features: str, configuration: Configuration) -> str:
    """What the checkpoint of a configuration's recovery in training is known by.

    Args:
        features: What `features_key` gives.
        configuration: What is trained.
    """
    return digest([features, configuration.to_dict()])


def tuning_key(features: str, experiment: Mapping[str, object]) -> str:
    """What a tuning's samples are kept under.

    Args:
        features: What `features_key` gives.
        experiment: The plan, the space and the rungs, as JSON content.
    """
    return digest([features, dict(experiment)])


def vision_checkpoint_key(
    *,
    model: str,
    samples: str,
    batches: Sequence[Sequence[int]],
    ranges: RangeTable,
    quantizer: QuantizerSpec,
    vision: VisionSpec,
    seed: int,
) -> str:
    """What the checkpoint of visual-encoder optimisation is known by.

    Args:
        model: The model's identity.
        samples: The identity of the calibration split.
        batches: The places of the split's samples in each batch.
        ranges: What calibration found.
        quantizer: How weights and inputs get their codes.
        vision: The settings.
        seed: Of the order of the batches.
    """
    return digest(
        {
            "format": VISION_FORMAT,
            "model": model,
            "samples": samples,
            "batches": [list(places) for places in batches],
            "ranges": _range_content(ranges),
            "quantizer": _quantizer_content(quantizer),
            "spec": vision.model_dump(mode="json"),
            "seed": seed,
        }
    )


def _range_content(ranges: RangeTable) -> dict[str, dict[str, list[float]]]:
    return {
        layer: {str(clip): list(ends) for clip, ends in known.items()}
        for layer, known in ranges.items()
    }


def _quantizer_content(quantizer: QuantizerSpec) -> dict[str, object]:
    """The settings that count wherever a weight is rounded.

    Without the default rounding method, fractional zero points and the usual groups of inputs, so
    that older digests stay valid; target and ranges count for some keys only, which name them
    themselves.
    """
    content: dict[str, object] = quantizer.model_dump(mode="json", exclude={"target", "ranges"})
    if quantizer.rounding is Rounding.NEAREST:
        del content["rounding"]
    if quantizer.zero_points == "fractional":
        del content["zero_points"]
    if quantizer.activation_group == SMALLEST_INPUT_GROUP:
        del content["activation_group"]
    return content


def _target_entry(quantizer: QuantizerSpec) -> dict[str, object]:
    """The target, where weights depend on the layers before them."""
    return {"target": quantizer.target.value} if quantizer.is_sequential else {}


def _runtime_entry(spec: JobSpec) -> dict[str, object]:
    """The runtime, where it rounds inputs and counts bytes in its own way."""
    return {"runtime": spec.target.value} if spec.is_blocked else {}


def _searched_entry(quantizer: QuantizerSpec, precisions: Iterable[Precision]) -> dict[str, object]:
    """The widths of inputs whose ranges are searched; empty where there are none."""
    widths = {p.activation_bits for p in precisions if p.clip == 1.0}
    searched = sorted(bits for bits in widths if quantizer.searches_range(bits))
    return {"searched": searched} if searched else {}


def _levels_entry(spec: JobSpec, plan: Plan) -> dict[str, object]:
    """What levels of a KV cache depend on that are fitted with labels drawn at random."""
    is_fitted = any(not form.is_uniform for _, form in plan.cache)
    return {"levels": {"seed": spec.data.seed}} if is_fitted else {}


def _measure_entry(data: DataSpec) -> dict[str, str]:
    """What the error is of, where the job says so."""
    return {} if data.measure is None else {"measure": data.measure.value}


def _batch_entry(spec: JobSpec) -> dict[str, int]:
    """The batch size where it is not the default one, under which older digests stay valid."""
    size = spec.data.batch_size
    is_default = size == DataSpec.model_fields["batch_size"].default
    return {} if is_default else {"batch_size": size}

"""What a worker process keeps between tasks and trials: the loaded model and its caches."""

import ctypes
import gc
import platform
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch

from bitfront.files import SharedPath
from bitfront.identity.identities import Identities
from bitfront.job.allowed_roots import check_allowed_roots
from bitfront.layers import Tower
from bitfront.plan import Plan, full_precision
from bitfront.precision import Precision
from bitfront.profile import LayerEntropy
from bitfront.quant.inputs import bounds_from_json, bounds_to_json
from bitfront.vlm import LayeredModel
from objectives.cost.costs import kept_nbytes
from objectives.cost.latency import LatencyMeter
from objectives.data.inspection import Inspector
from objectives.data.split_name import SplitName
from objectives.evaluation.chance import chance_warnings, refuse_like_classes
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.limits import left_notes
from objectives.profiling.cells import CellMeter
from objectives.profiling.clips import ClipSearch
from objectives.profiling.entropy import measure_entropies
from workers.observability.logs import set_up
from workers.observability.metrics import timed
from workers.process.cache_folder import feature_folder, inspection_file, latency_file
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.placement import Footprint
from workers.scheduling.worker_config import WorkerConfig

# Levels of the quantizer over which entropies are taken: at 4 bits they begin to matter, and
# the joint distribution of two layers is still small.
_ENTROPY_BITS = 4


@lru_cache(maxsize=1)
def evaluator(config: WorkerConfig) -> Evaluator:
    """The process's evaluator for a worker configuration; another one replaces it."""
    set_up()
    release()
    spec = config.spec
    check_allowed_roots(spec)
    with timed(spec.study, "load"):
        bounds = bounds_from_json(config.bounds)
        inspector = Inspector(inspection_file(), workers=1)
        folder, latencies = feature_folder(), latency_file()
        return Evaluator.from_spec(spec, bounds, folder, inspector, latencies)


def release() -> None:
    """Gives the memory of the loaded model back to the machine."""
    for kept in (clip_search, cell_meter, score_meter, evaluator):
        kept.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        # glibc keeps what was freed, which adds up where a worker goes from job to job.
        trim(0)


@lru_cache(maxsize=1)
def cell_meter(config: WorkerConfig) -> CellMeter:
    """The process's cell meter for a worker configuration, on the same model as its evaluator."""
    loaded = evaluator(config)
    return CellMeter(loaded.task, loaded.cell_switch, loaded.spec, loaded.latency_meters)


@lru_cache(maxsize=1)
def score_meter(config: WorkerConfig) -> CellMeter:
    """What gives the cells of a worker configuration the error that its score estimates."""
    loaded = evaluator(config)
    profile = loaded.spec.profile.model_copy(update={"measure": loaded.spec.profile.score})
    spec = loaded.spec.model_copy(update={"profile": profile})
    return CellMeter(loaded.task, loaded.cell_switch, spec, loaded.latency_meters)


@lru_cache(maxsize=1)
def clip_search(config: WorkerConfig) -> ClipSearch:
    """The process's clip search for a worker configuration, on the same model as its evaluator."""
    loaded = evaluator(config)
    clips = sorted(loaded.spec.space.clips, reverse=True)
    return ClipSearch(loaded.task, loaded.cell_switch, clips)


def inspect(config: WorkerConfig) -> Iterator[str | ModelInfo]:
    """Loads a job's model and data: the name of each stage as it begins, then what is known."""
    yield "load the model, calibrate it"
    loaded = evaluator(config)
    model, task, meters = loaded.model, loaded.task, loaded.latency_meters
    refuse_like_classes(task)
    yield "evaluate full precision"
    full = loaded.evaluate(full_precision(model.layers))
    yield "hash the samples"
    splits = {name.value: task.split_identity(name) for name in SplitName}
    yield "measure the layers' entropies"
    entropies = tuple(_entropies(loaded))
    yield ModelInfo(
        layers=model.layers,
        fixed_nbytes=kept_nbytes(model, is_blocked=loaded.spec.is_blocked),
        entropies=entropies,
        full=full,
        footprint=footprint(model.device),
        identities=Identities(
            model=model.identity, quantizer=cell_meter(config).identity, **splits
        ),
        provenance=_provenance(model, meters),
        model_parts=model.parts,
        warnings=(
            *chance_warnings(task, full.values["error"]),
            *left_notes(model),
            *loaded.notes,
        ),
        cache=loaded.cache_places,
        fixed_times={meter.stage.figure.value: meter.fixed_seconds() for meter in meters},
    )


def inspected(config: WorkerConfig, on_stage: Callable[[str], None] = lambda _: None) -> ModelInfo:
    """What `inspect` finds of a job in this process; tells each stage as it begins."""
    for found in inspect(config):
        if isinstance(found, ModelInfo):
            return found
        on_stage(found)
    raise AssertionError("the model's information comes last")


def footprint(device: torch.device) -> Footprint:
    """The memory that this process was seen to take at most."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return Footprint(torch.cuda.max_memory_reserved(device), total)
    # Linux counts in KiB.
    return Footprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, 0)


def _entropies(loaded: Evaluator) -> list[LayerEntropy]:
    """The layers' entropies; where the vision tower was optimised, it runs quantized."""
    vision = loaded.spec.profile.vision
    plan = Plan(())
    if loaded.switch.bounds and vision is not None:
        precision = Precision(vision.weight_bits, vision.activation_bits)
        layers = [layer.name for layer in loaded.model.layers if layer.tower is Tower.VISION]
        plan = Plan.uniform(layers, precision)
    loaded.cell_switch.to(plan)
    try:
        return measure_entropies(loaded.task, loaded.ranges, _ENTROPY_BITS)
    finally:
        loaded.cell_switch.clear()


def optimise(config: WorkerConfig, checkpoint: SharedPath) -> dict[str, object]:
    """Learns the bounds of the vision tower's inputs, as `profile.vision` says; it resumes."""
    loaded = evaluator(config)
    spec = loaded.spec
    assert spec.profile.vision is not None
    loaded.switch.clear()
    bounds = loaded.family.optimise_vision(
        loaded.ranges, spec.quantizer, spec.profile.vision, spec.search.seed, checkpoint
    )
    return bounds_to_json(bounds)


def package_versions() -> dict[str, str]:
    """The installed versions of what results may depend on."""
    packages = ("bitfront", "torch", "open_clip_torch", "transformers", "ray", "optuna")
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        # A copy of bitfront that was shipped to a cluster is not installed there.
        return "not installed"


def _provenance(model: LayeredModel, meters: Sequence[LatencyMeter]) -> dict[str, str]:
    device = str(model.device)
    if model.device.type == "cuda":
        device = torch.cuda.get_device_name(model.device)
    host = {"host": socket.gethostname(), "platform": platform.platform(), "device": device}
    if not meters or not meters[0].runtime.is_target:
        return {**package_versions(), **host}
    return {**package_versions(), **host, "latency": meters[0].timed_on}

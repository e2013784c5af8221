"""What a trial worker takes of a node: CPUs, a share of a GPU, and memory."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bitfront.layers import Layer
from bitfront.spec import AUTO, JobSpec

logger = logging.getLogger(__name__)

Resources = Mapping[str, float]
"""What Ray counts: CPU, GPU, and memory in bytes."""

_GPU_SHARE = 0.9  # the rest is the driver's own and fragments
_MOST_A_GPU = 8
_KEPT_WEIGHTS = 2 << 30  # `bitfront.vlm.PlanSwitch` keeps at most so many bytes of weights
_KEPT_ACTIVATIONS = 1 << 30  # what each `StreamRunner` keeps of the activations between blocks
_KEPT_ROUNDING = 512 << 20  # what `SequentialSwitch` keeps of codes, and of its activations
_KEPT_FEATURES = 256 << 20  # what `FeatureStore` keeps of a recovery's samples


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory that a worker was seen to take for the full-precision model.

    Attributes:
        peak_nbytes: The most it took at once, on the GPU if it has one, else of the host.
        device_nbytes: What the GPU has in all; 0 on a CPU.
    """

    peak_nbytes: int
    device_nbytes: int


@dataclass(frozen=True, slots=True)
class Placement:
    """What each trial worker asks of a node, and what a person should know of it."""

    cpus: float
    gpus: float
    memory_nbytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def resources(self) -> dict[str, float]:
        """As a node names them."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_nbytes)}
        return {name: amount for name, amount in asked.items() if amount}

    @property
    def options(self) -> dict[str, float]:
        """As the options of a Ray task name them."""
        asked = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return {**asked, "memory": self.memory_nbytes} if self.memory_nbytes else asked

    def slots(self, nodes: Iterable[Resources]) -> int:
        """How many such workers fit on the nodes, were they empty."""
        return sum(
            min(int(node.get(name, 0) / amount) for name, amount in self.resources.items())
            for node in nodes
        )


ONE_CPU = Placement(1, 0)


def plan_nbytes(footprint: Footprint, layers: Sequence[Layer], spec: JobSpec) -> int:
    """The memory that a worker takes for the costliest plan of the space, estimated.

    Beside the full-precision model it keeps quantized weights of every width (4 bytes each,
    within the switch's limit), the features of what a recovery trains on, and activations. Where
    weights depend on the layers before them, it keeps codes (a byte each) and activations of the
    calibration samples too; the moments and the full model's inputs are in the footprint.
    """
    widths = len(spec.space.uniform_weights)
    weights = 4 * widths * sum(layer.weights for layer in layers)
    features = 0 if spec.space.p4q is None else _KEPT_FEATURES
    activations = _activation_nbytes(layers, spec)
    kept = min(_KEPT_WEIGHTS, weights) + features + activations
    if spec.quantizer.is_sequential:
        kept += min(_KEPT_ROUNDING, spec.stop.trials * sum(layer.weights for layer in layers))
        walked = _block_nbytes(layers) * spec.data.samples.calibration * spec.stop.trials
        kept += min(_KEPT_ROUNDING, walked)
    return footprint.peak_nbytes + kept


def _activation_nbytes(layers: Sequence[Layer], spec: JobSpec) -> int:
    """What the evaluator keeps for all trials, and the cell meter of the full-precision model.

    After each transformer block that is one vector a position, as wide as what the block's first
    layer takes, of 4 bytes a value. A trial may differ from all others from the first block on.
    """
    sample, samples = _block_nbytes(layers), spec.data.samples
    evaluator = sample * samples.selection * spec.stop.trials
    meter = sample * samples.calibration
    return min(_KEPT_ACTIVATIONS, evaluator) + min(_KEPT_ACTIVATIONS, meter)


def _block_nbytes(layers: Sequence[Layer]) -> int:
    """The activations of a sample after all transformer blocks."""
    first = {layer.scope: layer for layer in reversed(layers) if layer.scope != layer.tower.value}
    return sum(4 * layer.positions * layer.columns for layer in first.values())


def first_placement(spec: JobSpec, nodes: Sequence[Resources]) -> Placement:
    """Where the model is looked at, before anything is known of its memory."""
    asked = spec.search.gpus_per_worker
    has_gpu = any(node.get("GPU", 0) > 0 for node in nodes)
    gpus = (1.0 if has_gpu else 0.0) if asked == AUTO else asked
    notes = []
    if gpus and not has_gpu:
        notes.append("no node has a GPU yet: waiting for one to join")
    if not _times(spec):
        return Placement(1, gpus, notes=tuple(notes))
    if gpus and gpus != math.ceil(gpus):
        notes.append(f"latency is measured on a whole GPU: {gpus:g} of one becomes 1")
    gpus = math.ceil(gpus)
    if gpus and spec.timed_in is None:
        return Placement(1, gpus, notes=tuple(notes))
    cpus = min((node["CPU"] for node in nodes if node.get("CPU", 0) > 0), default=1.0)
    reason = "for no node has a GPU" if spec.timed_in is None else f"in {spec.timed_in}"
    notes.append(f"latency is measured on a CPU, {reason}: a worker takes a whole machine")
    return Placement(cpus, gpus, notes=tuple(notes))


def placement(
    spec: JobSpec,
    nodes: Sequence[Resources],
    footprint: Footprint,
    layers: Sequence[Layer],
) -> Placement:
    """What a trial worker takes, now that the model's memory was measured."""
    first = first_placement(spec, nodes)
    needed = plan_nbytes(footprint, layers, spec)
    if footprint.device_nbytes:
        gpus = first.gpus
        if spec.search.gpus_per_worker == AUTO and not _times(spec):
            gpus = _gpus(needed, footprint.device_nbytes)
        return Placement(first.cpus, gpus)
    largest = max((node.get("memory", 0) for node in nodes), default=0)
    if needed > largest:
        text = (
            f"a worker is estimated to take {needed / 1e9:.1f} GB of memory, and the largest "
            f"node offers {largest / 1e9:.1f} GB: one worker a node, and it may run out"
        )
        return Placement(first.cpus, first.gpus, int(largest), (text,) if largest else ())
    return Placement(first.cpus, first.gpus, needed)


def _gpus(needed: int, device_nbytes: int) -> float:
    """The share of a GPU that holds so many bytes, or the GPUs that do together."""
    fitting = int(device_nbytes * _GPU_SHARE / needed)
    if fitting == 0:
        return math.ceil(needed / (device_nbytes * _GPU_SHARE))
    # Ray counts in ten-thousandths: rounded down, so that all of them fit.
    return math.floor(10_000 / min(fitting, _MOST_A_GPU)) / 10_000


def _times(spec: JobSpec) -> bool:
    """Whether a trial's time is measured, which nobody may disturb."""
    return spec.is_timed

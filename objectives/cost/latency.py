"""Latency: the measured time of an image, from real kernels or not at all.

An image's latency is the time that its features take: the vision tower and the adapter. Class
captions are encoded once for a task, so the text tower costs an image nothing.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from bitfront.errors import UnavailableDevice
from bitfront.layers import Layer, LayerKind, Tower
from bitfront.plan import Configuration
from bitfront.precision import FULL, Precision
from bitfront.quant.inputs import InputRange
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder, PlanSwitch
from objectives.cost.kernels import FLOAT32, INT4_GROUPS, Kernel, find_kernels
from objectives.recovery.adapter import LINEARS, AdapterShape

_WHOLE_MODEL = "vision tower"


@dataclass(frozen=True, slots=True, order=True)
class LatencyKey:
    """What a measured time belongs to.

    Attributes:
        device: The device's name, with its threads where it is a CPU.
        kernel: The kernel's name; the model's identity where the whole tower is timed.
        rows: Rows of the weight.
        columns: Columns of the weight.
        positions: Input rows that are multiplied at once: batch size times positions.
    """

    device: str
    kernel: str
    rows: int
    columns: int
    positions: int


class LatencyTable:
    """Measured seconds by key; what was measured once is used again.

    Args:
        entries: Times that are known already.
    """

    def __init__(self, entries: Mapping[LatencyKey, float] | None = None) -> None:
        self._entries = dict(entries or {})

    @property
    def entries(self) -> dict[LatencyKey, float]:
        """All times so far, in seconds."""
        return dict(self._entries)

    def seconds(self, key: LatencyKey, measure: Callable[[], float]) -> float:
        """The time under the key, measured if it is not known yet."""
        if key not in self._entries:
            self._entries[key] = measure()
        return self._entries[key]


@dataclass(frozen=True, slots=True)
class Timing:
    """How a time is measured: the median of `repeats` runs after `warmup` runs."""

    repeats: int
    warmup: int

    def median(self, run: Callable[[], object], device: torch.device) -> float:
        """The median seconds of a run, until the device has finished it."""
        times = []
        for _ in range(self.warmup + self.repeats):
            _finish(device)
            start = time.perf_counter()
            run()
            _finish(device)
            times.append(time.perf_counter() - start)
        return statistics.median(times[self.warmup :])


def measure_latency(
    model: DualEncoder,
    configuration: Configuration,
    switch: PlanSwitch,
    *,
    batch_size: int,
    repeats: int = 10,
    warmup: int = 3,
    quantizer: QuantizerSpec | None = None,
    table: LatencyTable | None = None,
) -> float:
    """The seconds that a configuration takes for an image, in batches of `batch_size`.

    The full-precision vision tower is timed from end to end, and every distinct layer shape
    with the kernel that the model runs and with the kernel of its precision. The latency is
    the tower's time with each layer's own time replaced by its kernel's: exact for a plan in
    full precision, and never below the sum of the kernels' times. A convolution counts as
    the product with its unfolded patches; an embedding multiplies nothing. Where several
    kernels compute in a layer's precision, the fastest counts.

    Afterwards the model has the configuration's plan.

    Args:
        model: The model.
        configuration: What is timed; its adapter is, its prompt costs an image nothing.
        switch: The model's switch.
        batch_size: Images at a time.
        repeats: Timed runs, of which the median counts.
        warmup: Runs before them.
        quantizer: How inputs get their codes: it decides which int8 kernel runs.
        table: Times that are known already; new ones are added.

    Raises:
        UnavailableDevice: A layer's precision has no kernel on the model's device.
    """
    bench = _Bench(
        model.device,
        batch_size,
        Timing(repeats, warmup),
        quantizer or QuantizerSpec(),
        LatencyTable() if table is None else table,
    )
    precisions = dict(configuration.plan)
    changes = [
        (layer, precisions.get(layer.name, FULL))
        for layer in model.layers
        if layer.tower is Tower.VISION and layer.kind is not LayerKind.EMBEDDING
    ]
    replaced = [bench.layer_seconds(layer, FULL, (FLOAT32,)) for layer, _ in changes]
    kernels = [bench.layer_seconds(layer, precision) for layer, precision in changes]
    tower = bench.tower_seconds(model, switch)
    switch.to(configuration.plan)
    latency = max(tower - sum(replaced) + sum(kernels), sum(kernels))
    return (latency + bench.adapter_seconds(model, configuration)) / batch_size


@dataclass(frozen=True, slots=True)
class _Bench:
    """Times layers and towers on one device with one batch size."""

    device: torch.device
    batch_size: int
    timing: Timing
    quantizer: QuantizerSpec
    table: LatencyTable

    def layer_seconds(
        self, layer: Layer, precision: Precision, kernels: Sequence[Kernel] = ()
    ) -> float:
        """The fastest kernel's time for a batch of a layer; by default of all there are."""
        device = describe_device(self.device)
        kernels = kernels or find_kernels(precision, layer.columns, self.device, self.quantizer)
        if not kernels:
            raise UnavailableDevice(
                f"no kernel on {device} multiplies layer {layer.name} at {precision}: search "
                "w16a16, w8a8 without groups and, on a CPU, w4a16 in groups of "
                f"{', '.join(map(str, INT4_GROUPS))} or none, or put bit_operations in place "
                "of latency_s among the objectives"
            )
        positions = self.batch_size * layer.positions
        shape = (layer.rows, layer.columns, positions)
        return min(
            self.table.seconds(
                LatencyKey(device, kernel.name, *shape),
                partial(self._time_kernel, kernel, layer.name, shape),
            )
            for kernel in kernels
        )

    def tower_seconds(self, model: DualEncoder, switch: PlanSwitch) -> float:
        """The time of a batch through the vision tower in full precision."""
        name = f"{_WHOLE_MODEL} {model.identity}"
        key = LatencyKey(describe_device(self.device), name, 0, 0, self.batch_size)

        def measure() -> float:
            switch.clear()
            pixels = torch.zeros(self.batch_size, *model.image_shape, device=self.device)
            with torch.inference_mode():
                return self.timing.median(lambda: model.encode_images(pixels), self.device)

        return self.table.seconds(key, measure)

    def adapter_seconds(self, model: DualEncoder, configuration: Configuration) -> float:
        """The time of a batch through the adapter's two products; 0 without an adapter."""
        recovery = configuration.recovery
        if recovery is None or not recovery.reduction:
            return 0.0
        shape = AdapterShape.of(recovery, model.feature_width, self.quantizer)
        return sum(
            self.layer_seconds(_adapter_layer(linear, shape), shape.precision) for linear in LINEARS
        )

    def _time_kernel(self, kernel: Kernel, layer: str, shape: tuple[int, int, int]) -> float:
        rows, columns, positions = shape
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(rows, columns, generator=generator).to(self.device)
        inputs = torch.randn(positions, columns, generator=generator).to(self.device)
        range_ = InputRange(-4.0, 4.0) if self.quantizer.activations == "static" else None
        try:
            with torch.inference_mode():
                product = kernel.prepare(weight, range_)
                return self.timing.median(lambda: product(inputs), self.device)
        except (RuntimeError, NotImplementedError) as error:
            raise UnavailableDevice(
                f"the kernel {kernel.name} refuses layer {layer} with {rows} rows, {columns} "
                f"columns and {positions} positions on {describe_device(self.device)}: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error


def describe_device(device: torch.device) -> str:
    """The name that times are filed under: the processor and its threads, or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


@cache
def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _adapter_layer(linear: str, shape: AdapterShape) -> Layer:
    rows, columns = shape.matrix(linear)
    name = f"adapter.{linear}"
    return Layer(name, Tower.VISION, LayerKind.LINEAR, rows, columns, 1, name, name)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

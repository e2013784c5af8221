"""Latency: the measured time of an image, from real kernels or not at all.

An image's latency is the time that its features take: the vision tower and the adapter. Class
captions are encoded once for a task, so the text tower costs an image nothing.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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

    def seconds(self, key: LatencyKey, measure: Callable[[], float]) -> float:
        """The time under the key, measured if it is not known yet."""
        if key not in self._entries:
            self._entries[key] = measure()
        return self._entries[key]


@dataclass(frozen=True, slots=True)
class Timing:
    """How a time is measured: the median of `repeats` runs after `warmup` runs."""

    repeats: int = 10
    warmup: int = 3

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


@dataclass(frozen=True, slots=True)
class LatencyMeter:
    """Times a dual encoder's images on its device, in batches of one size.

    The full-precision vision tower is timed from end to end, and every distinct layer shape
    with the kernel that the model runs and with the kernel of its precision. The latency is
    the tower's time with each layer's own time replaced by its kernel's: exact for a plan in
    full precision, and never below the sum of the kernels' times. So it is a sum: a fixed part,
    which no plan changes, and the kernels of each layer.

    A convolution counts as the product with its unfolded patches; an embedding multiplies
    nothing. Where several kernels compute in a layer's precision, the fastest counts.

    Attributes:
        model: The model.
        switch: The model's switch.
        batch_size: Images at a time.
        timing: How often each is run.
        quantizer: How inputs get their codes: it decides which int8 kernel runs.
        table: Times that are known already; new ones are added.
    """

    model: DualEncoder
    switch: PlanSwitch
    batch_size: int
    timing: Timing = Timing()
    quantizer: QuantizerSpec = field(default_factory=QuantizerSpec)
    table: LatencyTable = field(default_factory=LatencyTable)

    def seconds(self, configuration: Configuration) -> float:
        """The seconds that a configuration takes for an image.

        Its adapter is timed; its prompt costs an image nothing. Afterwards the model has the
        configuration's plan.

        Raises:
            UnavailableDevice: A layer's precision has no kernel on the model's device.
        """
        precisions = dict(configuration.plan)
        changes = [(layer, precisions.get(layer.name, FULL)) for layer in self.model.layers]
        kernels = self.kernel_seconds(changes)
        fixed = self.fixed_seconds()
        self.switch.to(configuration.plan)
        return fixed + kernels + self._adapter_seconds(configuration) / self.batch_size

    def kernel_seconds(self, changes: Iterable[tuple[Layer, Precision]]) -> float:
        """The seconds that the kernels of some layers take for an image.

        Raises:
            UnavailableDevice: A layer's precision has no kernel on the model's device.
        """
        batches = [
            self._layer_seconds(layer, precision)
            for layer, precision in changes
            if _is_timed(layer)
        ]
        return sum(batches) / self.batch_size

    def fixed_seconds(self) -> float:
        """The seconds of an image that no plan changes: those outside of all layers' kernels.

        Where the layers alone were timed slower than the whole tower, there are none.
        """
        layers = [layer for layer in self.model.layers if _is_timed(layer)]
        replaced = sum(self._layer_seconds(layer, FULL, (FLOAT32,)) for layer in layers)
        return max(0.0, self._tower_seconds() - replaced) / self.batch_size

    @property
    def identity(self) -> list[object]:
        """What a time depends on beside the model, the quantizer and the layer's precision."""
        return [describe_device(self.model.device), self.batch_size]

    def _layer_seconds(
        self, layer: Layer, precision: Precision, kernels: Sequence[Kernel] = ()
    ) -> float:
        """The fastest kernel's time for a batch of a layer; by default of all there are."""
        device = describe_device(self.model.device)
        kernels = kernels or find_kernels(
            precision, layer.columns, self.model.device, self.quantizer
        )
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

    def _tower_seconds(self) -> float:
        """The time of a batch through the vision tower in full precision."""
        model, device = self.model, self.model.device
        name = f"{_WHOLE_MODEL} {model.identity}"
        key = LatencyKey(describe_device(device), name, 0, 0, self.batch_size)

        def measure() -> float:
            self.switch.clear()
            pixels = torch.zeros(self.batch_size, *model.image_shape, device=device)
            with torch.inference_mode():
                return self.timing.median(lambda: model.encode_images(pixels), device)

        return self.table.seconds(key, measure)

    def _adapter_seconds(self, configuration: Configuration) -> float:
        """The time of a batch through the adapter's two products; 0 without an adapter."""
        recovery = configuration.recovery
        if recovery is None or not recovery.reduction:
            return 0.0
        shape = AdapterShape.of(recovery, self.model.feature_width, self.quantizer)
        return sum(
            self._layer_seconds(_adapter_layer(linear, shape), shape.precision)
            for linear in LINEARS
        )

    def _time_kernel(self, kernel: Kernel, layer: str, shape: tuple[int, int, int]) -> float:
        rows, columns, positions = shape
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(rows, columns, generator=generator).to(self.model.device)
        inputs = torch.randn(positions, columns, generator=generator).to(self.model.device)
        range_ = InputRange(-4.0, 4.0) if self.quantizer.activations == "static" else None
        try:
            with torch.inference_mode():
                product = kernel.prepare(weight, range_)
                return self.timing.median(lambda: product(inputs), self.model.device)
        except (RuntimeError, NotImplementedError) as error:
            raise UnavailableDevice(
                f"the kernel {kernel.name} refuses layer {layer} with {rows} rows, {columns} "
                f"columns and {positions} positions on {describe_device(self.model.device)}: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error


def _is_timed(layer: Layer) -> bool:
    """Whether an image's time depends on the layer."""
    return layer.tower is Tower.VISION and layer.kind is not LayerKind.EMBEDDING


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

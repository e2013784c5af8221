"""Latency: the measured time of a sample, from real kernels or not at all.

An image's latency is the time that its features take: the vision tower and the adapter. Class
captions are encoded once for a task, so the text tower costs an image nothing. A model that
writes has two: that of reading a prompt with its picture, and that of each further token.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from bitfront.layers import Layer, LayerKind, Tower
from bitfront.objective import Objective
from bitfront.plan import Configuration
from bitfront.precision import FULL, Precision
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder, GenerativeModel, PlanSwitch
from objectives.cost.runtimes.runtime import Runtime, Timed
from objectives.cost.runtimes.stages import Stage
from objectives.recovery.adapter import LINEARS, AdapterShape


@dataclass(frozen=True, slots=True, order=True)
class LatencyKey:
    """What a measured time belongs to.

    Attributes:
        device: The device's name, with its threads where it is a CPU.
        runtime: The runtime with its version.
        format: What decides the time beside the shapes, as the runtime tells it; the model's
            identity where the whole tower is timed.
        rows: Rows of the weight.
        columns: Columns of the weight.
        positions: Input rows of one sample.
        batch_size: Samples at once.
    """

    device: str
    runtime: str
    format: str
    rows: int
    columns: int
    positions: int
    batch_size: int


class LatencyTable:
    """Measured seconds by key; what was measured once is used again.

    Args:
        entries: Times that are known already.
        file: Remembers times, a JSON line each, for all processes of a machine: the first of two
            that measure the same counts. None remembers nothing.
    """

    def __init__(
        self, entries: Mapping[LatencyKey, float] | None = None, file: Path | None = None
    ) -> None:
        self._entries = dict(entries or {})
        self._file = file
        self._recall()

    def seconds(self, key: LatencyKey, measure: Callable[[], float]) -> float:
        """The time under the key, measured if it is not known yet."""
        if key not in self._entries:
            self._recall()
        if key not in self._entries:
            found = measure()
            self._remember(key, found)
            self._recall()
            self._entries.setdefault(key, found)
        return self._entries[key]

    def _recall(self) -> None:
        """Adds what the file knows; a line that was not written to its end says nothing."""
        lines: list[str] = []
        if self._file is not None:
            with suppress(OSError, UnicodeDecodeError):
                lines = self._file.read_text(encoding="utf-8").splitlines()
        for line in lines:
            try:
                content = json.loads(line)
                seconds = float(content.pop("seconds"))
                self._entries.setdefault(LatencyKey(**content), seconds)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def _remember(self, key: LatencyKey, seconds: float) -> None:
        """Appends a line to the file; if that fails, only this process has the time."""
        if self._file is None:
            return
        line = json.dumps({**asdict(key), "seconds": seconds}) + "\n"
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # One write at the end of a file is whole, whoever else writes there.
            with self._file.open("ab", buffering=0) as file:
                file.write(line.encode())


@dataclass(frozen=True, slots=True)
class LatencyMeter:
    """Times a stage of a model in a runtime, in batches of one size.

    The stage is timed in full precision from end to end, and every distinct layer shape
    with the kernel that it has there and with the kernel of its precision. The time of a plan is
    the stage's with each layer's own time replaced by its kernel's: exact for a plan in
    full precision, and never below the sum of the kernels' times. So it is a sum: a fixed part,
    which no plan changes, and the kernels of each layer.

    Where several kernels compute in a layer's precision, the fastest counts.

    Attributes:
        model: The model.
        switch: The model's switch.
        stage: What is timed.
        runtime: Where times are taken.
        quantizer: How inputs get their codes.
        table: Times that are known already; new ones are added.
    """

    model: DualEncoder | GenerativeModel
    switch: PlanSwitch
    stage: Stage
    runtime: Runtime
    quantizer: QuantizerSpec = field(default_factory=QuantizerSpec)
    table: LatencyTable = field(default_factory=LatencyTable)

    def seconds(self, configuration: Configuration) -> float:
        """The seconds that a configuration takes for a sample.

        Its adapter is timed; its prompt is not. Afterwards the model has the configuration's plan.

        Raises:
            UnavailableDevice: A layer's precision has no kernel in the runtime.
        """
        precisions = dict(configuration.plan)
        changes = [(layer, precisions.get(layer.name, FULL)) for layer in self.model.layers]
        kernels = self.kernel_seconds(changes)
        fixed = self.fixed_seconds()
        self.switch.to(configuration.plan)
        return fixed + kernels + self._adapter_seconds(configuration) / self.stage.batch_size

    def kernel_seconds(self, changes: Iterable[tuple[Layer, Precision]]) -> float:
        """The seconds that the kernels of some layers take for a sample.

        Raises:
            UnavailableDevice: A layer's precision has no kernel in the runtime.
        """
        batches = [
            self._layer_seconds(self._placed(layer), precision)
            for layer, precision in changes
            if layer.name in self.stage.positions
        ]
        return sum(batches) / self.stage.batch_size

    def fixed_seconds(self) -> float:
        """The seconds of a sample that no plan changes: those outside of all layers' kernels.

        Where the layers alone were timed slower than the whole stage, there are none.
        """
        known = self.stage.positions
        layers = [self._placed(layer) for layer in self.model.layers if layer.name in known]
        replaced = sum(
            self._product_seconds(layer, self.runtime.own_product(layer)) for layer in layers
        )
        stage = self.stage.whole
        whole = self._seconds(stage.format, (0, 0, 0), stage.measure)
        return max(0.0, whole - replaced) / self.stage.batch_size

    @property
    def identity(self) -> list[object]:
        """What a time depends on beside the model, the quantizer and the layer's precision."""
        known: list[object] = [self.runtime.device, self.stage.batch_size]
        if self.runtime.is_target:
            known.append(self.runtime.name)
        if self.stage.figure is Objective.TOKEN_S:
            # It was once without the token's look-up and the cache that is handed on.
            known += [self.stage.figure.value, "whole step"]
        return known

    @property
    def timed_on(self) -> str:
        """Where times are taken: the runtime with its version, and the device."""
        return f"{self.runtime.name} on {self.runtime.device}"

    def _placed(self, layer: Layer) -> Layer:
        """The layer with as many positions as it has in the stage."""
        return replace(layer, positions=self.stage.positions[layer.name])

    def _layer_seconds(self, layer: Layer, precision: Precision) -> float:
        """The fastest product's time for a batch of a layer."""
        products = self.runtime.products(layer, precision)
        return min(self._product_seconds(layer, product) for product in products)

    def _product_seconds(self, layer: Layer, product: Timed) -> float:
        shape = (layer.rows, layer.columns, layer.positions)
        return self._seconds(product.format, shape, product.measure)

    def _seconds(
        self, name: str, shape: tuple[int, int, int], measure: Callable[[int], float]
    ) -> float:
        size = self.stage.batch_size
        key = LatencyKey(self.runtime.device, self.runtime.name, name, *shape, size)
        return self.table.seconds(key, partial(measure, size))

    def _adapter_seconds(self, configuration: Configuration) -> float:
        """The time of a batch through the adapter's two products; 0 without an adapter."""
        recovery, positions = configuration.recovery, self.stage.adapter_positions
        if recovery is None or not recovery.reduction or not positions:
            return 0.0
        shape = AdapterShape.of(recovery, self.model.feature_width, self.quantizer)
        return sum(
            self._layer_seconds(_adapter_layer(linear, shape, positions), shape.precision)
            for linear in LINEARS
        )


def _adapter_layer(linear: str, shape: AdapterShape, positions: int) -> Layer:
    rows, columns = shape.matrix(linear)
    name = f"adapter.{linear}"
    return Layer(name, Tower.VISION, LayerKind.LINEAR, rows, columns, positions, name, name)

"""Cells: what an option of one block costs, and what it does to the model."""

from collections.abc import Sequence

from bitfront.errors import InvalidMetric, UnavailableDevice
from bitfront.identity.keys import quantizer_identity
from bitfront.layers import Block, Layer
from bitfront.objective import Objective
from bitfront.plan import Option, Plan
from bitfront.precision import Precision
from bitfront.profile import Cell
from bitfront.quant.blocks import blocked_nbytes
from bitfront.quant.inputs import bounds_to_json
from bitfront.spec import JobSpec
from bitfront.vlm import PlanSwitch
from objectives.cost.costs import layer_bit_operations, layer_nbytes
from objectives.cost.latency import LatencyMeter
from objectives.data.task import Task
from objectives.profiling.full_precision import FULL_PLAN, FullPrecisionReference
from objectives.profiling.measures import build_measure


class CellMeter:
    """Measures the options of blocks, each with all other blocks in full precision.

    Args:
        task: Its calibration split is what errors are measured on.
        switch: The model's switch; it is back at full precision after each measurement.
        spec: The job, for its quantizer and error measure.
        latency_meters: What times the layers, where the job needs their times.
    """

    def __init__(
        self,
        task: Task,
        switch: PlanSwitch,
        spec: JobSpec,
        latency_meters: Sequence[LatencyMeter] = (),
    ) -> None:
        self._model = task.model
        self._switch = switch
        self._spec = spec
        self._latency_meters = latency_meters
        self._layers = {layer.name: layer for layer in task.model.layers}
        reference = FullPrecisionReference(task, switch, spec.data.seed)
        self._measure = build_measure(spec.profile.measure, reference, spec.space)

    @property
    def identity(self) -> str:
        """The hash of what a cell's error depends on beside model, samples and option."""
        bounds = bounds_to_json(self._switch.bounds)
        timed_on = [part for meter in self._latency_meters for part in meter.identity]
        return quantizer_identity(self._spec, self._model.device.type, bounds, timed_on)

    def measure(self, block: Block, option: Option) -> Cell:
        """The cost and the error of an option.

        Raises:
            InvalidMetric: The error is not finite.
            SpecError: The option does not fit the block, or names an unknown input range.
        """
        plan = Plan.from_options([(block, option)])
        try:
            error = self._measure.error(block, plan)
        finally:
            self._switch.to(FULL_PLAN)
        if not 0.0 <= error < float("inf"):
            raise InvalidMetric(f"{self._spec.profile.measure} of {block.name}", str(error))
        if block.is_cache:
            return self._cache_cell(block, option, error)
        members = [
            (self._layers[name], precision)
            for name, precision in zip(block.layers, option.precisions, strict=True)
        ]
        return Cell(
            block.name,
            option,
            sum(self._nbytes(layer, p) for layer, p in members),
            sum(layer_bit_operations(layer, p) for layer, p in members),
            error,
            sum(layer.weights * precision.weight_bits for layer, precision in members),
            latency_s=self._seconds(Objective.LATENCY_S, members),
            token_s=self._seconds(Objective.TOKEN_S, members),
        )

    def _cache_cell(self, block: Block, option: Option, error: float) -> Cell:
        """A place of the KV cache takes nothing of what layers take."""
        timed = {meter.stage.figure: 0.0 for meter in self._latency_meters}
        return Cell(
            block.name,
            option,
            0,
            0.0,
            error,
            0,
            latency_s=timed.get(Objective.LATENCY_S),
            token_s=timed.get(Objective.TOKEN_S),
        )

    def _nbytes(self, layer: Layer, precision: Precision) -> int:
        if self._spec.is_blocked:
            return blocked_nbytes(layer, precision)
        return layer_nbytes(layer, precision, self._spec.quantizer)

    def _seconds(
        self, figure: Objective, members: Sequence[tuple[Layer, Precision]]
    ) -> float | None:
        """The seconds of the layers' kernels; None where one has none, or nobody asked."""
        for meter in self._latency_meters:
            if meter.stage.figure is figure:
                try:
                    return meter.kernel_seconds(members)
                except UnavailableDevice:
                    return None
        return None

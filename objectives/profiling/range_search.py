"""Input ranges with the least error of a layer's output, searched on calibration samples."""

import torch
from torch import Tensor

from bitfront.quant.inputs import InputRange
from bitfront.quant.ranges import MAX_ROWS, evenly_spread, searched_range
from bitfront.vlm.layers.rows import has_rows, multiplied_rows
from bitfront.vlm.plan_switch import PlanSwitch
from objectives.data.task import Task
from objectives.profiling.calibration import calibration_batches, watch_calibration


class RangeSearch:
    """The searched range of each layer's input in the full model, found when first asked for.

    The first question takes any plan off the model and runs the calibration split through it,
    which keeps about `MAX_ROWS` rows of each input.

    Args:
        task: The model with its samples.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._rows: dict[str, Tensor] = {}
        self._found: dict[tuple[str, int], InputRange | None] = {}

    def __call__(self, layer: str, bits: int) -> InputRange | None:
        """The layer's range for inputs of that width.

        None where its input was never seen, or is that of a convolution with groups.
        """
        if (layer, bits) not in self._found:
            if not self._rows:
                self._rows = self._gather()
            rows = self._rows.get(layer)
            weight = self._task.model.weight(layer)
            found = None if rows is None else searched_range(rows, weight, bits)
            self._found[layer, bits] = found
        return self._found[layer, bits]

    def _gather(self) -> dict[str, Tensor]:
        model = self._task.model
        if isinstance(model.switch, PlanSwitch):
            model.switch.take_off()
        batches = calibration_batches(self._task)
        towers = {layer.name: layer.tower for layer in model.layers}
        gathered: dict[str, list[Tensor]] = {}
        last: tuple[Tensor, Tensor] | None = None  # layers that share an input share its rows

        def gather(layer: str, inputs: Tensor) -> None:
            nonlocal last
            module = model.multiplying(layer)[0]
            if not has_rows(module):
                return
            if last is None or last[0] is not inputs:
                quota = -(-MAX_ROWS // batches[towers[layer]])
                rows = multiplied_rows(module, inputs)
                last = inputs, evenly_spread(rows, quota).float()
            gathered.setdefault(layer, []).append(last[1])

        watch_calibration(self._task, gather)
        return {layer: torch.cat(parts) for layer, parts in gathered.items()}

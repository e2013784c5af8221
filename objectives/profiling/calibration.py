"""Static ranges of the layers' inputs, from one pass over the calibration split."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.layers import Tower
from bitfront.quant.inputs import InputRange
from objectives.data.split_name import SplitName
from objectives.data.task import Task

SAMPLED_VALUES = 1 << 18

# Layer name to clip to range.
Ranges = Mapping[str, Mapping[float, InputRange]]


def range_table(ranges: Ranges) -> dict[str, dict[float, tuple[float, float]]]:
    """The ends of every range, as the recipes of cache keys take them."""
    return {
        layer: {clip: (found.low, found.high) for clip, found in known.items()}
        for layer, known in ranges.items()
    }


def watch_calibration(task: Task, callback: Callable[[str, Tensor], None]) -> None:
    """Shows `callback` every layer's input while the calibration split runs through.

    It is called with `(layer name, input)`, batch by batch, without gradients.
    """
    with torch.no_grad(), task.model.watch_inputs(callback):
        for stream in task.streams(SplitName.CALIBRATION):
            for batch in range(len(stream.sizes)):
                stream.run(batch)


def calibration_batches(task: Task) -> dict[Tower, int]:
    """How many batches of a calibration run go through each tower."""
    return {
        tower: len(stream.sizes)
        for stream in task.streams(SplitName.CALIBRATION)
        for tower in stream.towers
    }


def calibrate(task: Task, clips: Sequence[float]) -> dict[str, dict[float, InputRange]]:
    """The range of every layer's input for each clip percentile, in one pass.

    The clip 1.0 is the exact minimum and maximum. Any other clip `c` runs from the quantile
    `1 - c` to the quantile `c` (linear between values) of at most `SAMPLED_VALUES` values a
    layer, picked at a fixed stride: a run keeps 1 MiB a layer however long the split is, and
    equal runs give equal ranges.

    Args:
        task: Its calibration split runs through its model, which is in full precision.
        clips: Percentiles in (0.5, 1.0].

    Returns:
        Layer name to clip to range; a layer whose input is not a number (an embedding) is left
        out.

    Raises:
        InvalidModel: An input is not finite.
    """
    batches = calibration_batches(task)
    towers = {layer.name: layer.tower for layer in task.model.layers}
    gathered: dict[str, _Values] = {}

    def gather(layer: str, inputs: Tensor) -> None:
        if layer not in gathered:
            gathered[layer] = _Values(layer, SAMPLED_VALUES // batches[towers[layer]])
        gathered[layer].add(inputs)

    watch_calibration(task, gather)
    return {layer: values.ranges(clips) for layer, values in gathered.items()}


class _Values:
    """The extremes of a layer's inputs, and a sample of `quota` values a batch."""

    def __init__(self, layer: str, quota: int) -> None:
        self._layer = layer
        self._quota = max(1, quota)
        self._low = math.inf
        self._high = -math.inf
        self._sample: list[Tensor] = []

    def add(self, inputs: Tensor) -> None:
        low, high = (value.item() for value in torch.aminmax(inputs.float()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InvalidModel(
                f"the input of layer {self._layer} is not finite on the calibration samples: "
                "check the model's weights and data type"
            )
        self._low, self._high = min(self._low, low), max(self._high, high)
        stride = max(1, math.ceil(inputs.numel() / self._quota))
        # A stride that shares a factor with the channels would see some channels only.
        while math.gcd(stride, inputs.shape[-1]) > 1:
            stride += 1
        self._sample.append(inputs.flatten()[::stride].float().cpu())

    def ranges(self, clips: Sequence[float]) -> dict[float, InputRange]:
        sample = torch.cat(self._sample).numpy()
        ranges = {}
        for clip in clips:
            low, high = self._low, self._high
            if clip < 1.0:
                low, high = np.quantile(sample, [1 - clip, clip]).tolist()
            ranges[clip] = InputRange(low, high)
        return ranges

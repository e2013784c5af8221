"""The relative error of weights and inputs, weighed by how important each layer is."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bitfront.layers import Block, Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import InputQuantizer
from bitfront.vlm.plan_switch import quantized_input
from objectives.profiling.full_precision import FullPrecisionReference

Importance = Callable[[FullPrecisionReference, Tower], Mapping[str, float]]
"""The importance of every layer that the tower's stream runs through; never negative."""

_FULL_BITS = 16


@dataclass(slots=True)
class _Sums:
    """Sums of squares over all that went into a layer: of the change, and of the input."""

    change: float = 0.0
    size: float = 0.0

    @property
    def share(self) -> float:
        return self.change / self.size if self.size > 0 else self.change


class RelativeError:
    """`sum_l i_l (|W' - W|^2 / |W|^2 + sum_x |x' - x|^2 / sum_x |x|^2)`; no unit.

    `W` are the weights of the block's layers, `x` their inputs in full precision on the
    calibration split, `i_l` the importance of a layer. An embedding has no quantized input. What is
    measured of inputs takes one run of the model for each width; weights need no run.
    """

    def __init__(self, reference: FullPrecisionReference, importance: Importance) -> None:
        self._reference = reference
        self._importance = importance
        self._layers = {layer.name: layer for layer in reference.model.layers}
        self._importances: dict[str, float] = {}
        self._inputs: dict[tuple[str, int, float], float] = {}

    def error(self, block: Block, plan: Plan) -> float:
        """The weighted sum over the block's layers."""
        if block.layers[0] not in self._importances:
            self._importances |= self._importance(self._reference, block.tower)
        return sum(
            self._importances[layer]
            * (self._weight_error(layer, precision) + self._input_error(layer, precision))
            for layer, precision in plan
        )

    def _weight_error(self, layer: str, precision: Precision) -> float:
        own = self._reference.model.weight(layer).double()
        rounded = self._reference.switch.fake_quantized_weight(layer, precision).double()
        size = float(own.square().sum())
        change = float((rounded - own).square().sum())
        return change / size if size > 0 else change

    def _input_error(self, layer: str, precision: Precision) -> float:
        rounds = self._reference.switch.quantizer.rounds
        if not precision.quantizes_input or not rounds(self._layers[layer].kind):
            return 0.0
        key = (layer, precision.activation_bits, precision.clip)
        if key not in self._inputs:
            tower = self._layers[layer].tower
            self._measure_inputs(tower, precision.activation_bits, precision.clip)
        return self._inputs[key]

    def _measure_inputs(self, tower: Tower, bits: int, clip: float) -> None:
        """The inputs' relative error of every layer that the tower's stream runs through."""
        reference = self._reference
        reference.switch.clear()
        stream = reference.stream(tower)
        precision = Precision(_FULL_BITS, bits, clip=clip)
        sums: dict[str, _Sums] = {}
        with ExitStack() as stack:
            for layer in reference.model.layers:
                if layer.tower in stream.towers and reference.switch.quantizer.rounds(layer.kind):
                    own = sums[layer.name] = _Sums()
                    quantize = reference.switch.input_quantizer(layer.name, precision)
                    assert quantize is not None, "an input in 16 bits has no error"
                    for module in reference.model.multiplying(layer.name):
                        watch = partial(_add, own, quantize)
                        stack.callback(module.register_forward_pre_hook(watch).remove)
            with torch.no_grad():
                for batch in range(len(stream.sizes)):
                    stream.run(batch)
        self._inputs |= {(name, bits, clip): own.share for name, own in sums.items()}


def _add(
    sums: _Sums, quantize: InputQuantizer, module: nn.Module, args: tuple[Tensor, ...]
) -> None:
    """A forward pre-hook that adds up an input and its change."""
    given = args[0].double()
    sums.change += float(
        (quantized_input(quantize, module, args[0]).double() - given).square().sum()
    )
    sums.size += float(given.square().sum())

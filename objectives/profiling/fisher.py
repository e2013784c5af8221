"""The error of a plan on weights and inputs, by the Fisher information of the model's output."""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain

import torch
from torch import Tensor, nn

from bitfront.layers import Block, Layer, Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import InputQuantizer
from bitfront.vlm.plan_switch import quantized_input
from objectives.profiling.full_precision import DRAWS, FullPrecisionReference

_FULL_BITS = 16


class FisherError:
    """`sum_l (sum_w F_w (w' - w)^2 + mean_x sum_e g_e^2 (x'_e - x_e)^2) / 2`, in nats.

    The first sum runs over the weights of the block's layers, with the diagonal Fisher
    information `F_w = mean_x E_y[(d log p(y | x) / dw)^2]`, the second over the elements of
    their inputs, with `g` the same gradient there. Both are measured once, with labels drawn
    from the model (see `FullPrecisionReference.output_gradients`), so an option costs no run of
    the model.
    """

    def __init__(self, reference: FullPrecisionReference) -> None:
        self._reference = reference
        self._layers = {layer.name: layer for layer in reference.model.layers}
        self._information: dict[str, Tensor] = {}
        self._input_errors: dict[tuple[str, int, float], float] = {}

    def error(self, block: Block, plan: Plan) -> float:
        """The second-order estimate of the output's divergence."""
        if block.layers[0] not in self._information:
            self._information |= self._measure_information(block.tower)
        return sum(
            self._weight_error(layer, precision) + self._input_error(layer, precision)
            for layer, precision in plan
        )

    def _weight_error(self, layer: str, precision: Precision) -> float:
        rounded = self._reference.switch.fake_quantized_weight(layer, precision)
        change = rounded - self._reference.model.weight(layer)
        return float((self._information[layer] * change.double().square()).sum()) / 2

    def _input_error(self, layer: str, precision: Precision) -> float:
        rounds = self._reference.switch.quantizer.rounds
        if not precision.quantizes_input or not rounds(self._layers[layer].kind):
            return 0.0
        key = (layer, precision.activation_bits, precision.clip)
        if key not in self._input_errors:
            tower = self._layers[layer].tower
            self._measure_inputs(tower, precision.activation_bits, precision.clip)
        return self._input_errors[key]

    def _measure_information(self, tower: Tower) -> dict[str, Tensor]:
        """`F_w` of every layer that the tower's stream runs through."""
        reference = self._reference
        towers = reference.stream(tower).towers
        weights = {
            layer.name: list(
                dict.fromkeys(
                    module.get_parameter("weight") for module in reference.model.modules(layer.name)
                )
            )
            for layer in reference.model.layers
            if layer.tower in towers
        }
        sums = {layer: torch.zeros(()).double() for layer in weights}

        def harvest() -> None:
            for layer, copies in weights.items():
                parts = [copy.grad.flatten(1).double() for copy in copies if copy.grad is not None]
                if parts:  # questions without images never pass the vision tower
                    sums[layer] = sums[layer] + torch.stack(parts).sum(dim=0).square()
                for copy in copies:
                    copy.grad = None

        with ExitStack() as stack:
            for copy in chain.from_iterable(weights.values()):
                stack.callback(copy.requires_grad_, False)  # noqa: FBT003 - torch's argument
                copy.requires_grad_()
            reference.backward(tower, harvest)
        return {layer: total / (DRAWS * reference.predictions) for layer, total in sums.items()}

    def _measure_inputs(self, tower: Tower, bits: int, clip: float) -> None:
        """The second term's summand of every layer that the tower's stream runs through."""
        reference = self._reference
        towers = reference.stream(tower).towers
        precision = Precision(_FULL_BITS, bits, clip=clip)
        sums: dict[str, float] = {}
        with ExitStack() as stack:
            for layer in reference.model.layers:
                if layer.tower in towers and reference.switch.quantizer.rounds(layer.kind):
                    sums[layer.name] = 0.0
                    quantize = reference.switch.input_quantizer(layer.name, precision)
                    assert quantize is not None, "an input in 16 bits has no error"
                    watch = _watch(layer, quantize, sums)
                    for module in reference.model.multiplying(layer.name):
                        stack.callback(module.register_forward_pre_hook(watch).remove)
            reference.backward(tower)
        for name, total in sums.items():
            error = total / (2 * DRAWS * reference.predictions)
            self._input_errors[name, bits, clip] = error


def _watch(
    layer: Layer, quantize: InputQuantizer, sums: dict[str, float]
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[object, ...]]:
    """A forward pre-hook that adds up `g^2 (x' - x)^2` when the gradient comes back."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[object, ...]:
        given, *rest = args
        # Layers that share an input each get an alias, so that each sees its own gradient.
        own = given.view_as(given) if given.requires_grad else given.detach().requires_grad_()
        change = (quantized_input(quantize, module, given.detach()) - given.detach()).double()

        def add(gradient: Tensor) -> None:
            sums[layer.name] += float((gradient.double() * change).square().sum())

        own.register_hook(add)  # type: ignore[no-untyped-call]  # torch leaves it bare
        return own, *rest

    return hook

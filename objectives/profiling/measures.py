"""What a cell's error may measure; each measure is 0 for full precision and never negative.

`output_kl`, `gradient`, `fisher` and `gauss_newton` estimate the same thing, the divergence of
the model's output in nats: the first measures it, the others expand it to second order around
full precision, at the block's output, at its weights and inputs, and along the change of its
layers' outputs. `loss_delta` measures it around 8 bits. The others are relative.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from bitfront.layers import Block, input_groups
from bitfront.plan import Plan
from bitfront.spec import ErrorMeasure, SpaceSpec
from objectives.execution.similarity import divergence_nats
from objectives.profiling.entropy import measure_entropies
from objectives.profiling.fisher import FisherError
from objectives.profiling.full_precision import DRAWS, FULL_PLAN, FullPrecisionReference
from objectives.profiling.gauss_newton import GaussNewtonError
from objectives.profiling.layerwise import layer_input_modification, z_score_distribution
from objectives.profiling.loss_delta import LossDelta
from objectives.profiling.masked import masked_sensitivity
from objectives.profiling.relative import RelativeError
from objectives.profiling.relevance import layer_relevance

ENTROPY_BITS = 4


class Measure(Protocol):
    """The error of putting a plan onto the layers of one block."""

    def error(self, block: Block, plan: Plan) -> float:
        """The error; `plan` names the block's layers only."""


class OutputDivergence:
    """`mean_x KL(p(. | x) || q(. | x))` over the calibration split's predictions, in nats.

    `p` and `q` are the softmax of the task's logits, in full precision and with the plan on:
    over all classes for an image, over the vocabulary for each token of an answer, after the
    right tokens before it. They are computed in float64.
    """

    def __init__(self, reference: FullPrecisionReference) -> None:
        self._reference = reference

    def error(self, block: Block, plan: Plan) -> float:
        """The divergence under the plan."""
        reference, stream = self._reference, self._reference.stream(block.tower)
        output = reference.runner.run(stream, plan, keep=False)
        expected = reference.scores(stream, reference.outputs[stream.key])
        return divergence_nats(expected, reference.scores(stream, output))


class LayerOutputs:
    """What layers of a block give in full precision and under a plan, batch by batch."""

    def __init__(self, reference: FullPrecisionReference) -> None:
        self._reference = reference
        self._full: dict[str, list[Tensor]] = {}

    def changes(
        self, block: Block, layers: Sequence[str], plan: Plan
    ) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """For each layer and call, the output in full precision and its change, in float64."""
        if list(self._full) != list(layers):
            self._full = self._record(block, layers, FULL_PLAN)
        changed = self._record(block, layers, plan)
        return {
            layer: [
                (full.double(), other.double() - full.double())
                for full, other in zip(self._full[layer], changed[layer], strict=True)
            ]
            for layer in layers
        }

    def _record(self, block: Block, layers: Sequence[str], plan: Plan) -> dict[str, list[Tensor]]:
        return self._reference.runner.observe(self._reference.stream(block.tower), plan, layers)


class WeightedOutput:
    """`mean_x sum_e g_e^2 (y'_e - y_e)^2 / 2` over the elements of the block's outputs, in nats.

    `y` are the outputs of the block's last layers (all that share the last input, such as q, k
    and v), `y'` the same under the plan, and `g` the gradients of the model's own loss there (see
    `FullPrecisionReference.output_gradients`): the error that BRECQ
    (https://arxiv.org/abs/2102.05426) reconstructs blocks by.
    """

    def __init__(self, reference: FullPrecisionReference) -> None:
        self._reference = reference
        self._layers = {layer.name: layer for layer in reference.model.layers}
        self._outputs = LayerOutputs(reference)
        self._weights: dict[str, list[Tensor]] = {}

    def error(self, block: Block, plan: Plan) -> float:
        """The weighted squared change of the block's outputs."""
        last = input_groups(block, self._layers)[-1].layers
        if list(self._weights) != list(last):
            self._weights = self._squared_gradients(block, last)
        changes = self._outputs.changes(block, last, plan)
        total = sum(
            float((weight * change.square()).sum())
            for layer in last
            for weight, (_, change) in zip(self._weights[layer], changes[layer], strict=True)
        )
        return total / (2 * self._reference.predictions)

    def _squared_gradients(self, block: Block, layers: Sequence[str]) -> dict[str, list[Tensor]]:
        """The mean of `g^2` over the draws, for every call of each layer."""
        reference = self._reference
        calls: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        with ExitStack() as stack:
            for layer, outputs in calls.items():
                # Of a tied weight, the output is what it multiplies, as in `StreamRunner.observe`.
                for module in reference.model.multiplying(layer) or reference.model.modules(layer):
                    watch = partial(_watch, outputs)
                    stack.callback(module.register_forward_hook(watch).remove)
            reference.backward(block.tower)
        return {layer: _mean_squares(outputs) for layer, outputs in calls.items()}


def _watch(outputs: list[Tensor], _module: nn.Module, _args: object, output: Tensor) -> Tensor:
    """A forward hook that keeps an output where its gradient will arrive."""
    outputs.append(output.detach().requires_grad_())
    return outputs[-1]


def _mean_squares(calls: Sequence[Tensor]) -> list[Tensor]:
    """The mean squared gradient over the draws, for every call of a draw."""
    squares = [
        torch.zeros_like(call) if call.grad is None else call.grad.square() for call in calls
    ]
    each = len(squares) // DRAWS
    return [torch.stack(squares[call::each]).double().mean(dim=0) for call in range(each)]


class EntropyWeightedOutput:
    """`mean_l H_l * sum_e (y'_e - y_e)^2 / sum_e y_e^2` over the block's layers; no unit.

    `H_l` is the entropy of the layer's input (Q-VLM, Eq 5) at `ENTROPY_BITS` bits, `y` its
    output in full precision, and `y'` the same with the plan on the whole block. An embedding
    has no quantized input: it counts with 1.
    """

    def __init__(self, reference: FullPrecisionReference) -> None:
        self._outputs = LayerOutputs(reference)
        reference.switch.clear()
        ranges = reference.switch.ranges
        entropies = measure_entropies(reference.task, ranges, ENTROPY_BITS)
        self._entropies = {
            entry.layer: entry.entropy if entry.layer in ranges else 1.0 for entry in entropies
        }

    def error(self, block: Block, plan: Plan) -> float:
        """The mean weighted relative error of the layers."""
        outputs = self._outputs.changes(block, block.layers, plan)
        total = 0.0
        for layer in block.layers:
            pairs = outputs[layer]
            change = sum(float(change.square().sum()) for _, change in pairs)
            size = sum(float(full.square().sum()) for full, _ in pairs)
            total += self._entropies[layer] * (change / size if size > 0 else change)
        return total / len(block.layers)


def build_measure(
    kind: ErrorMeasure, reference: FullPrecisionReference, space: SpaceSpec
) -> Measure:
    """The measure of that kind, for the precisions of a space."""
    match kind:
        case ErrorMeasure.OUTPUT_KL:
            return OutputDivergence(reference)
        case ErrorMeasure.GRADIENT:
            return WeightedOutput(reference)
        case ErrorMeasure.FISHER:
            return FisherError(reference)
        case ErrorMeasure.GAUSS_NEWTON:
            return GaussNewtonError(reference, space)
        case ErrorMeasure.ENTROPY:
            return EntropyWeightedOutput(reference)
        case ErrorMeasure.LOSS_DELTA:
            return LossDelta(reference, space)
        case ErrorMeasure.LIM:
            return RelativeError(reference, layer_input_modification)
        case ErrorMeasure.ZD:
            return RelativeError(reference, z_score_distribution)
        case ErrorMeasure.MASKED:
            return RelativeError(reference, masked_sensitivity)
        case ErrorMeasure.RELEVANCE:
            return RelativeError(reference, layer_relevance)

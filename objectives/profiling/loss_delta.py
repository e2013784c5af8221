"""The error of an option as what it adds to the all-8-bit model (CalibTIP, arXiv:2006.10518)."""

from dataclasses import replace
from functools import cached_property

from torch import Tensor

from bitfront.choices import layer_precisions
from bitfront.layers import Block
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.spec import SpaceSpec
from objectives.execution.similarity import divergence_nats
from objectives.profiling.full_precision import FullPrecisionReference

BITS = 8


class LossDelta:
    """`max(0, L(8 bits, but the plan in the block) - L(8 bits))`, in nats.

    The measured loss deltas of CalibTIP's integer program (section 3.3), with the divergence from
    full precision as the loss `L`: it needs no labels. All other layers have the precision of their
    space that is nearest to 8 bits, with a clip of 1.
    """

    def __init__(self, reference: FullPrecisionReference, space: SpaceSpec) -> None:
        self._reference = reference
        self._base = {
            layer.name: min(
                layer_precisions(layer, space, reference.switch.quantizer), key=_distance
            )
            for layer in reference.model.layers
        }

    def error(self, block: Block, plan: Plan) -> float:
        """What the plan adds; 0 where it takes away."""
        stream = self._reference.stream(block.tower)
        changed = replace(Plan.of({**self._base, **dict(plan)}), cache=plan.cache)
        output = self._reference.runner.run(stream, changed, keep=False)
        return max(0.0, self._loss({**self._outputs, stream.key: output}) - self._base_loss)

    def _loss(self, outputs: dict[str, Tensor]) -> float:
        task, full = self._reference.task, self._reference.outputs
        return divergence_nats(task.scores(full), task.scores(outputs))

    @cached_property
    def _outputs(self) -> dict[str, Tensor]:
        base = Plan.of(self._base)
        runner = self._reference.runner
        return {stream.key: runner.run(stream, base) for stream in self._reference.streams}

    @cached_property
    def _base_loss(self) -> float:
        return self._loss(self._outputs)


def _distance(precision: Precision) -> tuple[int, int, int, float]:
    """How far a precision is from 8 bits, one scale a channel and no clip."""
    weight, inputs = precision.weight_bits - BITS, precision.activation_bits - BITS
    return abs(weight), abs(inputs), precision.group, -precision.clip

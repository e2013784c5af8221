"""The error of a plan by the Gauss-Newton matrix of the model's output, from one backward pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from bitfront.choices import layer_precisions
from bitfront.layers import Block, Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import InputQuantizer
from bitfront.spec import SpaceSpec
from bitfront.vlm.plan_switch import quantized_input
from objectives.execution.streams import Stream
from objectives.profiling.full_precision import FullPrecisionReference

# A draw gives one number a sample, but only one for all captions together.
SAMPLE_DRAWS = 1
CAPTION_DRAWS = 16

_Choice = tuple[str, Precision]


class GaussNewtonError:
    """`mean_x E_y[(sum_l <g_l, y'_l - y_l>)^2] / 2` over the layers of a block, in nats.

    `y_l` is what layer `l` gives in full precision, `y'_l` the same product with the rounded
    weight and input on the full model's input, and `g_l` the gradient there of `-log p(y | x)`,
    with labels drawn from the model (see `FullPrecisionReference.output_gradients`). To first
    order the sum is how much the log-likelihood changes, so that the expectation of its square is
    `d^T F d` with the whole Fisher matrix `F` of the block, which for a softmax is the
    generalized Gauss-Newton matrix (Martens, arXiv:1412.1193, section 9): errors of tokens,
    weights and layers that cancel or add up do so here, where a diagonal, as in `FisherError`,
    adds up their squares.

    One backward pass a tower and draw gives the sums of all layers at every precision of the
    space; each costs one product of its layer, and no option of a block costs anything more.
    """

    def __init__(self, reference: FullPrecisionReference, space: SpaceSpec) -> None:
        self._reference = reference
        self._space = space
        self._changes: dict[_Choice, Tensor] = {}

    def error(self, block: Block, plan: Plan) -> float:
        """The second-order estimate of the output's divergence."""
        changes = [self._change(block, layer, precision) for layer, precision in plan]
        squares = torch.stack(changes).sum(dim=0).square()
        draws = _draws(self._reference.stream(block.tower))
        return float(squares.sum()) / (2 * draws * self._reference.predictions)

    def _change(self, block: Block, layer: str, precision: Precision) -> Float[Tensor, " n"]:
        """`<g, y' - y>` of one layer, for every sample and draw."""
        if (layer, precision) not in self._changes:
            self._changes |= self._measure(block.tower, (layer, precision))
        return self._changes[layer, precision]

    def _measure(self, tower: Tower, asked: _Choice) -> dict[_Choice, Tensor]:
        """The changes that are not known yet, of all layers that the tower's stream meets."""
        reference = self._reference
        stream = reference.stream(tower)
        wanted = {
            layer.name: [
                precision
                for precision in layer_precisions(layer, self._space, reference.switch.quantizer)
                if (layer.name, precision) not in self._changes
            ]
            for layer in reference.model.layers
            if layer.tower in stream.towers
        }
        if asked[1] not in wanted[asked[0]]:
            wanted[asked[0]].append(asked[1])
        products = [
            _Products(module, dict(self._rounded(layer, module, precisions)))
            for layer, precisions in wanted.items()
            for module in reference.model.modules(layer)
        ]
        reference.switch.clear()
        gradients = list(reference.output_gradients(stream, _draws(stream)))
        by_batch = zip(*(torch.split(whole, list(stream.rows)) for whole in gradients), strict=True)
        has_samples = stream.are_independent and self._has_samples_first(stream, wanted)
        batches = [
            _batch_changes(
                stream, batch, parts, products, stream.sizes[batch] if has_samples else 1
            )
            for batch, parts in enumerate(by_batch)
        ]
        found = {}
        for choice in batches[0]:
            changes = torch.cat([batch[choice] for batch in batches])
            # All captions together have one gradient, whatever batches they are in.
            found[choice] = (changes if stream.are_independent else changes.sum(dim=0)).flatten()
        return found

    def _rounded(
        self, layer: str, module: nn.Module, precisions: Iterable[Precision]
    ) -> Iterator[tuple[_Choice, tuple[Tensor, InputQuantizer | None]]]:
        """The weight and the input quantizer of each precision, as a module takes them."""
        switch, own = self._reference.switch, module.get_parameter("weight")
        for precision in precisions:
            weight = switch.fake_quantized_weight(layer, precision).view_as(own)
            multiplies = not isinstance(module, nn.Embedding)
            quantize = switch.input_quantizer(layer, precision) if multiplies else None
            yield (layer, precision), (weight, quantize)

    def _has_samples_first(self, stream: Stream, layers: Iterable[str]) -> bool:
        """Whether the outputs of all layers hold one sample after the other.

        One and two samples tell: twice the rows of the first dimension, and else the same shape.
        """
        largest = max(range(len(stream.sizes)), key=lambda batch: stream.sizes[batch])
        modules = [module for layer in layers for module in self._reference.model.modules(layer)]
        one, two = (_output_shapes(stream, largest, count, modules) for count in (1, 2))
        return len(one) == len(two) and all(
            2 * few[0] == many[0] and few[1:] == many[1:]
            for few, many in zip(one, two, strict=True)
        )


def _draws(stream: Stream) -> int:
    return SAMPLE_DRAWS if stream.are_independent else CAPTION_DRAWS


def _output_shapes(
    stream: Stream, batch: int, count: int, modules: Iterable[nn.Module]
) -> list[torch.Size]:
    """The shape of every output of some modules, for the first samples of a batch."""
    shapes: list[torch.Size] = []

    def note(_module: nn.Module, _args: object, output: Tensor) -> None:
        shapes.append(output.shape)

    with ExitStack() as stack, torch.no_grad():
        for module in modules:
            stack.callback(module.register_forward_hook(note).remove)
        stream.run(batch, rows=slice(count))
    return shapes


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a module: what went in, and what came out, where gradients arrive."""

    products: "_Products"
    args: tuple[Tensor, ...]
    output: Tensor

    def changes(self) -> Iterator[tuple[_Choice, Tensor]]:
        """What the module gives under each choice, less what it gave."""
        module, (inputs, *others) = self.products.module, self.args
        with torch.no_grad():
            for choice, (weight, quantize) in self.products.choices.items():
                given = inputs if quantize is None else quantized_input(quantize, module, inputs)
                changed = functional_call(module, {"weight": weight}, (given, *others))
                yield choice, changed - self.output


@dataclass(frozen=True, slots=True)
class _Products:
    """A module, and the weight and input quantizer of each choice of its layer."""

    module: nn.Module
    choices: Mapping[_Choice, tuple[Tensor, InputQuantizer | None]]

    def watch(
        self, calls: list[_Call], _module: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        """A forward hook that keeps a call."""
        own = output if output.requires_grad else output.detach().requires_grad_()
        calls.append(_Call(self, tuple(given.detach() for given in args), own))
        return own


def _batch_changes(
    stream: Stream,
    batch: int,
    gradients: Sequence[Float[Tensor, "rows d"]],
    products: Sequence[_Products],
    units: int,
) -> dict[_Choice, Float[Tensor, "units draws"]]:
    """`<g, y' - y>` of every choice in a batch: 0 where its layer is not called.

    Args:
        stream: What runs.
        batch: The batch's number.
        gradients: At the batch's output, one for each draw.
        products: The modules that are watched.
        units: The samples to tell apart; they count as one where a layer sees other ones, as a
            vision tower does where some questions have no image.
    """
    calls: list[_Call] = []
    with ExitStack() as stack:
        for each in products:
            watch = partial(each.watch, calls)
            stack.callback(each.module.register_forward_hook(watch).remove)
        with torch.enable_grad():
            output = stream.run(batch)
    arrived = [
        torch.autograd.grad(
            output, [call.output for call in calls], part, retain_graph=True, allow_unused=True
        )
        for part in gradients
    ]
    if any(len(call.output) % units for call in calls):
        units = 1
    found = {
        choice: torch.zeros(units, len(gradients), dtype=torch.float64)
        for each in products
        for choice in each.choices
    }
    for call, own in zip(calls, zip(*arrived, strict=True), strict=True):
        reached = [draw for draw, gradient in enumerate(own) if gradient is not None]
        if not reached:
            continue
        factors = torch.stack([own[draw].reshape(units, -1) for draw in reached], dim=2)
        for choice, change in call.changes():
            sums = torch.bmm(change.reshape(units, 1, -1), factors)
            found[choice][:, reached] += sums.squeeze(1).double().cpu()
    return found

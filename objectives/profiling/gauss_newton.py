"""The error of a plan by the Gauss-Newton matrix of the model's output, from one backward pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from objectives.execution.section import Section
from objectives.execution.streams import Stream
from objectives.profiling.full_precision import FullPrecisionReference

# A draw gives one number a sample, but only one for all captions together.
SAMPLE_DRAWS = 1
CAPTION_DRAWS = 16

_Choice = tuple[str, Precision]
_Rounding = tuple[Callable[[], Tensor], InputQuantizer | None]


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
        reference.switch.clear()
        output_gradients = list(reference.output_gradients(stream, _draws(stream)))
        by_batch = zip(
            *(torch.split(whole, list(stream.rows)) for whole in output_gradients), strict=True
        )
        gradients: list[Sequence[Tensor | None]] = list(by_batch)
        # Only LLaVAs are read block by block, and all their layers have samples first.
        has_samples = stream.are_independent and (
            reference.model.residency is not None or self._has_samples_first(stream, wanted)
        )
        batches: list[dict[_Choice, Tensor]] = [{} for _ in stream.sizes]
        sections = list(enumerate(reference.runner.sections(stream)))
        for number, section in reversed(sections):
            entries = reference.runner.entries(stream, number)
            with reference.runner.resident(section):
                products = [
                    _Products(module, dict(self._rounded(layer, module, precisions)))
                    for layer, precisions in wanted.items()
                    if layer in section.layers
                    for module in reference.model.modules(layer)
                ]
                for batch, (entry, arriving) in enumerate(zip(entries, gradients, strict=True)):
                    units = stream.sizes[batch] if has_samples else 1
                    part = _Part(stream, batch, section, entry)
                    changes, gradients[batch] = _batch_changes(part, arriving, products, units)
                    for choice, own in changes.items():  # a tied layer is in several sections
                        before = batches[batch].get(choice)
                        batches[batch][choice] = own if before is None else before + own
        found = {}
        for choice in batches[0]:
            whole = torch.cat([batch[choice] for batch in batches])
            # All captions together have one gradient, whatever batches they are in.
            found[choice] = (whole if stream.are_independent else whole.sum(dim=0)).flatten()
        return found

    def _rounded(
        self, layer: str, module: nn.Module, precisions: Iterable[Precision]
    ) -> Iterator[tuple[_Choice, _Rounding]]:
        """What gives each precision's weight, as a module takes it, and its input quantizer.

        Weights are rounded once where all of the model is in memory, and else at every call.
        """
        switch, own = self._reference.switch, module.get_parameter("weight")
        for precision in precisions:
            make = partial(switch.fake_quantized_weight, layer, precision)
            if self._reference.model.residency is None:
                make = partial(Tensor.detach, make())
            multiplies = not isinstance(module, nn.Embedding)
            quantize = switch.input_quantizer(layer, precision) if multiplies else None
            yield (layer, precision), (partial(_shaped, make, own.shape), quantize)

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


def _shaped(make: Callable[[], Tensor], shape: torch.Size) -> Tensor:
    return make().view(shape)


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
            for choice, (make, quantize) in self.products.choices.items():
                given = inputs if quantize is None else quantized_input(quantize, module, inputs)
                changed = functional_call(module, {"weight": make()}, (given, *others))
                yield choice, changed - self.output


@dataclass(frozen=True, slots=True)
class _Products:
    """A module, and the weight and input quantizer of each choice of its layer."""

    module: nn.Module
    choices: Mapping[_Choice, _Rounding]

    def watch(
        self, calls: list[_Call], _module: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        """A forward hook that keeps a call."""
        own = output if output.requires_grad else output.detach().requires_grad_()
        calls.append(_Call(self, tuple(given.detach() for given in args), own))
        return own


@dataclass(frozen=True, slots=True)
class _Part:
    """A batch of a stream in one section, and what enters it there."""

    stream: Stream
    batch: int
    section: Section
    entry: Tensor | None

    def run(self, entry: Tensor | None) -> Tensor:
        """What leaves the section; gradients flow back to `entry`."""
        with torch.enable_grad():
            return self.section.run(self.stream, self.batch, entry)


def _batch_changes(
    part: _Part,
    gradients: Sequence[Tensor | None],
    products: Sequence[_Products],
    units: int,
) -> tuple[dict[_Choice, Float[Tensor, "units draws"]], list[Tensor | None]]:
    """`<g, y' - y>` of every choice in a batch: 0 where its layer is not called.

    Args:
        part: What runs.
        gradients: At what leaves the part, one for each draw; None where none arrives.
        products: The modules that are watched.
        units: The samples to tell apart; they count as one where a layer sees other ones, as a
            vision tower does where some questions have no image.

    Returns:
        The sums, and the gradients at what enters the part.
    """
    calls: list[_Call] = []
    entry = None if part.entry is None else part.entry.detach().clone().requires_grad_()
    with ExitStack() as stack:
        for each in products:
            watch = partial(each.watch, calls)
            stack.callback(each.module.register_forward_hook(watch).remove)
        output = part.run(entry)
    ends = [call.output for call in calls] + ([] if entry is None else [entry])
    nowhere: tuple[Tensor | None, ...] = (None,) * len(ends)
    arrived = [
        nowhere
        if gradient is None or not output.requires_grad
        else torch.autograd.grad(output, ends, gradient, retain_graph=True, allow_unused=True)
        for gradient in gradients
    ]
    entering: list[Tensor | None] = [None] * len(gradients)
    if entry is not None:
        # What does not pass the section's end passes on what arrives there.
        passed = gradients if output.numel() == 0 else [own[-1] for own in arrived]
        entering = list(passed)
        arrived = [own[:-1] for own in arrived]
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
    return found, entering

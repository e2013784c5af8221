"""Activation memory: the most bytes that the tensors of one forward pass hold at once.

What counts is counted from the operations that PyTorch dispatches, so it is the same number on
every device and in every run:

- A tensor that an operation allocates counts from that operation to the last one that reads it or
  a view of it. Weights, and the samples themselves, do not count.
- It counts in the type that the model computes in, with one exception: if nothing but quantized
  layers reads it, it counts at the bits of their inputs (the widest of them), since whatever
  writes it can write the codes. Scales of inputs do not count.
- What an operation allocates within itself, such as a kernel's workspace, does not count.

Images and captions, or questions with their answers, run one after the other: the largest of these
streams counts, with the largest of its batches. It has the job's batch size, or the smaller one
with which an attempt continues after memory ran out. A recovery's prompt and adapter are left
out: they add a few rows to a tensor.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from bitfront.plan import Plan
from bitfront.precision import FULL, Precision
from bitfront.vlm import LayeredModel, PlanSwitch
from objectives.execution.streams import Stream

Inputs = tuple[Tensor, ...]


@dataclass(slots=True)
class Lifetime:
    """One allocated tensor of a forward pass.

    Attributes:
        first: The operation that allocates it.
        last: The last operation that reads it.
        nbytes: What it takes as it is.
        bits: Of one element.
        readers: The layers whose input it is.
        is_read_whole: Whether anything else reads it, so that it cannot be codes.
    """

    first: int
    last: int
    nbytes: int
    bits: int
    readers: set[str] = field(default_factory=set)
    is_read_whole: bool = False

    def held_nbytes(self, precisions: Mapping[str, Precision]) -> int:
        """What it takes under a plan, rounded up to whole bytes."""
        if self.is_read_whole or not self.readers:
            return self.nbytes
        bits = max(_input_bits(precisions.get(name, FULL), self.bits) for name in self.readers)
        return -(-self.nbytes * bits // self.bits)


def _input_bits(precision: Precision, own: int) -> int:
    return min(own, precision.activation_bits) if precision.quantizes_input else own


def peak_nbytes(lifetimes: Sequence[Lifetime], precisions: Mapping[str, Precision]) -> int:
    """The most that the tensors hold at once, each counted under the plan; 0 without any."""
    changes: dict[int, int] = {}
    for tensor in lifetimes:
        held = tensor.held_nbytes(precisions)
        changes[tensor.first] = changes.get(tensor.first, 0) + held
        changes[tensor.last + 1] = changes.get(tensor.last + 1, 0) - held
    peak = live = 0
    for place in sorted(changes):
        live += changes[place]
        peak = max(peak, live)
    return peak


class ActivationMemory:
    """The activation memory of a model's plans, in batches as a split is cut into them.

    The full-precision model runs once. Plans that give inputs the same bits share a number.

    Args:
        model: The model.
        streams: What runs through it; of each, the largest batch counts.
        switch: The model's switch.
    """

    def __init__(self, model: LayeredModel, streams: Sequence[Stream], switch: PlanSwitch) -> None:
        self._model = model
        self._streams = streams
        self._switch = switch
        self._traces: list[list[Lifetime]] | None = None
        self._known: dict[tuple[int, ...], int] = {}

    def peak_nbytes(self, plan: Plan) -> int:
        """The most bytes that a batch's activations hold at once; the model has the plan then."""
        precisions = dict(plan)
        shape = tuple(
            _input_bits(precisions.get(layer.name, FULL), FULL.activation_bits)
            for layer in self._model.layers
        )
        if shape not in self._known:
            if self._traces is None:
                self._switch.clear()
                self._traces = [_trace_largest(self._model, stream) for stream in self._streams]
                self._switch.to(plan)
            self._known[shape] = max(peak_nbytes(trace, precisions) for trace in self._traces)
        return self._known[shape]


def _trace_largest(model: LayeredModel, stream: Stream) -> list[Lifetime]:
    largest = max(range(len(stream.rows)), key=stream.rows.__getitem__)
    with torch.no_grad(), trace_lifetimes(model) as lifetimes:
        stream.run(largest)
    return lifetimes


@contextmanager
def trace_lifetimes(model: LayeredModel) -> Iterator[list[Lifetime]]:
    """Fills the list with the tensors of the forward pass that runs inside.

    It starts where the first layer reads its input: what is there by then is the samples.
    """
    trace = _Trace()
    hooks: list[RemovableHandle] = []
    for layer in model.layers:
        for module in model.modules(layer.name):
            hooks += [
                module.register_forward_pre_hook(trace.entering(layer.name)),
                module.register_forward_hook(trace.leaving),
            ]
    try:
        with trace:
            yield trace.lifetimes
    finally:
        for hook in hooks:
            hook.remove()


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes which operation allocates each storage, and which ones read it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.lifetimes: list[Lifetime] = []
        # The latest tensor at an address: while it is read, no other can be there.
        self._at: dict[int, Lifetime] = {}
        self._place = 0
        self._has_started = False
        self._input: int | None = None  # the address that the running layer reads

    def entering(self, layer: str) -> Callable[[nn.Module, Inputs], None]:
        """A forward pre-hook for the modules of a layer."""

        def enter(module: nn.Module, args: Inputs) -> None:
            self._has_started = True
            if not isinstance(module, nn.Embedding):
                self._input = _address(args[0])
                if self._input in self._at:
                    self._at[self._input].readers.add(layer)

        return enter

    def leaving(self, _module: nn.Module, _args: Inputs, _output: Tensor) -> None:
        """A forward hook for the modules of every layer."""
        self._input = None

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs the operation as it is, and takes notes of it."""
        output = func(*args, **(kwargs or {}))
        if self._has_started:
            self._note(func, _tensors((args, kwargs)), _tensors(output))
        return output

    def _note(self, func: OpOverload, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        # `torch.tensor` allocates out of sight, and hands its tensor to `lift_fresh` first of all.
        is_fresh = func is torch.ops.aten.lift_fresh.default
        read = set() if is_fresh else set(map(_address, inputs))
        written = {_address(tensor): tensor for tensor in outputs}
        is_view = bool(written) and written.keys() <= read and not _changes_inputs(func)
        for address in read & self._at.keys():
            self._at[address].last = self._place
            self._at[address].is_read_whole |= not is_view and address != self._input
        for address, tensor in written.items():
            nbytes = tensor.untyped_storage().nbytes()
            if address not in read and nbytes:
                bits = 8 * tensor.element_size()
                self._at[address] = Lifetime(self._place, self._place, nbytes, bits)
                self.lifetimes.append(self._at[address])
        self._place += 1


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _changes_inputs(func: OpOverload) -> bool:
    return bool(func._schema.is_mutable)  # noqa: SLF001  # an operation's schema has no public name

"""Which layers write into a residual stream, and where that stream can be seen before them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ADDITIONS = frozenset(
    {
        torch.add,
        Tensor.add,
        Tensor.add_,
        Tensor.__add__,
        Tensor.__radd__,
        Tensor.__iadd__,
    }
)


class ResidualWatch(TorchFunctionMode):
    """While it is entered: which layers' outputs are added, as they are, to what a module reads.

    A layer writes into the residual stream where its output is an operand of an addition whose
    other operand has the same shape and was the input of a module (a norm) before. An output that
    is scaled or transposed first is not recognised.

    Args:
        layers: The layers' modules, with their names.
    """

    def __init__(self, layers: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self._layers = layers
        self._outputs: dict[int, str] = {}
        self._inputs: dict[tuple[int, int], nn.Module] = {}
        self._alive: list[Tensor] = []  # a freed tensor's id is used again
        self.streams: dict[str, nn.Module] = {}
        """Layer name to the module whose first input is the stream before the layer."""

    def before(self, module: nn.Module, args: tuple[object, ...]) -> None:
        """A forward pre-hook, for every module of the model."""
        if args and isinstance(args[0], Tensor):
            self._alive.append(args[0])
            self._inputs[_key(args[0])] = module

    def after(self, module: nn.Module, _args: object, output: object) -> None:
        """A forward hook, for the layers' modules."""
        if isinstance(output, Tensor):
            self._alive.append(output)
            self._outputs[id(output)] = self._layers[module]

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Sees every torch function that is called."""
        if func in _ADDITIONS and len(args) == 2:
            one, other = args
            if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
                self._add(one, other)
                self._add(other, one)
        return func(*args, **(kwargs or {}))

    def _add(self, output: Tensor, stream: Tensor) -> None:
        layer, module = self._outputs.get(id(output)), self._inputs.get(_key(stream))
        if layer is not None and module is not None:
            self.streams.setdefault(layer, module)


def _key(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), tensor._version  # noqa: SLF001  # the count has no public name

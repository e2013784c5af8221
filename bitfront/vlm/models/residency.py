"""Which transformer blocks of a model are in memory: each only while it runs.

Embeddings, projector and head stay. A block's weights are read when its module is called, and
dropped when it returns, unless something holds the block. In between they are NaN of the right
shape that takes four bytes, so that whatever looks at them by mistake shows.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from bitfront.errors import InvalidModel
from bitfront.vlm.layers.trace import transformer_block
from bitfront.vlm.models.stored_weights import StoredWeights

MakeWeight = Callable[[], Tensor]
"""Gives a layer's weight, `(rows, columns)`."""

_ABSENT: Final = float("nan")


@dataclass(slots=True)
class _Place:
    """A parameter of a block: where its values come from."""

    parameter: nn.Parameter
    name: str
    make: MakeWeight | None = None


class Residency:
    """Puts a model's weights where they belong, and a block's into memory when it runs.

    Args:
        module: A model on the meta device, but for its buffers.
        names: Its parameters, as they are on the meta device, by the identity of the tensor, with
            the names that they are stored under.
        stored: Where their values are.

    Attributes:
        stored: Where the weights are.
        block_nbytes: What the weights of the largest block take in memory.
        resident_nbytes: What stays in memory all the time.
    """

    def __init__(self, module: nn.Module, names: dict[int, str], stored: StoredWeights) -> None:
        self.stored = stored
        self._blocks: dict[nn.Module, list[_Place]] = {}
        self._holders: Counter[nn.Module] = Counter()
        self._places: dict[int, tuple[nn.Module | None, _Place]] = {}
        modules = dict(module.named_modules())
        placed: dict[int, nn.Parameter] = {}
        self.resident_nbytes = 0
        for path, inner in modules.items():
            for key, meta in list(inner.named_parameters(recurse=False)):
                if id(meta) not in names:
                    raise InvalidModel(
                        f"{path}.{key} is made of another weight, and such a model cannot be read "
                        "block by block: leave resources.memory out"
                    )
                if id(meta) not in placed:
                    scope = transformer_block(f"{path}.{key}")
                    block = None if scope is None else modules[scope]
                    name = names[id(meta)]
                    parameter = self._parameter(meta, None if block else name)
                    place = _Place(parameter, name)
                    if block is not None:
                        self._blocks.setdefault(block, []).append(place)
                    else:
                        self.resident_nbytes += parameter.nbytes
                    self._places[id(parameter)] = (block, place)
                    placed[id(meta)] = parameter
                setattr(inner, key, placed[id(meta)])
        for block in self._blocks:
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave, always_call=True)
        self.block_nbytes = max(
            sum(place.parameter.nbytes for place in places) for places in self._blocks.values()
        )

    def _parameter(self, meta: Tensor, name: str | None) -> nn.Parameter:
        """A parameter with its values, or without them."""
        values = self._absent(meta) if name is None else self.stored.read(name)
        return nn.Parameter(values, requires_grad=False)

    def _absent(self, like: Tensor) -> Tensor:
        nothing = torch.full((), _ABSENT, dtype=self.stored.dtype, device=self.stored.device)
        return nothing.expand(like.shape)

    def put(self, parameter: nn.Parameter, make: MakeWeight | None) -> None:
        """Gives a parameter other values, now or when its block is read; None gives its own."""
        block, place = self._places[id(parameter)]
        place.make = make
        if block is None or self._holders[block]:
            self._fill(place)

    def _fill(self, place: _Place) -> None:
        parameter, made = place.parameter, place.make
        values = self.stored.read(place.name) if made is None else made().view_as(parameter)
        parameter.data = values

    @contextmanager
    def held(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Within it the blocks among some modules stay in memory."""
        with ExitStack() as stack:
            for module in modules:
                if module in self._blocks:
                    self._hold(module)
                    stack.callback(partial(self._release, module))
            yield

    def _hold(self, block: nn.Module) -> None:
        self._holders[block] += 1
        if self._holders[block] == 1:
            for place in self._blocks[block]:
                self._fill(place)

    def _release(self, block: nn.Module) -> None:
        self._holders[block] -= 1
        if self._holders[block] == 0:
            for place in self._blocks[block]:
                place.parameter.data = self._absent(place.parameter)

    def _enter(self, block: nn.Module, *_: object) -> None:
        if not _is_skipped(block):
            self._hold(block)

    def _leave(self, block: nn.Module, *_: object) -> None:
        if not _is_skipped(block):
            self._release(block)


def _is_skipped(block: nn.Module) -> bool:
    """Whether a run passes the block by: then its `forward` is another one."""
    return "forward" in vars(block)

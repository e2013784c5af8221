"""Finds a model's layers by watching it run once on one sample."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from bitfront.layers import Layer, LayerKind, Tower
from bitfront.vlm.layers.experts import EvenRouting, has_called_experts
from bitfront.vlm.layers.residual import ResidualWatch

# The numbered modules below these are no parts of a model that run one after another.
_SIDE_BY_SIDE: Final = frozenset({"experts"})


_TOWERS: Final = (*Tower,)


@dataclass(frozen=True, slots=True)
class Site:
    """A layer, and where it is in the model.

    Attributes:
        layer: The layer.
        modules: Those that hold its weight (several when it is tied).
        stream: The module whose input is the residual stream that the layer's output is added
            to; None where it is added to none.
    """

    layer: Layer
    modules: tuple[nn.Module, ...]
    stream: nn.Module | None = None


@dataclass(slots=True)
class _Seen:
    """What the run showed of one weight."""

    tower: Tower
    source: str
    outputs: int = 0
    modules: dict[nn.Module, None] = field(default_factory=dict)


class _Watch:
    """Notes every call of the named modules, in order of execution.

    A matrix that is tied to an embedding is noted where it multiplies.
    """

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        self.names = names
        self.tower = Tower.VISION
        self.seen: dict[str, _Seen] = {}
        # An input is known by its identity and how often it was changed in place; it is kept
        # alive, for a freed tensor's id is used again.
        self.sources: dict[tuple[int, int], tuple[Tensor, str]] = {}
        self._outer: list[Tower] = []

    def enter(self, tower: Tower, *_hook: object) -> None:
        """A forward pre-hook of a module that holds a tower, or a part of one."""
        self._outer.append(self.tower)
        self.tower = tower

    def leave(self, *_hook: object) -> None:
        """Its forward hook."""
        self.tower = self._outer.pop()

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook."""
        name, given = self.names[module], args[0]
        key = (id(given), given._version)  # noqa: SLF001  # the count has no public name
        _, source = self.sources.setdefault(key, (given, name))
        seen = self.seen.setdefault(name, _Seen(self.tower, source))
        if not isinstance(module, nn.Embedding):
            if seen.outputs == 0 and seen.modules:
                self.seen[name] = self.seen.pop(name)
                seen.source = source
            seen.outputs += output.numel()
        seen.modules[module] = None


@torch.no_grad()
def find_sites(
    model: nn.Module,
    names: Mapping[nn.Module, str],
    runs: Mapping[Tower, Callable[[], object]],
    parts: Mapping[nn.Module, Tower] = MappingProxyType({}),
) -> list[Site]:
    """The layers that run, tower after tower, within one in order of execution.

    Args:
        model: The model that holds the modules.
        names: The modules to look for with the names of their weights.
        runs: For each tower, what runs it on one sample.
        parts: Modules that hold a tower, where a run goes through several: what runs within one
            is of its tower.
    """
    watch, residual = _Watch(names), ResidualWatch(names)
    hooks = [module.register_forward_hook(watch) for module in names]
    hooks += [module.register_forward_hook(residual.after) for module in names]
    hooks += [module.register_forward_pre_hook(residual.before) for module in model.modules()]
    for part, tower in parts.items():
        hooks.append(part.register_forward_pre_hook(partial(watch.enter, tower)))
        hooks.append(part.register_forward_hook(watch.leave))
    for module in filter(has_called_experts, model.modules()):
        routing = EvenRouting(module)
        hooks.append(module.register_forward_pre_hook(routing.before, with_kwargs=True))
        hooks.append(module.register_forward_hook(routing.after))
    try:
        for tower, run in runs.items():
            watch.tower = tower
            with residual:
                run()
    finally:
        for hook in hooks:
            hook.remove()
    paths = {module: path for path, module in model.named_modules()}
    return [
        Site(
            _layer(name, seen, transformer_block(paths[next(iter(seen.modules))])),
            (*seen.modules,),
            residual.streams.get(name),
        )
        for name, seen in sorted(watch.seen.items(), key=lambda item: _TOWERS.index(item[1].tower))
    ]


def _layer(name: str, seen: _Seen, scope: str | None) -> Layer:
    weight = next(iter(seen.modules)).get_parameter("weight")
    rows, columns = weight.shape[0], weight[0].numel()
    kind = LayerKind.LINEAR
    if any(isinstance(module, nn.Conv2d) for module in seen.modules):
        kind = LayerKind.CONVOLUTION
    elif all(isinstance(module, nn.Embedding) for module in seen.modules):
        kind = LayerKind.EMBEDDING
    # One sample gives `rows` outputs a position; packed weights may run in parts, hence ceil.
    positions = 0 if kind is LayerKind.EMBEDDING else -(-seen.outputs // rows)
    tower = seen.tower
    return Layer(name, tower, kind, rows, columns, positions, seen.source, scope or tower.value)


def transformer_block(path: str) -> str | None:
    """The innermost numbered module around the one at `path`: its transformer block."""
    parts = path.split(".")
    beside = next((place for place, part in enumerate(parts) if part in _SIDE_BY_SIDE), len(parts))
    parts = parts[: beside + 1]
    for end in range(len(parts) - 1, 0, -1):
        if parts[end - 1].isdigit():
            return ".".join(parts[:end])
    return None

"""Layers that run although nothing depends on them: quantizing them would change nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn


def without_effect(
    sites: Mapping[str, tuple[nn.Module, ...]], runs: Sequence[Callable[[], Tensor]]
) -> frozenset[str]:
    """The layers that some run calls, although what none gives depends on them.

    A zero that is added to each layer's output has a gradient where the result depends on it.

    Args:
        sites: Names of layers and the modules that hold their weights.
        runs: What runs the model, or a part of it, on one sample.
    """
    zeros: dict[str, Tensor] = {}

    def adding(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            if name not in zeros:
                zeros[name] = torch.zeros_like(output[:0].sum()).requires_grad_()
            return output + zeros[name]

        return hook

    hooks = [
        module.register_forward_hook(adding(name))
        for name, modules in sites.items()
        for module in modules
    ]
    used: set[str] = set()
    try:
        for run in runs:
            with torch.enable_grad():
                result = run().sum()
            if result.requires_grad:
                found = torch.autograd.grad(result, [*zeros.values()], allow_unused=True)
                reached = zip(zeros, cast("tuple[Tensor | None, ...]", found), strict=True)
                used |= {name for name, one in reached if one is not None}
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(zeros.keys() - used)

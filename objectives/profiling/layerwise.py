"""How important layers are by what they do, or by their weights alone (arXiv:2406.17415)."""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from bitfront.layers import Tower
from objectives.profiling.full_precision import FullPrecisionReference


def layer_input_modification(reference: FullPrecisionReference, tower: Tower) -> dict[str, float]:
    """`1 - <X_in, X_out> / (|X_in| |X_out|)` of the transformer block that a layer is in.

    `X_in` and `X_out` are the hidden states of all calibration samples before and behind the block:
    LIM of Layer-Wise Quantization, section 3.1, plus 1, so that no importance is negative. Layers
    outside of such blocks count as the most important one: the paper finds the ends to matter most.
    """
    reference.switch.clear()
    stream = reference.stream(tower)
    modules = dict(reference.model.module.named_modules())
    layers = [layer for layer in reference.model.layers if layer.tower in stream.towers]
    sums = {
        layer.scope: torch.zeros(3, dtype=torch.float64)
        for layer in layers
        if layer.scope != layer.tower.value and layer.scope in modules
    }
    with ExitStack() as stack:
        for scope, own in sums.items():
            hook = modules[scope].register_forward_hook(partial(_add, own), with_kwargs=True)
            stack.callback(hook.remove)
        with torch.no_grad():
            for batch in range(len(stream.sizes)):
                stream.run(batch)
    found = {
        scope: max(0.0, 1 - float(own[0] / (own[1] * own[2]).sqrt()))
        for scope, own in sums.items()
        if own[1] > 0 and own[2] > 0
    }
    most = max(found.values(), default=1.0)
    return {layer.name: found.get(layer.scope, most) for layer in layers}


def _add(
    sums: Tensor,
    _module: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    output: object,
) -> None:
    """A forward hook that adds up `<in, out>`, `|in|^2` and `|out|^2` where they are alike."""
    given = args[0] if args else next(iter(kwargs.values()), None)
    made = output[0] if isinstance(output, tuple) else output
    if isinstance(given, Tensor) and isinstance(made, Tensor) and given.shape == made.shape:
        before, after = given.double(), made.double()
        parts = (before * after).sum(), before.square().sum(), after.square().sum()
        sums += torch.stack(parts).cpu()


def z_score_distribution(reference: FullPrecisionReference, tower: Tower) -> dict[str, float]:
    """One over the share of a layer's weights that lie above its mean by a standard deviation.

    ZD of Layer-Wise Quantization, section 3.2, whose smaller values are the more important ones;
    no sample is looked at. A layer without such a weight counts as if it had one.
    """
    towers = reference.stream(tower).towers
    found = {}
    for layer in reference.model.layers:
        if layer.tower in towers:
            weight = reference.model.weight(layer.name).double()
            above = int((weight > weight.mean() + weight.std(correction=0)).sum())
            found[layer.name] = weight.numel() / max(above, 1)
    return found

"""How important layers are by the relevance that runs through them (LRP-QViT, arXiv:2401.11243)."""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from bitfront.layers import Tower
from objectives.execution.streams import Stream
from objectives.profiling.full_precision import FullPrecisionReference
from objectives.profiling.relevance_rules import RelevanceRules


def layer_relevance(reference: FullPrecisionReference, tower: Tower) -> dict[str, float]:
    """`sum_x sum_e |R_e(x)| / sum_x |z(x)|` over the elements of a layer's output.

    `z(x)` is the logit of the class, or of the token, that the model finds likeliest. It is the
    relevance that every sample starts with; the rules of `RelevanceRules` send it back to the
    layers. LRP-QViT adds up each layer's relevance and divides by that of all layers; here it is
    divided by what was sent, which is the same for both towers of a dual encoder. One backward
    pass a tower.
    """
    reference.switch.clear()
    stream = reference.stream(tower)
    layers = [layer.name for layer in reference.model.layers if layer.tower in stream.towers]
    sums = dict.fromkeys(layers, 0.0)

    def arrive(layer: str, output: Tensor, gradient: Tensor) -> None:
        sums[layer] += float((output.detach() * gradient).double().abs().sum())

    def watch(layer: str, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        own = output if output.requires_grad else output.detach().requires_grad_()
        own.register_hook(partial(arrive, layer, own))  # type: ignore[no-untyped-call]
        return own

    seeds, sent = _seeds(reference, stream)
    with ExitStack() as stack:
        for layer in layers:
            for module in reference.model.modules(layer):
                stack.callback(module.register_forward_hook(partial(watch, layer)).remove)
        for batch, seed in enumerate(torch.split(seeds, list(stream.rows))):
            with torch.enable_grad(), RelevanceRules():
                output = stream.run(batch)
            if output.requires_grad:  # questions without images never pass the vision tower
                torch.autograd.backward(output, seed)
    return {layer: total / sent for layer, total in sums.items()}


def _seeds(reference: FullPrecisionReference, stream: Stream) -> tuple[Tensor, float]:
    """The relevance at a stream's output over that output, and how much there is in all."""
    output = reference.outputs[stream.key].clone().requires_grad_()
    with torch.enable_grad(), RelevanceRules():
        likeliest = reference.scores(stream, output).float().amax(dim=-1)
    (gradient,) = torch.autograd.grad(likeliest.sum(), output)
    return gradient, float(likeliest.detach().double().abs().sum())

"""What every layer gets in the full model, to which quantized inputs are compared."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitfront.vlm import LayeredModel
from objectives.execution.streams import Stream

MAX_NBYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class FullInputs:
    """Inputs and residual streams of the full model.

    Attributes:
        inputs: Layer name to batch to the layer's input.
        streams: Layer name to batch to the residual stream that the layer's output is added to.
        repeated: Layers that ran several times in a batch; the others ran once, or not at all.
    """

    inputs: dict[str, dict[int, Tensor]]
    streams: dict[str, dict[int, Tensor]]
    repeated: frozenset[str]


class _TooLarge(Exception):
    """More would be kept than may be."""


def record_full_inputs(
    model: LayeredModel, layers: list[str], stream: Stream, max_nbytes: int = MAX_NBYTES
) -> FullInputs | None:
    """Runs a stream through the model, which is in full precision, and keeps what layers get.

    None where that takes more than `max_nbytes`.

    Args:
        model: The model.
        layers: Those of the stream's towers.
        stream: The samples.
        max_nbytes: What may be kept at most.
    """
    inputs: dict[str, dict[int, Tensor]] = {layer: {} for layer in layers}
    streams: dict[str, dict[int, Tensor]] = {layer: {} for layer in layers}
    repeated: set[str] = set()
    seen: dict[nn.Module, Tensor] = {}
    kept: dict[int, int] = {}
    batch = 0

    def note(module: nn.Module, args: tuple[object, ...]) -> None:
        if isinstance(args[0], Tensor):
            seen[module] = args[0]

    def keep(tensor: Tensor) -> Tensor:
        kept[id(tensor)] = tensor.nbytes
        if sum(kept.values()) > max_nbytes:
            raise _TooLarge
        return tensor

    def watch(layer: str, given: Tensor) -> None:
        if layer not in inputs:
            return
        if batch in inputs[layer]:
            repeated.add(layer)
            return
        inputs[layer][batch] = keep(given)
        module = model.stream(layer)
        if module is not None and module in seen:
            streams[layer][batch] = keep(seen[module])

    with suppress(_TooLarge), torch.no_grad(), ExitStack() as stack:
        for module in {model.stream(layer) for layer in layers} - {None}:
            assert module is not None
            stack.callback(module.register_forward_pre_hook(note).remove)
        stack.enter_context(model.watch_inputs(watch))
        for batch in range(len(stream.sizes)):
            seen.clear()
            stream.run(batch)
        return FullInputs(inputs, streams, frozenset(repeated))
    return None

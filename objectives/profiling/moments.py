"""The second moments of the layers' inputs, from one pass over the calibration split."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.units import size_text
from bitfront.vlm.layers.rows import multiplied_rows
from objectives.data.task import Task
from objectives.profiling.calibration import watch_calibration

MAX_NBYTES = 8 << 30


def measure_moments(task: Task) -> Mapping[str, Tensor]:
    """`X^T X / n` of every layer's inputs `X (n, columns)`, in float32, in one pass.

    The inputs are those of the model in full precision. Layers that share an input (q, k and v)
    share a moment; a convolution's inputs are its patches. A layer that multiplies nothing (an
    embedding) has none; a head that is tied to an embedding is judged by both uses.

    Args:
        task: Its calibration split runs through its model, which is in full precision.

    Raises:
        SpecError: They would take more than `MAX_NBYTES` of memory.
    """
    model = task.model
    sources = {layer.name: layer.source for layer in model.layers if model.multiplying(layer.name)}
    columns = {
        sources[layer.name]: layer.columns for layer in model.layers if layer.name in sources
    }
    nbytes = sum(4 * count**2 for count in columns.values())
    if nbytes > MAX_NBYTES:
        raise SpecError(
            f"the second moments of this model's inputs take {size_text(nbytes)}, and at most "
            f"{size_text(MAX_NBYTES)} are kept: set quantizer.rounding to nearest"
        )
    first: dict[str, str] = {}
    for layer, source in sources.items():
        first.setdefault(source, layer)
    watched = set(first.values())
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(layer: str, inputs: Tensor) -> None:
        if layer not in watched:
            return
        x = multiplied_rows(model.multiplying(layer)[0], inputs.detach().float())
        product = x.T @ x
        sums[layer] = sums[layer] + product if layer in sums else product
        counts[layer] = counts.get(layer, 0) + len(x)

    watch_calibration(task, add)
    known = {layer: total / counts[layer] for layer, total in sums.items()}
    found = {
        layer: known[first[source]] for layer, source in sources.items() if first[source] in known
    }
    return {
        layer: _with_embedding(moment) if model.acts_from_the_start(layer) else moment
        for layer, moment in found.items()
    }


def _with_embedding(moment: Tensor) -> Tensor:
    """The moment of a head whose rows are also embedded tokens, which count as they are.

    The head's output error and the embeddings' own weigh alike: both have a mean diagonal of 1.
    """
    mean = moment.diagonal().mean()
    identity = torch.eye(len(moment), device=moment.device)
    return moment / mean + identity if mean > 0 else identity

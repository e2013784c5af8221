"""The second moments of the layers' inputs, from one pass over the calibration split."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.units import size_text
from bitfront.vlm import LayeredModel
from bitfront.vlm.layers.rows import has_rows, multiplied_rows, rows_form
from objectives.data.task import Task
from objectives.profiling.calibration import watch_calibration

MAX_NBYTES = 8 << 30


def measure_moments(task: Task, *, where_possible: bool = False) -> Mapping[str, Tensor]:
    """`X^T X / n` of every layer's inputs `X (n, columns)`, in float32, in one pass.

    The inputs are those of the model in full precision. Layers that share an input (q, k and v)
    share a moment; a convolution's inputs are its patches, and share one where these lie alike too.
    A layer that multiplies nothing (an embedding) has none; a head that is tied to an embedding is
    judged by both uses.

    Args:
        task: Its calibration split runs through its model, which is in full precision.
        where_possible: Leave out what would be refused: convolutions with groups, and all
            moments where they take too much memory.

    Raises:
        SpecError: They would take more than `MAX_NBYTES` of memory, or a layer is a convolution
            with groups.
    """
    model = task.model
    sources = {
        layer.name: (layer.source, rows_form(modules[0]))
        for layer in model.layers
        if (modules := model.multiplying(layer.name))
        and (has_rows(modules[0]) or not where_possible)
    }
    columns = {
        sources[layer.name]: layer.columns for layer in model.layers if layer.name in sources
    }
    nbytes = sum(4 * count**2 for count in columns.values())
    if nbytes > MAX_NBYTES:
        if where_possible:
            return {}
        raise SpecError(
            f"the second moments of this model's inputs take {size_text(nbytes)}, and at most "
            f"{size_text(MAX_NBYTES)} are kept: set quantizer.rounding to nearest"
        )
    first: dict[tuple[str, tuple[object, ...]], str] = {}
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


def missing_note(model: LayeredModel, moments: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A sentence on the layers that have no moment though they multiply; empty without any."""
    numeric = [layer.name for layer in model.layers if model.multiplying(layer.name)]
    missing = sum(name not in moments for name in numeric)
    if not missing:
        return ()
    return (
        f"quantizer.rounding: auto gives {missing} of {len(numeric)} layers their nearest codes: "
        + (
            "they are convolutions with groups, or no calibration sample reaches them"
            if moments
            else f"the second moments of this model's inputs take more than {size_text(MAX_NBYTES)}"
        ),
    )


def _with_embedding(moment: Tensor) -> Tensor:
    """The moment of a head whose rows are also embedded tokens, which count as they are.

    The head's output error and the embeddings' own weigh alike: both have a mean diagonal of 1.
    """
    mean = moment.diagonal().mean()
    identity = torch.eye(len(moment), device=moment.device)
    return moment / mean + identity if mean > 0 else identity

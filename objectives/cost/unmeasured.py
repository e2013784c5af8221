"""Which precisions of a job no kernel computes in, known before a model is loaded."""

from dataclasses import replace
from itertools import product

from bitfront.spec import JobSpec
from bitfront.vlm.loaders.load import choose_device
from objectives.cost.kernels import find_kernels


def widths_without_kernel(spec: JobSpec, device: str) -> list[str]:
    """The precisions of a space that no kernel computes in, whatever the layer's shape.

    Args:
        spec: The job.
        device: As the job names it.
    """
    chosen = choose_device(device)
    space = spec.space
    found: dict[str, None] = {}
    weights = (*space.weights, *space.kept_weights)
    for weight, inputs in product(weights, space.activation_bits):
        precision = replace(weight, activation_bits=inputs)
        # A group of a whole row is one scale a row, which the rows of some layers may be.
        columns = (4096, *([weight.group] if weight.group else []))
        if not any(find_kernels(precision, n, chosen, spec.quantizer) for n in columns):
            found[str(precision)] = None
    return list(found)

"""Which precisions of a job no kernel computes in, known before a model is loaded."""

from itertools import product

from bitfront.precision import Precision
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
    for bits, inputs, group in product(
        sorted({*space.weight_bits, *space.keep.values()}), space.activation_bits, space.groups
    ):
        precision = Precision(bits, inputs, 0 if bits == 16 else group)
        # A group of a whole row is one scale a row, which the rows of some layers may be.
        columns = (4096, *([group] if group else []))
        if not any(find_kernels(precision, n, chosen, spec.quantizer) for n in columns):
            found[str(precision)] = None
    return list(found)

"""Which of the real kernels give right products on a device of this machine."""

import torch

from bitfront.precision import FULL, Precision
from bitfront.quant.inputs import InputRange
from bitfront.spec import QuantizerSpec
from objectives.cost.kernels import Kernel, find_kernels

_ROWS, _COLUMNS, _SAMPLES = 64, 128, 32
_PRECISIONS = (FULL, Precision(8, 8), Precision(4, 16))
# Four bits of uniform weights are off by some 4 % of a product's size.
_MOST_OFF = 0.1


def working_kernels(device: str) -> tuple[list[str], list[str]]:
    """The kernels that give right products there, and what is wrong with the others."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.rand(_ROWS, _COLUMNS, generator=generator) - 0.5).to(device)
    inputs = (torch.rand(_SAMPLES, _COLUMNS, generator=generator) - 0.5).to(device)
    expected = inputs @ weight.T
    right, wrong = [], []
    for precision in _PRECISIONS:
        for kernel in find_kernels(precision, _COLUMNS, weight.device, QuantizerSpec()):
            name = f"{precision} {kernel.name}"
            try:
                off = _relative_error(kernel, weight, inputs, expected)
            except RuntimeError as error:
                wrong.append(f"{name}: {str(error).strip().partition(chr(10))[0]}")
                continue
            if off <= _MOST_OFF:
                right.append(name)
            else:
                wrong.append(f"{name}: products are off by {100 * off:.0f} %")
    return right, wrong


def _relative_error(
    kernel: Kernel, weight: torch.Tensor, inputs: torch.Tensor, expected: torch.Tensor
) -> float:
    product = kernel.prepare(weight, InputRange(-0.5, 0.5))(inputs)
    return float((product - expected).norm() / expected.norm())

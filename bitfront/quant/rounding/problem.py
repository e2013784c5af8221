"""What every rounding method solves: a target weight, its inputs' Hessian, a stored format."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.formats import WeightFormat
from bitfront.quant.weights import QuantizedWeight, dequantize_weight


@dataclass(frozen=True, slots=True, eq=False)
class RoundingProblem:
    """Minimise `tr((T - Q) H (T - Q)^T)` over what a packed checkpoint can hold.

    Attributes:
        target: `T`, `(rows, columns)`, in any floating dtype. NaN and infinity are refused by
            every method, with `InvalidModel`.
        hessian: `H`, `(columns, columns)`, float64, positive definite: see `damped_hessian`.
        bits: Width of a code: 2, 3, 4, 5, 6 or 8.
        group: Columns that share a scale; the last group may be short; 0 is the whole row.
        symmetric: The zero point is the code `2**(bits - 1)`.
        whole: An asymmetric zero point is a code.
        scale_search: Whether the nearest codes, where every method starts, have searched scales.
        form: The number format of the codes; None for integers.
    """

    target: Float[Tensor, "rows columns"]
    hessian: Float64[Tensor, "columns columns"]
    bits: int
    group: int = 0
    symmetric: bool = False
    whole: bool = False
    scale_search: bool = True
    form: WeightFormat | None = None

    def __post_init__(self) -> None:
        columns = self.target.shape[-1]
        if self.target.ndim != 2 or self.hessian.shape != (columns, columns):
            raise InvalidModel(
                f"a weight of shape {tuple(self.target.shape)} does not fit a Hessian of shape "
                f"{tuple(self.hessian.shape)}"
            )


# A method: the codes of a problem's target in the stored format.
RoundingMethod = Callable[[RoundingProblem], QuantizedWeight]


def damped_hessian(
    second_moment: Float[Tensor, "columns columns"], damping: float = 0.01
) -> Float64[Tensor, "columns columns"]:
    """The second moment of a layer's inputs, made positive definite.

    `damping` times the mean of the diagonal is added to the diagonal, so dead columns,
    constant inputs and fewer samples than columns are all allowed. Where every input is zero,
    the result is the identity: each weight then counts alike.

    Raises:
        InvalidModel: The second moment holds NaN or infinity: an input did.
    """
    if not bool(second_moment.isfinite().all()):
        raise InvalidModel("the inputs of a layer hold NaN or infinity")
    moment = second_moment.double()
    identity = torch.eye(moment.shape[0], dtype=torch.float64, device=moment.device)
    mean = moment.diagonal().mean()
    return moment + damping * mean * identity if mean > 0 else identity


def rounding_error(
    problem: RoundingProblem, quantized: QuantizedWeight
) -> Float64[Tensor, " rows"]:
    """The objective of each row; their sum is the trace."""
    error = problem.target.double() - dequantize_weight(quantized).double()
    return ((error @ problem.hessian) * error).sum(dim=1)


def column_groups(columns: int, group: int) -> list[slice]:
    """The columns of each group; the last group may be short."""
    width = group or columns
    return [slice(first, min(first + width, columns)) for first in range(0, columns, width)]

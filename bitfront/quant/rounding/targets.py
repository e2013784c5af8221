"""What a layer's codes are fitted to: its own weight, or one that makes up for earlier errors."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

# The share of the mean diagonal that is added to a regression's moment, whose inputs are few and
# noisy: five times what a layer's own weight takes.
REGRESSION_DAMPING = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedInputs:
    """The `n` inputs of a layer behind quantized layers, beside those of the full model.

    Attributes:
        rows: `X`, as the layer gets them, float32.
        moment: `X^T X / n`.
        shift: `(X0 - X)^T X / n`, with `X0` the same inputs in the full model.
    """

    rows: Float[Tensor, "n columns"]
    moment: Float64[Tensor, "columns columns"]
    shift: Float64[Tensor, "columns columns"]

    @classmethod
    def of(
        cls, rows: Float[Tensor, "n columns"], full_rows: Float[Tensor, "n columns"]
    ) -> "QuantizedInputs":
        """The inputs `X` and `X0`; sums are in float32."""
        x = rows.float()
        moment = (x.T @ x).double() / len(x)
        return cls(x, moment, ((full_rows.float() - x).T @ x).double() / len(x))


def output_target(
    weight: Float[Tensor, "rows columns"],
    hessian: Float64[Tensor, "columns columns"],
    inputs: QuantizedInputs,
    lost: Float[Tensor, "n rows"] | None = None,
) -> Float64[Tensor, "rows columns"]:
    """The weight whose outputs on the inputs `X` come nearest to what is wanted of them.

    That is the full model's output `X0 W^T`, as in asymmetric calibration (GPTAQ,
    https://arxiv.org/abs/2504.02692), and what the residual stream that it is added to has lost:
    `W + (W (X0 - X)^T X / n + L^T X / n) H^-1`, the regression on `X` by least squares.

    Args:
        weight: `W`.
        hessian: `H`, the damped moment of the inputs.
        inputs: `X` and `X0`.
        lost: `L`, the full model's residual stream before the layer minus the quantized one's, at
            every input; None where the layer's own output is all that counts.
    """
    full = weight.double()
    wanted = full @ inputs.shift
    if lost is not None:
        wanted = wanted + (lost.float().T @ inputs.rows).double() / len(lost)
    return full + torch.cholesky_solve(wanted.T, torch.linalg.cholesky(hessian)).T

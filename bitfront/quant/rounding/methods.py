"""The codes of a layer's weight by the rounding method that a job asks for."""

from collections.abc import Mapping
from typing import Final

from jaxtyping import Float, Float64
from torch import Tensor

from bitfront.precision import Precision
from bitfront.quant.rounding.descent import descent
from bitfront.quant.rounding.gptq import gptq
from bitfront.quant.rounding.nearest import nearest
from bitfront.quant.rounding.problem import RoundingMethod, RoundingProblem, damped_hessian
from bitfront.quant.weights import QuantizedWeight, quantize_for
from bitfront.spec import QuantizerSpec, Rounding

METHODS: Final[Mapping[Rounding, RoundingMethod]] = {
    Rounding.AUTO: descent,
    Rounding.NEAREST: nearest,
    Rounding.GPTQ: gptq,
    Rounding.DESCENT: descent,
}


def rounded_weight(
    weight: Float[Tensor, "rows *shape"],
    precision: Precision,
    quantizer: QuantizerSpec,
    moment: Float[Tensor, "columns columns"] | None,
) -> QuantizedWeight:
    """The codes of a weight as its layer's precision and the job's quantizer ask.

    Args:
        weight: The weight; all dimensions but the first of a convolution's count as columns.
        precision: Of the layer; below 16 bits.
        quantizer: Of the job.
        moment: `X^T X / n` of the layer's inputs `X (n, columns)`. None for a weight that
            multiplies nothing (an embedding), and under `auto` where it is not known: the
            weight then gets its nearest codes.

    Raises:
        InvalidModel: The weight has one dimension, is empty, or it or the moment is not finite.
    """
    if moment is None or quantizer.rounding is Rounding.NEAREST:
        return quantize_for(weight, precision, quantizer)
    return rounded_target(weight.detach().flatten(1), damped_hessian(moment), precision, quantizer)


def rounded_target(
    target: Float[Tensor, "rows columns"],
    hessian: Float64[Tensor, "columns columns"],
    precision: Precision,
    quantizer: QuantizerSpec,
) -> QuantizedWeight:
    """The codes of any target under a Hessian; see `RoundingProblem`.

    Raises:
        InvalidModel: The target is empty, or not finite.
    """
    problem = RoundingProblem(
        target,
        hessian,
        precision.weight_bits,
        precision.group,
        symmetric=quantizer.scheme == "symmetric",
        whole=quantizer.has_whole_zeros,
        scale_search=quantizer.scale_search,
        form=precision.form,
    )
    return METHODS[quantizer.rounding](problem)

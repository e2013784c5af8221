"""The codes of a layer's weight by the rounding method that a job asks for."""

from collections.abc import Mapping
from typing import Final

from jaxtyping import Float
from torch import Tensor

from bitfront.precision import Precision
from bitfront.quant.rounding.descent import descent
from bitfront.quant.rounding.gptq import gptq
from bitfront.quant.rounding.nearest import nearest
from bitfront.quant.rounding.problem import RoundingMethod, RoundingProblem, damped_hessian
from bitfront.quant.weights import (
    QuantizedWeight,
    fake_quantize_weight,
    quantize_for,
    read_back,
)
from bitfront.spec import QuantizerSpec, Rounding

METHODS: Final[Mapping[Rounding, RoundingMethod]] = {
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
            multiplies nothing (an embedding), which gets its nearest codes.

    Raises:
        InvalidModel: The weight has one dimension, is empty, or it or the moment is not finite.
    """
    if moment is None or quantizer.rounding is Rounding.NEAREST:
        return quantize_for(weight, precision, quantizer)
    problem = RoundingProblem(
        weight.detach().flatten(1),
        damped_hessian(moment),
        precision.weight_bits,
        precision.group,
        quantizer.scheme == "symmetric",
        quantizer.scale_search,
    )
    return METHODS[quantizer.rounding](problem)


def fake_rounded_weight(
    weight: Float[Tensor, "*shape"],
    precision: Precision,
    quantizer: QuantizerSpec,
    moment: Float[Tensor, "columns columns"] | None,
) -> Float[Tensor, "*shape"]:
    """The weight that a packed checkpoint gives back, in the shape and dtype of `weight`.

    Arguments and errors as in `rounded_weight`; at 16 bits as `fake_quantize_weight`.
    """
    if not precision.quantizes_weight:
        return fake_quantize_weight(weight, precision, quantizer)
    return read_back(rounded_weight(weight, precision, quantizer, moment), weight)

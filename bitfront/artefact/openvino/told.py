"""How OpenVINO computes with a layer, and what that changes of a trial."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.inputs import rounding_of
from bitfront.artefact.onnx.unpacking import BYTE
from bitfront.artefact.packed import tensors_nbytes
from bitfront.units import size_text

_CONTAINERS: Final = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8}


class Form(StrEnum):
    """How a product is computed.

    `PACKED`: codes stay packed in memory, products are those of float32. `INTEGERS`: codes in a
    byte times input codes in a byte. `FLOATS`: the weight has 16 bits, and is
    float32 once the model is loaded.
    """

    PACKED = "FullyConnected, packed"
    INTEGERS = "FullyConnected, int8"
    FLOATS = "FullyConnected, float32"


def container_bits(layer: PackedLayer) -> int:
    """Bits that a code takes in a file: 2, 4 or 8, so that each group starts with a byte.

    OpenVINO has no dense 3, 5 and 6, and multiplies wrongly, without a word, where rows or groups
    end within a byte.
    """
    width = _CONTAINERS[layer.weight_bits]
    while layer.group * width % BYTE:
        width *= 2
    return width


def is_integer(layer: PackedLayer) -> bool:
    """Whether a layer is multiplied as codes times input codes.

    OpenVINO's kernels want static inputs, one scale a row and no zero points of weights for that.
    """
    return (
        "input_scale" in layer.tensors
        and layer.weight_bits <= BYTE
        and not layer.group
        and layer.is_symmetric
    )


def rounds_itself(layer: PackedLayer) -> bool:
    """Whether OpenVINO's dynamic quantization rounds a layer's input, in groups of its columns.

    It does where the zero points of codes are codes themselves, one or several groups of inputs fit
    into a group of weights, and a row has a whole group of inputs.
    """
    size = layer.activation_group
    return (
        0 < size <= layer.columns
        and layer.activation_bits == BYTE
        and layer.weight_bits <= BYTE
        and layer.group % size == 0
        and layer.has_whole_zeros
    )


def dynamic_group(layers: Iterable[PackedLayer]) -> int:
    """What OpenVINO is told to round inputs by when it opens a model; 0 where it rounds none."""
    return max((layer.activation_group for layer in layers if rounds_itself(layer)), default=0)


def form_of(layer: PackedLayer) -> Form:
    """How a layer is multiplied."""
    if is_integer(layer):
        return Form.INTEGERS
    return Form.PACKED if layer.weight_bits <= BYTE else Form.FLOATS


def format_of(layer: PackedLayer) -> str:
    """What decides the time of a product beside its shapes: the form, and how the weight lies."""
    form = form_of(layer)
    told = [form.value]
    if form is Form.PACKED:
        group = f"groups of {layer.group}" if layer.group else "rows"
        is_whole = layer.has_whole_zeros and not layer.is_symmetric
        scheme = "whole zero points" if is_whole else layer.scheme
        told += [f"{container_bits(layer)} bits", group, scheme]
    return ", ".join([*told, *rounding_of(layer), *(["by its kernel"] * rounds_itself(layer))])


def forms(layers: Iterable[PackedLayer]) -> dict[str, str]:
    """How the product of each layer is computed, by its name."""
    return {layer.name: form_of(layer).value for layer in layers}


def changes(layers: Sequence[PackedLayer]) -> list[str]:
    """What the models do in another way than the trial did, in sentences; nothing else differs."""
    found = []
    quantized = [layer for layer in layers if layer.weight_bits <= BYTE]
    wider = [layer for layer in quantized if container_bits(layer) != layer.weight_bits]
    if wider:
        further = sum(_container_nbytes(layer) - layer.tensors["codes"].nbytes for layer in wider)
        found.append(
            f"the codes of {len(wider)} layers lie in 4 or 8 bits, for OpenVINO has 2, 4 and 8, "
            f"and groups of whole bytes: the files take {size_text(further)} more than the trial; "
            "space.weight_bits: [2, 4, 8] and groups of multiples of 4 avoid it"
        )
    zeros = sum(
        tensors_nbytes({"zero": layer.tensors["zero"]})
        for layer in quantized
        if not layer.has_whole_zeros
    )
    if zeros:
        found.append(
            f"zero points take 16 bits instead of 8, {size_text(zeros)} more than in the trial: "
            "quantizer.zero_points: whole keeps them in 8, quantizer.scheme: symmetric has none"
        )
    return found


def _container_nbytes(layer: PackedLayer) -> int:
    return -(-layer.rows * layer.columns * container_bits(layer) // BYTE)

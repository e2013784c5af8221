"""A graph as OpenVINO's intermediate representation, with the weights as they were measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import openvino
import torch
from numpy.typing import NDArray
from openvino import opset13 as operators
from torch import Tensor

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.unpacking import BYTE
from bitfront.artefact.openvino.kernels import padded_columns
from bitfront.artefact.openvino.told import container_bits, is_integer, rounds_itself
from bitfront.quant.packing import pack_codes

if TYPE_CHECKING:
    from openvino import Node

_UNSIGNED: Final = {2: openvino.Type.u2, 4: openvino.Type.u4, 8: openvino.Type.u8}


def write_representation(
    model: onnx.ModelProto, layers: Mapping[str, PackedLayer], path: Path
) -> None:
    """Writes the `.xml` at `path` and the `.bin` beside it.

    Args:
        model: Its weights are inputs.
        layers: What they are, by the inputs' names.
        path: Ends with `.xml`.

    Raises:
        OSError: A file cannot be written.
    """
    read = openvino.Core().read_model(model.SerializeToString(), b"")
    for parameter in read.get_parameters():
        layer = layers.get(parameter.output(0).get_any_name())
        if layer is not None:
            parameter.output(0).replace(_weight(layer).output(0))
            read.remove_parameter(parameter)
    read.validate_nodes_and_infer_types()
    try:
        openvino.save_model(read, path, compress_to_fp16=False)
    except RuntimeError as error:  # which is what OpenVINO makes of a full disk
        raise OSError(f"OpenVINO cannot write {path.name} ({error}); is the disk full?") from error


def _weight(layer: PackedLayer) -> "Node":
    """The weight `(rows, padded columns)`, float32: packed codes, converted, shifted and scaled."""
    if layer.weight_bits > BYTE:
        matrix = layer.tensors["weight"].view(layer.rows, layer.columns)
        return _float(_array(matrix))
    if is_integer(layer):
        return _integer_weight(layer)
    scale, zero = _grid(layer)
    columns = padded_columns(layer)
    if not layer.group:
        return _scaled(_codes(layer, [layer.rows, columns]), zero, scale)
    blocks = [layer.rows, columns // layer.group, layer.group]
    grouped = _scaled(_codes(layer, blocks), zero[:, :, None], scale[:, :, None])
    return operators.reshape(grouped, np.array([layer.rows, columns]), special_zero=False)


def _grid(layer: PackedLayer) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scales and zero points of the codes as `_codes` holds them."""
    scale, shift = layer.tensors["scale"], _shift(layer)
    if layer.is_symmetric:
        # With a zero point in floating point OpenVINO rounds no inputs.
        kind = np.uint8 if rounds_itself(layer) else np.float16
        return _array(scale), np.full((1, 1), 2 ** (layer.weight_bits - 1), kind)
    steps: int = 2 ** (BYTE - layer.weight_bits - shift)
    if layer.has_whole_zeros:
        return _array(scale.float() / 2**shift if shift else scale), _array(
            layer.tensors["zero"] // steps
        )
    exact = layer.tensors["zero"].float() / steps
    return _array(scale.float() / 2**shift if shift else scale), _array(exact.half())


def _shift(layer: PackedLayer) -> int:
    """Bits that codes are shifted up by, so that zero points in a byte are whole.

    OpenVINO rounds others, without a word, where it multiplies bytes with input codes.
    """
    is_byte = container_bits(layer) == BYTE and not layer.is_symmetric
    return BYTE - layer.weight_bits if is_byte else 0


def _integer_weight(layer: PackedLayer) -> "Node":
    """Codes around zero as int8, which are unpacked when the model is loaded, times a scale."""
    shape = [layer.rows, padded_columns(layer)]
    middle = np.int8(2 ** (layer.weight_bits - 1)) if layer.weight_bits < BYTE else None
    if middle is None:
        signed = layer.codes.numpy().astype(np.int16) - 2 ** (BYTE - 1)
        codes = operators.constant(signed.astype(np.int8))
    else:
        narrow = operators.convert(_codes(layer, shape), "i8")
        codes = operators.subtract(narrow, operators.constant(middle))
    scale = _array(layer.tensors["scale"].float())
    return operators.multiply(operators.convert(codes, "f32"), operators.constant(scale))


def _scaled(codes: "Node", zero: NDArray[Any], scale: NDArray[Any]) -> "Node":
    shifted = operators.subtract(operators.convert(codes, "f32"), _float(zero))
    return operators.multiply(shifted, _float(scale))


def _codes(layer: PackedLayer, shape: list[int]) -> "Node":
    container = container_bits(layer)
    missing = padded_columns(layer) - layer.columns
    codes = torch.nn.functional.pad(layer.codes << _shift(layer), (0, missing))
    packed = _array(pack_codes(codes, container))
    kind = _UNSIGNED[container]
    tensor = openvino.Tensor(kind, openvino.Shape(shape))
    tensor.copy_from(openvino.Tensor(packed, openvino.Shape(shape), kind))  # which does not own it
    return operators.constant(tensor)


def _float(array: NDArray[Any]) -> "Node":
    if array.dtype == np.float32:
        return operators.constant(array)
    return operators.convert(operators.constant(array), "f32")


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.contiguous().numpy()
    return array

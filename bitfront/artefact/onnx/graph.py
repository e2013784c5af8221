"""A graph in the making: nodes and the tensors they take, under short names."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import IO, Final

import numpy as np
import onnx
import torch
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_OPSETS = (helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1))
_IR_VERSION = 10

_LEAST_OUTSIDE: Final = 1024
_ALIGNMENT: Final = 64

Attribute = int | float | str | Sequence[int]


class Graph:
    """Collects nodes in order of execution.

    What a node gives is named by a number; constants with the same content are kept once.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(
        self, name: str, shape: Sequence[int | str] | None, kind: int = TensorProto.FLOAT
    ) -> str:
        """An input of the model; without a shape it may have any number of dimensions."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape and list(shape)))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        """Makes a value a float32 output of the model."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Attribute) -> str:
        """A node with one output; an input that is empty is left out."""
        output = f"v{len(self._nodes)}"
        node = helper.make_node(operator, list(inputs), [output], domain=domain)
        node.attribute.extend(starmap(helper.make_attribute, attributes.items()))
        self._nodes.append(node)
        return output

    def store(self, name: str, tensor: Tensor) -> str:
        """A tensor of the checkpoint, under its name and as it is."""
        if name not in self._tensors:
            if tensor.dtype == torch.bfloat16:  # which NumPy does not know
                content = tensor.contiguous().view(torch.int16).numpy().tobytes()
                kind, shape = TensorProto.BFLOAT16, list(tensor.shape)
                self._tensors[name] = helper.make_tensor(name, kind, shape, content, raw=True)
                return name
            array = tensor.contiguous().numpy()
            self._tensors[name] = numpy_helper.from_array(array, name)
        return name

    def store_int4(self, name: str, halves: Tensor, shape: Sequence[int]) -> str:
        """A tensor of the checkpoint as int4, two in a byte, the first in the lower bits."""
        if name not in self._tensors:
            content = halves.contiguous().numpy().tobytes()
            kind = TensorProto.INT4
            self._tensors[name] = helper.make_tensor(name, kind, list(shape), content, raw=True)
        return name

    def constant(self, values: ArrayLike, dtype: DTypeLike) -> str:
        """Numbers that the graph needs."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"c{len(self._constants)}"
            self._constants[key] = name
            self._tensors[name] = numpy_helper.from_array(array, name)
        return self._constants[key]

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(value, np.float32)

    def cast(self, value: str, kind: int) -> str:
        """The value in another type."""
        return self.add("Cast", value, to=kind)

    def floats(self, name: str, tensor: Tensor) -> str:
        """A tensor of the checkpoint, as float32."""
        stored = self.store(name, tensor)
        return stored if tensor.dtype == torch.float32 else self.cast(stored, TensorProto.FLOAT)

    def shaped(self, value: str, *shape: int) -> str:
        """The value in another shape; 0 keeps a dimension, -1 is what is left."""
        return self.add("Reshape", value, self.constant(shape, np.int64))

    def sliced(self, value: str, axis: int, start: int, end: int) -> str:
        """Part of an axis."""
        bounds = [self.constant([place], np.int64) for place in (start, end, axis)]
        return self.add("Slice", value, *bounds)

    def model(self, facts: Mapping[str, str]) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes, "bitfront", self._inputs, self._outputs, list(self._tensors.values())
        )
        model = helper.make_model(
            graph, opset_imports=list(_OPSETS), ir_version=_IR_VERSION, producer_name="bitfront"
        )
        helper.set_model_props(model, dict(facts))
        return model


class WeightsFile:
    """The file beside some models that holds their tensors; equal ones lie in it once.

    Args:
        file: Open for writing, and empty.
        name: What the models call it.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._places: dict[bytes, int] = {}

    def take(self, model: onnx.ModelProto) -> None:
        """Moves the tensors of a model there, but for small ones."""
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < _LEAST_OUTSIDE:
                continue
            start = self._place(tensor.raw_data)
            entries = {"location": self._name, "offset": start, "length": len(tensor.raw_data)}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            tensor.data_location = TensorProto.EXTERNAL
            tensor.ClearField("raw_data")

    def _place(self, content: bytes) -> int:
        digest = hashlib.sha256(content).digest()
        if digest not in self._places:
            self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
            self._places[digest] = self._file.tell()
            self._file.write(content)
        return self._places[digest]


def write_models(models: Mapping[str, onnx.ModelProto], weights: str, folder: Path) -> None:
    """Writes models by the names of their files, with one further file for their tensors."""
    with (folder / weights).open("wb") as file:
        shared = WeightsFile(file, weights)
        for name, model in models.items():
            shared.take(model)
            (folder / name).write_bytes(model.SerializeToString())


def normalised(graph: Graph, features: str) -> str:
    """Vectors at length 1; one of length 0 stays."""
    length = graph.add("ReduceL2", features, graph.constant([-1], np.int64))
    return graph.add("Div", features, graph.add("Max", length, graph.number(1e-12)))

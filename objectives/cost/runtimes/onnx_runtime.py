"""ONNX Runtime's times."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import write_models
from bitfront.artefact.onnx.products import ROUNDED, OnnxRuntimeKernels, format_of
from bitfront.targets import ONNXRUNTIME
from objectives.cost.runtimes.exported_runtime import ExportedRuntime


class OnnxRuntime(ExportedRuntime):
    """Times what `--to onnx` writes, at its default accuracy level."""

    target = ONNXRUNTIME
    kernels = OnnxRuntimeKernels(ROUNDED)

    def format(self, layer: PackedLayer) -> str:
        """The kernel, and how the weight lies in memory."""
        return format_of(layer, ROUNDED)

    def write(
        self, model: onnx.ModelProto, layers: Sequence[PackedLayer], folder: Path, name: str
    ) -> None:
        """Writes a model as the export does; of whatever size, for tensors lie beside it."""
        del layers  # their tensors are in the model
        write_models({f"{name}.onnx": model}, f"{name}.onnx_data", folder)

"""OpenVINO's times."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.openvino.kernels import OpenVinoKernels, by_input
from bitfront.artefact.openvino.representation import write_representation
from bitfront.artefact.openvino.told import format_of
from bitfront.targets import OPENVINO
from objectives.cost.runtimes.exported_runtime import ExportedRuntime


class OpenVinoRuntime(ExportedRuntime):
    """Times what `--to openvino` writes."""

    target = OPENVINO
    kernels = OpenVinoKernels()

    def format(self, layer: PackedLayer) -> str:
        """The kernel, and how the weight lies in memory."""
        return format_of(layer)

    def write(
        self, model: onnx.ModelProto, layers: Sequence[PackedLayer], folder: Path, name: str
    ) -> None:
        """Writes a model as the export does."""
        write_representation(model, by_input(layers), folder / f"{name}.xml")

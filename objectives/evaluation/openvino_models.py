"""A configuration as OpenVINO's models: a folder of `.xml` and `.bin` files that are mapped.

The graphs are those for ONNX Runtime; weights are constants of 2, 4 or 8 bits that OpenVINO's
kernels multiply with as they are, with the codes, scales and zero points that the trial measured.
"""

from collections.abc import Mapping
from pathlib import Path

from bitfront.artefact.example import EXAMPLE, exported_example
from bitfront.artefact.openvino.cpu import cpu_changes
from bitfront.artefact.openvino.kernels import OpenVinoKernels, by_input
from bitfront.artefact.openvino.representation import write_representation
from bitfront.artefact.openvino.told import changes, dynamic_group, forms
from bitfront.plan import Configuration
from objectives.evaluation.card import write_card
from objectives.evaluation.checkpoint import read_checkpoint
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.exported import exported_card, model_parts, write_further_files

FORMAT = "bitfront.openvino.1"


def write_openvino(
    evaluator: Evaluator, configuration: Configuration, folder: Path, facts: Mapping[str, object]
) -> dict[str, object]:
    """Writes the configuration's files into an empty folder; the card comes last.

    Args:
        evaluator: With the model and data that the configuration was measured on.
        configuration: What is written; a recovery that is not known is trained.
        folder: Where to; it is there.
        facts: What the card says beside: the study, the trial, what was measured.

    Returns:
        The card. `changes` says what the models do in another way than the trial.

    Raises:
        InvalidModel: The model's architecture is not known.
        OSError: A file cannot be written.
    """
    checkpoint = read_checkpoint(evaluator, configuration)
    parts = model_parts(checkpoint, OpenVinoKernels())
    weights = parts.weights
    for name, model in parts.models().items():
        write_representation(model, by_input(weights), folder / f"{name}.xml")
    card: dict[str, object] = {
        "format": FORMAT,
        **facts,
        "how_to_load": "from exported_model import load; model = load(FOLDER)",
        "requires": ["openvino", "numpy", "pillow", *checkpoint.architecture.requires],
        "nbytes": evaluator.nbytes(configuration),
        **exported_card(checkpoint),
        "activation_group": dynamic_group(parts.products),
        "kernels": forms(parts.products),
        "changes": [*changes(weights), *cpu_changes(parts.products)],
    }
    write_further_files(checkpoint, folder)
    (folder / EXAMPLE).write_text(exported_example(card), encoding="utf-8")
    write_card(card, folder)
    return card

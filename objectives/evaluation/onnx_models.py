"""A configuration as ONNX models: a folder that ONNX Runtime loads, with the codes as measured.

`image.onnx` holds the image tower, a recovery's adapter and the features of the classes, and
`text.onnx` the text tower, for captions of one's own. Both hold the tensors of the packed
checkpoint as they are, and nodes that unpack them when the model is loaded. `card.json` says what
it all is, and `example.py` shows how it is used.
"""

from collections.abc import Mapping
from pathlib import Path

from bitfront.artefact.example import EXAMPLE, onnx_example
from bitfront.artefact.onnx.models import (
    IMAGE,
    TEXT,
    DualEncoderParts,
    changes,
    forms,
    image_model,
    read_layers,
    text_model,
)
from bitfront.artefact.packed import tensors_nbytes
from bitfront.errors import InvalidModel
from bitfront.plan import Configuration
from bitfront.units import size_text
from objectives.evaluation.card import write_card
from objectives.evaluation.checkpoint import Checkpoint, read_checkpoint
from objectives.evaluation.evaluator import Evaluator

FORMAT = "bitfront.onnx.1"

_LARGEST_NBYTES = 2**31 - 2**24  # what protobuf can write, with room for the nodes


def write_onnx(
    evaluator: Evaluator,
    configuration: Configuration,
    folder: Path,
    facts: Mapping[str, object],
    *,
    accuracy_level: int,
) -> dict[str, object]:
    """Writes the configuration's files into an empty folder; the card comes last.

    Args:
        evaluator: With the model and data that the configuration was measured on.
        configuration: What is written; a recovery that is not known is trained.
        folder: Where to; it is there.
        facts: What the card says beside: the study, the trial, what was measured.
        accuracy_level: Of MatMulNBits: 4 lets the kernel round inputs to 8 bits where the trial
            left them as they are, 0 does not.

    Returns:
        The card. `changes` says what the models do in another way than the trial.

    Raises:
        InvalidModel: The model's architecture is not known, or it answers questions.
        OSError: A file cannot be written.
    """
    checkpoint = read_checkpoint(evaluator, configuration)
    parts = _parts(checkpoint, accuracy_level)
    stored = tensors_nbytes(checkpoint.tensors)
    if stored > _LARGEST_NBYTES:
        raise InvalidModel(
            f"the configuration takes {size_text(stored)}, but one ONNX file holds at most "
            f"{size_text(_LARGEST_NBYTES)}: choose a smaller one, or build it with --to packed"
        )
    for name, model in ((IMAGE, image_model(parts)), (TEXT, text_model(parts))):
        (folder / name).write_bytes(model.SerializeToString())
    config = checkpoint.architecture.config
    card: dict[str, object] = {
        "format": FORMAT,
        **facts,
        "how_to_load": "onnxruntime.InferenceSession('image.onnx'), as example.py does",
        "requires": ["onnxruntime", "numpy", "pillow"],
        "nbytes": evaluator.nbytes(configuration),
        **checkpoint.task,
        "preprocessing": config["preprocessing"],
        "words": config["words"],
        "accuracy_level": accuracy_level,
        "kernels": forms(parts),
        "changes": changes(parts),
    }
    (folder / EXAMPLE).write_text(onnx_example(card), encoding="utf-8")
    write_card(card, folder)
    return card


def _parts(checkpoint: Checkpoint, accuracy_level: int) -> DualEncoderParts:
    if checkpoint.class_features is None:
        raise InvalidModel(
            "a model that answers questions cannot be built as ONNX yet: build it with --to packed"
        )
    return DualEncoderParts(
        checkpoint.architecture.config,
        read_layers(checkpoint.layers, checkpoint.tensors),
        checkpoint.tensors,
        checkpoint.adapter,
        checkpoint.class_features,
        accuracy_level,
    )

"""A configuration as ONNX models: a folder that ONNX Runtime loads, with the codes as measured.

Of a dual encoder, `image.onnx` holds the image tower, a recovery's adapter and the features of the
classes if there are some, and `text.onnx` the text tower, for captions of one's own. Of a
generative model, `vision_encoder.onnx` holds the vision tower, the projector and an adapter,
`embed_tokens.onnx` the embedding, and `decoder_model_merged.onnx` the decoder with its cache;
`embedding.onnx` and `genai_config.json` let ONNX Runtime GenAI run them. They hold the tensors of
the packed checkpoint as they are, and nodes that unpack them when the model is loaded. `card.json`
says what it all is, `exported_model.py` runs it, and `example.py` shows how.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import LlavaForConditionalGeneration

from bitfront.artefact.example import EXAMPLE, exported_example, onnx_example
from bitfront.artefact.onnx.genai import CONFIG, genai_config
from bitfront.artefact.onnx.graph import write_models
from bitfront.artefact.onnx.models import (
    DECODER,
    VISION_ENCODER,
    GenerativeParts,
    changes,
    forms,
)
from bitfront.artefact.onnx.products import OnnxRuntimeKernels
from bitfront.artefact.packed import tensors_nbytes
from bitfront.errors import InvalidModel
from bitfront.plan import Configuration
from bitfront.units import size_text
from objectives.evaluation.card import write_card
from objectives.evaluation.checkpoint import Checkpoint, read_checkpoint
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.exported import (
    exported_card,
    learned_prompt,
    model_parts,
    write_further_files,
)

FORMAT = "bitfront.onnx.1"
WEIGHTS = "model.onnx_data"
EMBEDDING = "embedding.onnx"

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
        InvalidModel: The model's architecture is not known, or a file cannot hold it.
        OSError: A file cannot be written.
    """
    checkpoint = read_checkpoint(evaluator, configuration)
    parts = model_parts(checkpoint, OnnxRuntimeKernels(accuracy_level))
    models = {f"{name}.onnx": model for name, model in parts.models().items()}
    if not checkpoint.answers:
        stored = tensors_nbytes(checkpoint.tensors)
        if stored > _LARGEST_NBYTES:
            raise InvalidModel(
                f"the configuration takes {size_text(stored)}, but one ONNX file holds at most "
                f"{size_text(_LARGEST_NBYTES)}: choose a smaller one, or build it with --to packed"
            )
        for name, model in models.items():
            (folder / name).write_bytes(model.SerializeToString())
    else:
        assert isinstance(parts, GenerativeParts)
        if learned_prompt(checkpoint) is None:  # for which GenAI's runner has no place
            models[EMBEDDING] = parts.embedding_model()
            _tell_genai(evaluator, checkpoint, folder)
        write_models(models, WEIGHTS, folder)
    card: dict[str, object] = {
        "format": FORMAT,
        **facts,
        "how_to_load": "from exported_model import load; model = load(FOLDER)",
        "requires": ["onnxruntime", "numpy", "pillow", *checkpoint.architecture.requires],
        "nbytes": evaluator.nbytes(configuration),
        **exported_card(checkpoint),
        "activation_group": 0,
        "accuracy_level": accuracy_level,
        "kernels": forms(parts.products, accuracy_level),
        "changes": changes(parts.products, accuracy_level),
    }
    write_further_files(checkpoint, folder)
    has_classes = checkpoint.class_features is not None
    example = onnx_example(card) if has_classes else exported_example(card)
    (folder / EXAMPLE).write_text(example, encoding="utf-8")
    write_card(card, folder)
    return card


def _tell_genai(evaluator: Evaluator, checkpoint: Checkpoint, folder: Path) -> None:
    module = evaluator.model.module
    assert isinstance(module, LlavaForConditionalGeneration)
    config = cast("dict[str, Any]", checkpoint.architecture.config)
    content = genai_config(
        config["text"],
        config["ends"],
        module.config.get_text_config().max_position_embeddings,
        {
            "vision": f"{VISION_ENCODER}.onnx",
            "embedding": EMBEDDING,
            "decoder": f"{DECODER}.onnx",
        },
    )
    (folder / CONFIG).write_text(json.dumps(content, indent=1), encoding="utf-8")

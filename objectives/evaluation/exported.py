"""What exported models are made of, and what lies beside them, whatever runtime they are for."""

from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from bitfront.artefact.architectures import RUNTIME
from bitfront.artefact.onnx.kernels import Kernels
from bitfront.artefact.onnx.models import (
    DualEncoderParts,
    GenerativeParts,
    Parts,
    cache_form,
    read_layers,
)
from bitfront.artefact.runtime.exported_model import CONTEXT
from objectives.evaluation.checkpoint import Checkpoint

MODULE = "exported_model.py"
"""What runs exported models, beside them."""


def model_parts(checkpoint: Checkpoint, kernels: Kernels) -> Parts:
    """The parts of a checkpoint's model, with the kernels of a runtime."""
    config = checkpoint.architecture.config
    layers = read_layers(checkpoint.layers, checkpoint.tensors)
    tensors, adapter = checkpoint.tensors, checkpoint.adapter
    if checkpoint.answers:
        return GenerativeParts(config, layers, tensors, adapter, kernels)
    features = checkpoint.class_features
    return DualEncoderParts(config, layers, tensors, adapter, kernels, features)


def exported_card(checkpoint: Checkpoint) -> dict[str, object]:
    """What a card says of the task, the pictures and the words."""
    config = cast("dict[str, Any]", checkpoint.architecture.config)
    content = {
        **checkpoint.task,
        "preprocessing": config["preprocessing"],
        "words": config["words"],
    }
    if checkpoint.answers:
        text = config["text"]
        content["image_code"] = config["image_code"]
        content["ends"] = config["ends"]
        content["cache"] = cache_form(text)
    return content


def write_further_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes what lies beside models and card: their module, a tokenizer, a learned prompt."""
    (folder / MODULE).write_bytes((RUNTIME / MODULE).read_bytes())
    for name, content in checkpoint.architecture.files.items():
        (folder / name).write_bytes(content)
    context = learned_prompt(checkpoint)
    if checkpoint.answers and context is not None:
        np.save(folder / CONTEXT, context.float().numpy().astype(np.float16))


def learned_prompt(checkpoint: Checkpoint) -> Tensor | None:
    """A recovery's prompt `(m, d)`; None where there is none."""
    context = checkpoint.tensors.get("context")
    return context if context is not None and len(context) else None

"""A configuration as a checkpoint of transformers with compressed-tensors' packed codes.

`model.safetensors` and `config.json` are what `from_pretrained` loads; the codes and scales are
those that the trial measured. `transformers_model.py` and `exported_model.py` use it,
`classes.safetensors` has the features of classes, `card.json` says what it is, and `example.py`
shows how.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import open_clip
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPModel, LlavaForConditionalGeneration, PreTrainedModel, SiglipModel

from bitfront.artefact.architectures import RUNTIME
from bitfront.artefact.architectures.transformers_clip import their_clip, their_names
from bitfront.artefact.compressed_tensors import (
    Held,
    Names,
    changes,
    held_tensors,
    quantization_config,
    refuse_other_formats,
)
from bitfront.artefact.example import EXAMPLE, transformers_example
from bitfront.artefact.runtime.packed_model import CLASSES
from bitfront.errors import InvalidModel
from bitfront.plan import Configuration
from objectives.evaluation.card import write_card
from objectives.evaluation.checkpoint import Checkpoint, read_checkpoint
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.exported import exported_card, write_further_files

FORMAT = "bitfront.compressed-tensors.1"
_PROJECTIONS = ("visual_projection", "text_projection")
MODULE, WEIGHTS, CONFIG = "transformers_model.py", "model.safetensors", "config.json"


def write_compressed(
    evaluator: Evaluator, configuration: Configuration, folder: Path, facts: Mapping[str, object]
) -> dict[str, object]:
    """Writes the configuration's files into an empty folder; the card comes last.

    Args:
        evaluator: With the model and data that the configuration was measured on.
        configuration: What is written.
        folder: Where to; it is there.
        facts: What the card says beside: the study, the trial, what was measured.

    Returns:
        The card. `changes` says what the checkpoint holds in another way than the trial.

    Raises:
        InvalidModel: transformers has no model like it, or the format has no place for the
            configuration.
        OSError: A file cannot be written.
    """
    refuse_other_formats(
        dict(configuration.plan),
        symmetric=evaluator.spec.quantizer.scheme == "symmetric",
        ranges=evaluator.spec.quantizer.activations,
        recovery=configuration.recovery is not None,
    )
    checkpoint = read_checkpoint(evaluator, configuration)
    module, names = _at_transformers(evaluator.model.module, checkpoint)
    held = held_tensors(module, checkpoint.layers, checkpoint.tensors, names)
    tensors = {name: tensor.contiguous() for name, tensor in held.tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if checkpoint.class_features is not None:
        save_file({"features": checkpoint.class_features}, folder / CLASSES)
    module.config.save_pretrained(folder)
    kind = type(module).__name__
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["architectures"] = [kind]
    if held.precisions:
        config["quantization_config"] = quantization_config(module, held.precisions)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    requires = ["transformers", "compressed-tensors", "torch", "numpy", "pillow"]
    card: dict[str, object] = {
        "format": FORMAT,
        **facts,
        "how_to_load": f"transformers.{kind}.from_pretrained(FOLDER)",
        "requires": [*requires, *checkpoint.architecture.requires],
        "nbytes": evaluator.nbytes(configuration),
        **exported_card(checkpoint),
        "changes": changes(held) + _batch_wide(held),
    }
    write_further_files(checkpoint, folder)
    (folder / MODULE).write_bytes((RUNTIME / MODULE).read_bytes())
    (folder / EXAMPLE).write_text(transformers_example(card), encoding="utf-8")
    write_card(card, folder)
    return card


def _batch_wide(held: Held) -> list[str]:
    """What compressed-tensors does where inputs `(n, d)` have no dimension of tokens."""
    rounded = [
        path
        for path in _PROJECTIONS
        if path in held.precisions and held.precisions[path].quantizes_input
    ]
    if not rounded:
        return []
    return [
        f"a bare forward of transformers rounds a whole batch of {' and '.join(rounded)} with one "
        f"scale, for their inputs are rows without tokens; {MODULE} gives each row its own, as the "
        "trial did"
    ]


def _at_transformers(module: nn.Module, checkpoint: Checkpoint) -> tuple[PreTrainedModel, Names]:
    """The model as transformers builds it, and what its tensors are called there.

    Raises:
        InvalidModel: transformers has none like it, or does not load codes into it.
    """
    if isinstance(module, LlavaForConditionalGeneration):
        return module, lambda name: (name,)
    if isinstance(module, SiglipModel):
        raise InvalidModel(
            "transformers does not load packed codes into a SigLIP, whose weights it initialises "
            "first: build it with --to onnx, openvino or packed"
        )
    assert isinstance(module, open_clip.CLIP | CLIPModel)
    return their_clip(module, checkpoint.architecture.config), their_names

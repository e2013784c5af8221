"""A configuration as a checkpoint of transformers with compressed-tensors' packed codes.

`model.safetensors` and `config.json` are what `from_pretrained` loads; the codes and scales are
those that the trial measured. `transformers_model.py` and `exported_model.py` answer questions with
it, `card.json` says what it is, and `example.py` shows how.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration

from bitfront.artefact.architectures import RUNTIME
from bitfront.artefact.compressed_tensors import (
    changes,
    held_tensors,
    quantization_config,
    refuse_other_formats,
)
from bitfront.artefact.example import EXAMPLE, transformers_example
from bitfront.errors import InvalidModel
from bitfront.plan import Configuration
from objectives.evaluation.card import write_card
from objectives.evaluation.checkpoint import read_checkpoint
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.exported import exported_card, write_further_files

FORMAT = "bitfront.compressed-tensors.1"
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
        InvalidModel: The model is none of transformers that answers questions, or the format has
            no place for the configuration.
        OSError: A file cannot be written.
    """
    module = evaluator.model.module
    if not isinstance(module, LlavaForConditionalGeneration):
        raise InvalidModel(
            "compressed-tensors is for transformers' LLaVA, and this is a "
            f"{type(module).__name__}: build it with --to onnx, openvino or packed"
        )
    refuse_other_formats(
        dict(configuration.plan),
        symmetric=evaluator.spec.quantizer.scheme == "symmetric",
        recovery=configuration.recovery is not None,
    )
    checkpoint = read_checkpoint(evaluator, configuration)
    held = held_tensors(module, checkpoint.layers, checkpoint.tensors)
    save_file(held.tensors, folder / WEIGHTS, metadata={"format": "pt"})
    module.config.save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["architectures"] = [type(module).__name__]
    if held.precisions:
        config["quantization_config"] = quantization_config(module, held.precisions)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    requires = ["transformers", "compressed-tensors", "torch", "numpy", "pillow"]
    card: dict[str, object] = {
        "format": FORMAT,
        **facts,
        "how_to_load": "transformers.LlavaForConditionalGeneration.from_pretrained(FOLDER)",
        "requires": [*requires, *checkpoint.architecture.requires],
        "nbytes": evaluator.nbytes(configuration),
        **exported_card(checkpoint),
        "changes": changes(held),
    }
    write_further_files(checkpoint, folder)
    (folder / MODULE).write_bytes((RUNTIME / MODULE).read_bytes())
    (folder / EXAMPLE).write_text(transformers_example(card), encoding="utf-8")
    write_card(card, folder)
    return card

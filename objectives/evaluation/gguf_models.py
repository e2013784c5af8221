"""A configuration as gguf files: what llama.cpp loads, with the codes as measured.

`decoder.gguf` holds the decoder, `mmproj.gguf` the vision tower and the projector. `gguf_model.py`
and `exported_model.py` answer questions with them, `card.json` says what they are, and `example.py`
shows how.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import LlavaForConditionalGeneration

from bitfront.artefact.architectures import RUNTIME, Architecture
from bitfront.artefact.example import EXAMPLE, gguf_example
from bitfront.artefact.gguf.files import read_files
from bitfront.artefact.gguf.limits import changes, refuse_other_formats
from bitfront.artefact.gguf.vocabulary import Vocabulary, read_vocabulary
from bitfront.errors import InvalidModel
from bitfront.plan import Configuration
from objectives.evaluation.card import write_card
from objectives.evaluation.checkpoint import read_checkpoint
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.exported import exported_card, write_further_files

FORMAT = "bitfront.gguf.1"
MODULE = "gguf_model.py"


def write_gguf(
    evaluator: Evaluator, configuration: Configuration, folder: Path, facts: Mapping[str, object]
) -> dict[str, object]:
    """Writes the configuration's files into an empty folder; the card comes last.

    Args:
        evaluator: With the model and data that the configuration was measured on.
        configuration: What is written.
        folder: Where to; it is there.
        facts: What the card says beside: the study, the trial, what was measured.

    Returns:
        The card. `changes` says what the files hold or compute in another way than the trial.

    Raises:
        InvalidModel: The model is none of transformers that answers questions, the format has no
            place for the configuration, or the files do not take the bytes that were counted.
        OSError: A file cannot be written.
    """
    model, spec, plan = evaluator.model, evaluator.spec, dict(configuration.plan)
    if not isinstance(model.module, LlavaForConditionalGeneration):
        raise InvalidModel(
            "gguf is for transformers' LLaVA, and this is a "
            f"{type(model.module).__name__}: build it with --to onnx, openvino or packed"
        )
    refuse_other_formats(
        plan,
        symmetric=spec.quantizer.scheme == "symmetric",
        recovery=configuration.recovery is not None,
        layers=model.layers,
    )
    checkpoint = read_checkpoint(evaluator, configuration)
    files = read_files(checkpoint.architecture.config, checkpoint.layers, checkpoint.tensors)
    promised = sum(evaluator.nbytes(configuration).values())
    if spec.is_blocked and files.nbytes != promised:
        raise InvalidModel(
            f"the files' tensors take {files.nbytes:,} bytes, but {promised:,} were promised"
        )
    context = model.module.config.get_text_config().max_position_embeddings
    words = _vocabulary(checkpoint.architecture)
    files.write(checkpoint.architecture.config, context, folder, words)
    card: dict[str, object] = {
        "format": FORMAT,
        **facts,
        "how_to_load": "from gguf_model import load; model = load(FOLDER)",
        "requires": ["xllamacpp", "gguf", "numpy", "pillow", *checkpoint.architecture.requires],
        "nbytes": evaluator.nbytes(configuration),
        "stored_nbytes": files.nbytes,
        **exported_card(checkpoint),
        "types": files.types,
        "changes": changes(
            files,
            model.layers,
            plan,
            is_blocked=spec.is_blocked,
            has_words=words is not None,
        ),
    }
    write_further_files(checkpoint, folder)
    (folder / MODULE).write_bytes((RUNTIME / MODULE).read_bytes())
    (folder / EXAMPLE).write_text(gguf_example(card), encoding="utf-8")
    write_card(card, folder)
    return card


def _vocabulary(architecture: Architecture) -> Vocabulary | None:
    """What llama.cpp needs to make tokens itself, where it can."""
    config = cast("dict[str, Any]", architecture.config)
    tokenizer = architecture.files.get("tokenizer.json")
    if tokenizer is None:
        return None
    return read_vocabulary(tokenizer, config["text"]["vocabulary"], config["ends"][0])

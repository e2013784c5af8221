"""A configuration as a packed checkpoint: a folder that other programs load without bitfront.

`model.safetensors` holds the codes, scales, zero points, input ranges, what stays in 16 bits, and
a recovery's prompt and adapter: its tensors take exactly the configuration's `nbytes`.
`classes.safetensors` holds the class features, which follow from them. `card.json` says what it
all is; `packed_model.py` and `architecture.py` load it, and `example.py` shows how.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from bitfront.artefact.architectures import RUNTIME, Architecture, describe
from bitfront.artefact.example import example_script
from bitfront.artefact.packed import kept_tensors, packed_layers
from bitfront.artefact.runtime.packed_model import CARD, CLASSES, FORMAT, WEIGHTS
from bitfront.errors import InvalidModel
from bitfront.files import file_digest
from bitfront.plan import Configuration
from bitfront.vlm import DualEncoder, GenerativeModel
from objectives.data.classification import ClassificationTask
from objectives.data.questions import QuestionTask
from objectives.data.task import SplitName
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.evaluator import Evaluator
from objectives.recovery.adapter import LINEARS, AdapterShape

LOADER, ARCHITECTURE, EXAMPLE = "packed_model.py", "architecture.py", "example.py"


def write_packed(
    evaluator: Evaluator, configuration: Configuration, folder: Path, facts: Mapping[str, object]
) -> dict[str, object]:
    """Writes the configuration's files into an empty folder; the card comes last.

    Args:
        evaluator: With the model and data that the configuration was measured on.
        configuration: What is written; a recovery that is not known is trained.
        folder: Where to; it is there.
        facts: What the card says beside: the study, the trial, what was measured.

    Returns:
        The card.

    Raises:
        InvalidModel: The model's architecture is not known to the loader.
        OSError: A file cannot be written.
    """
    model = evaluator.model
    architecture = describe(model)
    tensors, layers = packed_layers(model, evaluator.switch, configuration.plan)
    kept = kept_tensors(model)
    tensors |= kept
    if configuration.recovery is not None:
        stored = evaluator.scorer.stored(configuration)
        tensors |= {name: tensor.cpu().contiguous() for name, tensor in stored.items()}
    _check_size(evaluator, configuration, tensors)
    save_file(tensors, folder / WEIGHTS)
    card: dict[str, object] = {
        "format": FORMAT,
        **facts,
        "requires": ["torch", "safetensors", "pillow", *architecture.requires],
        "dtype": str(next(model.module.parameters()).dtype).removeprefix("torch."),
        "nbytes": evaluator.nbytes(configuration),
        **_task_part(evaluator, configuration, folder),
        "adapter": _adapter_part(evaluator, configuration),
        "architecture": {"source": architecture.source, "config": dict(architecture.config)},
        "layers": layers,
        "kept": list(kept),
    }
    _write_sources(architecture, card, folder)
    write_card(card, folder)
    return card


def write_card(card: dict[str, object], folder: Path) -> None:
    """Writes the card, with the digests of the files beside it."""
    names = sorted(path.name for path in folder.iterdir() if path.name != CARD)
    card["files"] = {name: _digest(folder / name) for name in names}
    text = json.dumps(card, indent=1, ensure_ascii=False)
    (folder / CARD).write_text(f"{text}\n", encoding="utf-8")


def _digest(path: Path) -> dict[str, object]:
    return {"nbytes": path.stat().st_size, "sha256": file_digest(path)}


def _check_size(
    evaluator: Evaluator, configuration: Configuration, tensors: Mapping[str, Tensor]
) -> None:
    found = sum(tensor.nbytes for tensor in tensors.values())
    promised = sum(evaluator.nbytes(configuration).values())
    if found != promised:
        raise InvalidModel(
            f"the checkpoint's tensors take {found:,} bytes, but {promised:,} were promised"
        )


def _write_sources(architecture: Architecture, card: Mapping[str, object], folder: Path) -> None:
    for name, source in ((LOADER, LOADER), (ARCHITECTURE, architecture.source)):
        (folder / name).write_bytes((RUNTIME / source).read_bytes())
    (folder / EXAMPLE).write_text(example_script(card), encoding="utf-8")
    for name, content in architecture.files.items():
        (folder / name).write_bytes(content)


def _task_part(
    evaluator: Evaluator, configuration: Configuration, folder: Path
) -> dict[str, object]:
    """What the card says of the task; a classifier's class features are written."""
    task = evaluator.task
    if isinstance(task, ClassificationTask):
        assert isinstance(evaluator.scorer, ClassificationScorer)
        features = evaluator.scorer.text_features(configuration)
        save_file({"features": features.float().cpu().contiguous()}, folder / CLASSES)
        return {
            "task": "classification",
            "classes": list(task.classes),
            "templates": list(task.templates),
        }
    assert isinstance(task, QuestionTask)
    return {
        "task": "answering",
        "prompt": task.split(SplitName.TEST).template,
        "image_token": task.model.image_token,
        "answer_tokens": task.answer_tokens,
        "answer_pattern": task.answer_pattern,
    }


def _adapter_part(evaluator: Evaluator, configuration: Configuration) -> dict[str, object] | None:
    recovery, model = configuration.recovery, evaluator.model
    if recovery is None or not recovery.reduction:
        return None
    assert isinstance(model, DualEncoder | GenerativeModel)
    is_residual = isinstance(model, GenerativeModel)
    quantizer = evaluator.spec.quantizer
    shape = AdapterShape.of(recovery, model.feature_width, quantizer, is_residual=is_residual)
    return {
        "bits": recovery.adapter_bits,
        "blend": recovery.blend,
        "residual": is_residual,
        "shapes": {name: list(shape.matrix(name)) for name in LINEARS},
    }

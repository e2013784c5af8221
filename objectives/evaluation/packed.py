"""A configuration as a packed checkpoint: a folder that other programs load without bitfront.

`model.safetensors` holds the codes, scales, zero points, input ranges, what stays in 16 bits, and
a recovery's prompt and adapter: its tensors take exactly the configuration's `nbytes`.
`classes.safetensors` holds the features of classes, which follow from them. `card.json` says what
it all is; `packed_model.py` and `architecture.py` load it, and `example.py` shows how.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from bitfront.artefact.architectures import RUNTIME, Architecture
from bitfront.artefact.example import EXAMPLE, example_script
from bitfront.artefact.packed import format_levels
from bitfront.artefact.runtime.packed_model import CLASSES, FORMAT, WEIGHTS
from bitfront.plan import Configuration
from objectives.evaluation.card import write_card
from objectives.evaluation.checkpoint import read_checkpoint
from objectives.evaluation.evaluator import Evaluator

LOADER, ARCHITECTURE = "packed_model.py", "architecture.py"


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
    checkpoint = read_checkpoint(evaluator, configuration)
    architecture = checkpoint.architecture
    save_file(dict(checkpoint.tensors), folder / WEIGHTS)
    if checkpoint.class_features is not None:
        save_file({"features": checkpoint.class_features}, folder / CLASSES)
    card: dict[str, object] = {
        "format": FORMAT,
        **facts,
        "how_to_load": "from packed_model import load; model = load(FOLDER)",
        "requires": ["torch", "safetensors", "pillow", *architecture.requires],
        "dtype": str(next(evaluator.model.module.parameters()).dtype).removeprefix("torch."),
        "nbytes": evaluator.nbytes(configuration),
        **checkpoint.task,
        "adapter": checkpoint.adapter,
        "architecture": {"source": architecture.source, "config": dict(architecture.config)},
        "layers": checkpoint.layers,
        "formats": format_levels(configuration.plan),
        "kept": list(checkpoint.kept),
    }
    _write_sources(architecture, card, folder)
    write_card(card, folder)
    return card


def _write_sources(architecture: Architecture, card: Mapping[str, object], folder: Path) -> None:
    for name, source in ((LOADER, LOADER), (ARCHITECTURE, architecture.source)):
        (folder / name).write_bytes((RUNTIME / source).read_bytes())
    (folder / EXAMPLE).write_text(example_script(card), encoding="utf-8")
    for name, content in architecture.files.items():
        (folder / name).write_bytes(content)

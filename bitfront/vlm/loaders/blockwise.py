"""Models larger than the memory given: which are read block by block, and from where."""

import re
from math import prod
from pathlib import Path
from typing import Final

import torch

from bitfront.errors import InvalidModel, SpecError
from bitfront.units import size_text
from bitfront.vlm.loaders.files import safetensors_files, safetensors_shapes
from bitfront.vlm.loaders.llava import LLAVA_KINDS, Llava
from bitfront.vlm.models.stored_weights import StoredWeights

_SHARE: Final = 0.5  # the rest is for quantized weights and activations

# What older releases call the parts of a LLaVA, as transformers renames them.
_NAMES: Final = (
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(model\.)?language_model\.(model\.)?"), "model.language_model."),
    (re.compile(r"^(model\.)?vision_tower\.(vision_model\.)?"), "model.vision_tower."),
    (re.compile(r"^(model\.)?multi_modal_projector\."), "model.multi_modal_projector."),
    (re.compile(r"^image_newline$"), "model.image_newline"),
)


def fits(folder: Path, dtype: torch.dtype, memory_nbytes: int) -> bool:
    """Whether a model's weights take at most half of some bytes; one of the hub always does."""
    if not folder.is_dir():
        return True
    sizes = (safetensors_shapes(path).values() for path in safetensors_files(folder))
    weights = sum(prod(shape) for shapes in sizes for shape in shapes)
    return dtype.itemsize * weights <= _SHARE * memory_nbytes


def refuse_other_kinds(name: str, kind: str, memory_nbytes: int) -> None:
    """Refuses a model that is not read block by block.

    Raises:
        SpecError: It is no LLaVA.
    """
    if kind not in LLAVA_KINDS:
        raise SpecError(
            f"the weights of {name} take more than half of resources.memory "
            f"({size_text(memory_nbytes)}), and of its kind ({kind}) all are loaded: raise "
            "resources.memory; only a LLaVA is read block by block"
        )


def llava_weights(
    name: str, model: Llava, folder: Path, dtype: torch.dtype, device: torch.device
) -> StoredWeights:
    """Where the weights of a LLaVA on the meta device lie.

    Raises:
        InvalidModel: One is missing, has another shape, or has no place in the model.
    """
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    places: dict[Path, dict[str, str]] = {}
    found: set[str] = set()
    for path in safetensors_files(folder):
        names = places.setdefault(path, {})
        for stored, shape in safetensors_shapes(path).items():
            own = _model_name(stored)
            if own.endswith(("position_ids", "inv_freq")):
                continue  # old checkpoints hold what is computed today
            if own not in wanted:
                raise InvalidModel(
                    f"the weights of {name} hold {stored}, for which its config.json has no place: "
                    "weights and config.json are of different models"
                )
            if shape != wanted[own]:
                raise InvalidModel(
                    f"the weights of {name} have another shape than its config.json says: {stored} "
                    f"is {shape}, but must be {wanted[own]}"
                )
            names[stored] = own
            found.add(own)
    parameters = dict(model.named_parameters())  # a tied weight under its first name only
    missing = sorted(parameters.keys() - found)
    if missing:
        raise InvalidModel(f"the weights of {name} lack {len(missing)} tensors, first {missing[0]}")
    return StoredWeights.of_files(places, dtype, device).with_tied(model)


def _model_name(stored: str) -> str:
    for pattern, name in _NAMES:
        stored, count = pattern.subn(name, stored)
        if count:
            return stored
    return stored

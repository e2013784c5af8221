"""What a peer reads of an exchange folder; runs in its environment, without bitfront."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, CLIPModel, LlavaForConditionalGeneration

Batch = dict[str, Tensor]
Model = Any  # a module of transformers; torch types the attributes of one loosely


def read_exchange(folder: Path) -> tuple[Model, list[Batch]]:
    """The model in float32, and the calibration batches with their `answers`."""
    config = AutoConfig.from_pretrained(folder / "model", trust_remote_code=False)
    kind: Any = LlavaForConditionalGeneration if config.model_type == "llava" else CLIPModel
    model = kind.from_pretrained(
        folder / "model", trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    )
    batches: dict[str, Batch] = {}
    with safe_open(folder / "calibration.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            number, name = key.split(".")
            batches.setdefault(number, {})[name] = file.get_tensor(key)
    return model.eval(), list(batches.values())

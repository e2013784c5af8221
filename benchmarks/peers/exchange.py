"""Writes what a peer needs: a model as transformers saves it, calibration batches, layer names."""

import json
import shutil
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitfront.reference.digit_llava import load_llava
from bitfront.vlm import LayeredModel
from objectives.data.classification import ClassificationTask
from objectives.data.questions import QuestionTask
from objectives.data.split_name import SplitName
from objectives.data.task import Task

MODELS: Final = ("shapes-clip", "digit-llava")
"""Both are models of transformers, which every peer reads; open_clip's packed q, k and v is not."""


def linear_layers(model: LayeredModel) -> dict[str, str]:
    """The layer name of each `nn.Linear` by its module's name, except for a tied head."""
    names = {id(module): name for name, module in model.module.named_modules()}
    found = {}
    for layer in model.layers:
        modules = model.modules(layer.name)
        if len(modules) == 1 and isinstance(modules[0], nn.Linear):
            found[names[id(modules[0])]] = layer.name
    return found


def write_exchange(task: Task, model: str, shapes: Path, folder: Path) -> None:
    """Writes `model/`, `calibration.safetensors` and `layers.json` into the folder.

    Args:
        task: Whose calibration split is written.
        model: One of `MODELS`.
        shapes: Where `shapes-clip` was saved.
        folder: It is made anew.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if model == "digit-llava":
        load_llava().save_pretrained(folder / "model")
    else:
        shutil.copytree(shapes / "model", folder / "model")
    save_file(_batches(task), folder / "calibration.safetensors")
    layers = list(linear_layers(task.model))
    (folder / "layers.json").write_text(json.dumps(layers, indent=1))


def _batches(task: Task) -> dict[str, Tensor]:
    """The arguments of each forward call, as `number.argument`, and the right `number.answers`.

    These are the class of each image, or the tokens that end each question's `input_ids`.
    """
    found = {}
    if isinstance(task, ClassificationTask):
        split = task.split(SplitName.CALIBRATION)
        pixels = split.read(0, len(split))
        found = {"0.pixel_values": pixels, "0.input_ids": task.captions, "0.answers": split.labels}
    elif isinstance(task, QuestionTask):
        questions = task.split(SplitName.CALIBRATION)
        for number in range(len(questions.batches)):
            batch = questions.read(number)
            tokens = torch.cat([batch.prompts, batch.answers], dim=1)
            found |= {f"{number}.input_ids": tokens, f"{number}.answers": batch.answers}
            if batch.pixels is not None:
                found[f"{number}.pixel_values"] = batch.pixels
    else:
        raise TypeError(f"{type(task).__name__} has no calibration samples for peers")
    return {name: tensor.contiguous() for name, tensor in found.items()}

"""A recovery that was tuned for one plan, as a folder: its tensors, and a card that tells all.

`recovery.safetensors` holds the context and the packed adapter; `card.json` the job, the plan,
the settings, what was measured, and the checksum of the tensors.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load, save
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.plan import Configuration, full_precision
from bitfront.quant.inputs import bounds_from_json, bounds_to_json
from bitfront.spec import JobSpec
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator

CARD, TENSORS = "card.json", "recovery.safetensors"


class Card(BaseModel):
    """What a tuned recovery is, and how good.

    Attributes:
        format: The form of the folder.
        job: Model, data, quantizer and seed.
        configuration: The plan and the recovery's settings.
        bounds: Learned bounds of the vision tower's inputs; empty without.
        model: The identity of the model's weights.
        selection_error: Errors on the selection split: `full_precision`, `quantized`, `tuned`.
        nbytes: The bytes of the packed checkpoint, part by part.
        sha256: Of the tensors' file.
        versions: Of the packages that it was tuned with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["bitfront.tuned.1"] = "bitfront.tuned.1"
    job: JobSpec
    configuration: dict[str, object]
    bounds: dict[str, object]
    model: str
    selection_error: dict[str, float]
    nbytes: dict[str, int]
    sha256: str
    versions: dict[str, str]


def recovery_errors(
    evaluator: Evaluator, configuration: Configuration, split: SplitName
) -> dict[str, float]:
    """The errors in full precision, of the plan, and with its recovery if it has one."""
    known = {
        "full_precision": full_precision(evaluator.model.layers),
        "quantized": replace(configuration, recovery=None),
    }
    if configuration.recovery is not None:
        known["tuned"] = configuration
    return {name: evaluator.scorer.figures(it, split)["error"] for name, it in known.items()}


def tuned_files(
    evaluator: Evaluator,
    configuration: Configuration,
    selection_error: Mapping[str, float],
    versions: Mapping[str, str],
) -> dict[str, bytes]:
    """The files of the configuration's recovery, which the evaluator knows; the card comes last."""
    content = save(evaluator.scorer.stored(configuration))
    card = Card(
        job=evaluator.spec,
        configuration=configuration.to_dict(),
        bounds=bounds_to_json(evaluator.switch.bounds),
        model=evaluator.model.identity,
        selection_error=dict(selection_error),
        nbytes=evaluator.nbytes(configuration),
        sha256=hashlib.sha256(content).hexdigest(),
        versions=dict(versions),
    )
    return {TENSORS: content, CARD: (card.model_dump_json(indent=2) + "\n").encode()}


def read_tuned(folder: Path) -> tuple[Evaluator, Configuration]:
    """An evaluator that knows the folder's recovery, and its configuration.

    Raises:
        InvalidModel: The folder holds no tuned recovery, a damaged one, or one of other weights.
        BitfrontError: The model or the data cannot be loaded.
    """
    card, tensors = _read(folder)
    evaluator = Evaluator.from_spec(card.job, bounds_from_json(card.bounds))
    if evaluator.model.identity != card.model:
        raise InvalidModel(
            f"{folder} was tuned for other weights than those of {card.job.model.name} now: "
            "tune it again"
        )
    configuration = Configuration.from_dict(card.configuration)
    evaluator.scorer.keep(configuration, tensors)
    return evaluator, configuration


def _read(folder: Path) -> tuple[Card, dict[str, Tensor]]:
    try:
        card = Card.model_validate(json.loads((folder / CARD).read_text()))
        content = (folder / TENSORS).read_bytes()
    except (OSError, ValueError, ValidationError) as error:
        raise InvalidModel(
            f"{folder} holds no tuned recovery ({str(error).partition(chr(10))[0]}): "
            "give the folder that 'bitfront tune --out' wrote"
        ) from error
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise InvalidModel(f"{folder / TENSORS} is damaged, its checksum is wrong: tune it again")
    return card, load(content)

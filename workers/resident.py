"""What a worker process keeps between tasks and trials: the loaded model and its caches."""

import platform
import socket
from functools import lru_cache
from importlib.metadata import version

import torch

from bitfront.spec import JobSpec
from bitfront.vlm import LayeredModel
from objectives.cells import CellMeter
from objectives.entropy import measure_entropies
from objectives.evaluation import Evaluator
from objectives.task import SplitName
from search.seeds import full_precision
from workers.report import ModelReport

# Levels of the quantizer over which entropies are taken: at 4 bits they begin to matter, and
# the joint distribution of two layers is still small.
_ENTROPY_BITS = 4


@lru_cache(maxsize=1)
def evaluator(spec_json: str) -> Evaluator:
    """The process's evaluator for a job; another job replaces it."""
    return Evaluator.from_spec(JobSpec.model_validate_json(spec_json))


@lru_cache(maxsize=1)
def cell_meter(spec_json: str) -> CellMeter:
    """The process's cell meter for a job, on the same model as its evaluator."""
    resident = evaluator(spec_json)
    return CellMeter(resident.model, resident.task, resident.switch, resident.spec)


def inspect(spec_json: str) -> ModelReport:
    """Loads a job's model and data, and reports what the driver plans with."""
    resident = evaluator(spec_json)
    model, task = resident.model, resident.task
    full = resident.evaluate(full_precision(model.layers))
    entropies = measure_entropies(model, task, resident.ranges, _ENTROPY_BITS)
    splits = {name.value: task.split_identity(name) for name in SplitName}
    return ModelReport(
        layers=model.layers,
        fixed_nbytes=model.fixed_nbytes,
        entropies=tuple(entropies),
        full=full,
        identities={"model": model.identity, "cells": cell_meter(spec_json).identity, **splits},
        provenance=_provenance(model),
    )


def _provenance(model: LayeredModel) -> dict[str, str]:
    packages = ("bitfront", "torch", "open_clip_torch", "transformers", "ray", "optuna")
    versions = {package: version(package) for package in packages}
    device = str(model.device)
    if model.device.type == "cuda":
        device = torch.cuda.get_device_name(model.device)
    host = {"host": socket.gethostname(), "platform": platform.platform(), "device": device}
    return {**versions, **host}

"""What distilled plans put onto a model: known already, kept in a file, or trained now."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from cachetools import LRUCache
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.identity.keys import recovery_checkpoint_key
from bitfront.plan import Configuration, Plan
from bitfront.quant.inputs import InputQuantizer, InputRange
from bitfront.quant.packing import packed_codes, unpacked_codes
from bitfront.spec import QuantizerSpec
from bitfront.vlm.plan_switch import CodedLayer, PlanSwitch, TrainedPlan
from objectives.data.task import Task
from objectives.execution.stopwatch import Stopwatch
from objectives.recovery.checkpoint import read_checkpoint, write_checkpoint
from objectives.recovery.checkpointed_training import advance
from objectives.recovery.distil_training import DistilTraining

logger = logging.getLogger(__name__)

_FORM = "bitfront.distilled.1"
_KEPT_NBYTES = 256 << 20
_LOW, _HIGH, _VECTOR = "low", "high", "vector:"


class Distiller:
    """Trains distilled plans, and keeps what came of them.

    Args:
        task: What is trained on.
        switch: Of its model.
        quantizer: How weights and inputs get their codes.
        seed: Of the order of the samples.
        stopwatch: Is told how long training takes, and what was known.
        folder: Where finished ones outlive the process; None keeps none there.
        features: What `features_key` gives; it matters with a folder only.
        kept_nbytes: What is kept in memory; the plan that was used last always is.
    """

    def __init__(
        self,
        task: Task,
        switch: PlanSwitch,
        quantizer: QuantizerSpec,
        seed: int,
        stopwatch: Stopwatch,
        *,
        folder: Path | None = None,
        features: str = "",
        kept_nbytes: int = _KEPT_NBYTES,
    ) -> None:
        self._task = task
        self._switch = switch
        self._quantizer = quantizer
        self._seed = seed
        self._stopwatch = stopwatch
        self._folder = folder
        self._features = features
        self._last: tuple[Plan, TrainedPlan] | None = None
        self._kept: LRUCache[Plan, TrainedPlan] = LRUCache(kept_nbytes, getsizeof=_nbytes)

    def trained(self, plan: Plan) -> TrainedPlan:
        """What a distilled plan puts onto the model; it is trained if it is not known."""
        known = self.known(plan)
        self._stopwatch.hit("distil", known is not None)
        if known is not None:
            return known
        assert plan.distil is not None
        with self._stopwatch.timed("distil"):
            training = self.begin(plan)
            advance(training, plan.distil.until or plan.distil.steps)
            found = training.trained()
        self.keep(plan, found)
        return found

    def known(self, plan: Plan) -> TrainedPlan | None:
        """What a distilled plan puts onto the model; None where it would have to be trained."""
        if self._last is not None and self._last[0] == plan:
            return self._last[1]
        found = self._kept.get(plan)
        if found is None:
            found = self._read(plan)
        if found is not None:
            self._last = plan, found
        return found

    def begin(self, plan: Plan) -> DistilTraining:
        """The training of a plan, at its start."""
        return DistilTraining(self._task, self._switch, plan, self._seed)

    def keep(self, plan: Plan, found: TrainedPlan) -> None:
        """Takes in what came of a training."""
        self._last = plan, found
        if _nbytes(found) <= self._kept.maxsize:
            self._kept[plan] = found
        assert plan.distil is not None
        if self._folder is not None and plan.distil.until is None:
            path, identity = self._place(self._folder, plan)
            try:
                write_checkpoint(path, _FORM, identity, {}, _tensors(found))
            except OSError as error:
                logger.warning("a distilled plan is not kept, and may be trained again: %s", error)

    def _place(self, folder: Path, plan: Plan) -> tuple[Path, str]:
        identity = recovery_checkpoint_key(self._features, Configuration(plan))
        return folder / f"{identity}.safetensors", identity

    def _read(self, plan: Plan) -> TrainedPlan | None:
        if self._folder is None:
            return None
        path, identity = self._place(self._folder, plan)
        if not path.exists():
            return None
        try:
            os.utime(path)  # features that share the folder make room by what was used last
            _, tensors = read_checkpoint(path, _FORM, identity)
            return self._plan_of(plan, tensors)
        except (InvalidModel, KeyError, OSError) as error:
            logger.warning("a distilled plan is trained again: %s", error)
            path.unlink(missing_ok=True)
            return None

    def _plan_of(self, plan: Plan, tensors: Mapping[str, Tensor]) -> TrainedPlan:
        model, layers = self._task.model, {}
        placed = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        for layer, precision in plan:
            prefix = f"{layer}."
            own = {n.removeprefix(prefix): t for n, t in placed.items() if n.startswith(prefix)}
            codes = None
            if precision.quantizes_weight:
                rows, columns = model.weight(layer).shape
                codes = unpacked_codes(own, rows, columns, precision, self._quantizer)
            quantize = self._switch.input_quantizer(layer, precision)
            if quantize is not None and quantize.range is not None:
                found = InputRange(float(own[_LOW]), float(own[_HIGH]))
                quantize = InputQuantizer(precision.activation_bits, found)
            layers[layer] = CodedLayer(codes, quantize)
        vectors = {n.removeprefix(_VECTOR): t for n, t in placed.items() if n.startswith(_VECTOR)}
        return TrainedPlan(layers, vectors)


def _tensors(found: TrainedPlan) -> dict[str, Tensor]:
    """What a file holds of a distilled plan, on the CPU."""
    tensors = {f"{_VECTOR}{name}": values for name, values in found.vectors.items()}
    for layer, own in found.layers.items():
        parts = {} if own.codes is None else packed_codes(own.codes)
        if own.quantize is not None and own.quantize.range is not None:
            parts[_LOW] = torch.tensor(own.quantize.range.low, dtype=torch.float64)
            parts[_HIGH] = torch.tensor(own.quantize.range.high, dtype=torch.float64)
        tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _nbytes(found: TrainedPlan) -> int:
    codes = [own.codes for own in found.layers.values() if own.codes is not None]
    return sum(one.codes.nbytes + one.scale.nbytes for one in codes)

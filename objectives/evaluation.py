"""Evaluating configurations, with nothing done twice: what a trial is worth on a split."""

import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.errors import InvalidMetric
from bitfront.layers import Tower
from bitfront.plan import Configuration, Plan
from bitfront.spec import JobSpec, Objective
from bitfront.trial import Evaluation
from bitfront.vlm import DualEncoder, PlanSwitch, load_model
from objectives.cache import TensorCache
from objectives.calibration import Ranges, calibrate
from objectives.cost import bit_operations, bits_per_weight, configuration_nbytes
from objectives.data import SplitName, Task, load_task
from objectives.latency import LatencyTable, measure_latency
from objectives.recovery import Recovered, RecoveryData, recover
from objectives.similarity import class_features, error_rate, logits, loss_nats
from objectives.towers import TowerInput, TowerRunner

KEPT_RECOVERIES = 256
FEATURES_NBYTES = 256 << 20
FULL_PLAN = Plan(())


class Evaluator:
    """Evaluates the configurations of one job.

    It keeps quantized weights, the activations between transformer blocks, the features of
    each tower by its own part of the plan, and finished recoveries. None of it changes a
    result: values are equal to the last bit whatever was evaluated before.

    Args:
        spec: The job.
        model: Its model; the evaluator puts plans onto it.
        task: Its task.
        ranges: What `calibrate` returned for the job's clips.
        cache_nbytes: How much of the activations between blocks to keep; 0 keeps neither
            them nor features nor recoveries.

    Attributes:
        spec: The job.
        model: Its model.
        task: Its task.
        ranges: The static input ranges.
        switch: The model's switch.
    """

    def __init__(
        self,
        spec: JobSpec,
        model: DualEncoder,
        task: Task,
        ranges: Ranges,
        *,
        cache_nbytes: int = 1 << 30,
    ) -> None:
        self.spec = spec
        self.model = model
        self.task = task
        self.ranges = ranges
        self.switch = PlanSwitch(model, spec.quantizer, ranges)
        self._runner = TowerRunner(model, self.switch, cache_nbytes)
        self._features = TensorCache(FEATURES_NBYTES if cache_nbytes else 0)
        self._recoveries: OrderedDict[str, Recovered] = OrderedDict()
        self._kept_recoveries = KEPT_RECOVERIES if cache_nbytes else 0
        self._latencies = LatencyTable()
        self._layers = {
            tower: frozenset(layer.name for layer in model.layers if layer.tower is tower)
            for tower in Tower
        }
        self._seconds: dict[str, float] = {}
        self._hits: dict[str, float] = {}

    @classmethod
    def from_spec(cls, spec: JobSpec) -> Self:
        """Loads a job's model and task, and calibrates the model for every clip of the job.

        Raises:
            BitfrontError: The model or the data cannot be loaded.
        """
        model = load_model(spec.model)
        task = load_task(spec.data, model)
        clips = sorted({1.0, *spec.space.clips})
        return cls(spec, model, task, calibrate(model, task, clips))

    def evaluate(
        self, configuration: Configuration, split: SplitName = SplitName.SELECTION
    ) -> Evaluation:
        """The job's objectives for a configuration, and further figures.

        `error` is the share of the split's images whose own class is not the nearest among
        all classes. The metrics hold every figure that is known, objectives included:
        `error`, `loss_nats`, `nbytes` with its parts, `bits_per_weight`, `bit_operations`,
        the seconds of each stage, and what came from the caches (1 or 0).

        Raises:
            InvalidMetric: A figure is not finite.
            SpecError: The plan names an unknown layer or a clip that was not calibrated.
            UnavailableDevice: The job asks for a latency that cannot be measured here.
        """
        self._seconds, self._hits = {}, {}
        scores = self._scores(configuration, split)
        labels = self.task.split(split).labels
        nbytes = configuration_nbytes(self.model, configuration, self.spec.quantizer)
        figures = {
            Objective.ERROR.value: error_rate(scores, labels),
            "loss_nats": loss_nats(scores, labels),
            Objective.NBYTES.value: float(sum(nbytes.values())),
            "bits_per_weight": bits_per_weight(self.model, configuration),
            Objective.BIT_OPERATIONS.value: bit_operations(self.model, configuration),
        }
        if self._wants_latency:
            figures[Objective.LATENCY_S.value] = self._latency_s(configuration)
        for name, value in figures.items():
            if not math.isfinite(value):
                raise InvalidMetric(name, str(value))
        values = {objective.value: figures[objective.value] for objective in self.spec.objectives}
        figures |= {f"nbytes.{part}": float(count) for part, count in nbytes.items()}
        figures |= {f"seconds.{stage}": seconds for stage, seconds in self._seconds.items()}
        return Evaluation(values, figures | {f"hits.{name}": n for name, n in self._hits.items()})

    def _scores(self, configuration: Configuration, split: SplitName) -> Float[Tensor, "n classes"]:
        recovered = self._recovered(configuration)
        images = self._image_features(configuration.plan, split)
        if recovered is None:
            classes = self._class_features(configuration.plan)
        else:
            images, classes = recovered.adapt(images), recovered.text_features()
        return logits(images, classes, self.model.logit_scale)

    def _image_features(self, plan: Plan, split: SplitName) -> Float[Tensor, "n d"]:
        with self._timed("vision"):
            return self._tower_features(TowerInput.images(self.task, split, self.model), plan)

    def _class_features(self, plan: Plan) -> Float[Tensor, "classes d"]:
        with self._timed("text"):
            features = self._tower_features(TowerInput.captions(self.task), plan)
            return class_features(features, len(self.task.templates))

    def _tower_features(self, given: TowerInput, plan: Plan) -> Float[Tensor, "n d"]:
        key = (given.key, plan.part(self._layers[given.tower]))
        kept = self._features.get(key)
        self._hits[f"{given.key}_features"] = float(kept is not None)
        if kept is not None:
            return kept[0]
        before = self._runner.cache.hits
        features = self._runner.run(given, plan)
        self._hits[f"{given.key}_blocks"] = float(self._runner.cache.hits - before)
        self._features.put(key, [features])
        return features

    def _recovered(self, configuration: Configuration) -> Recovered | None:
        """The configuration's finished recovery: known already, or trained now."""
        if configuration.recovery is None:
            return None
        recovered = self._recoveries.pop(configuration.digest, None)
        self._hits["recovery"] = float(recovered is not None)
        if recovered is None:
            data = self._recovery_data(configuration.plan)
            # The text tower must have the plan while its prompt is trained.
            self.switch.to(configuration.plan)
            with self._timed("recovery"):
                recovered = recover(
                    self.model,
                    configuration.recovery,
                    self.spec.quantizer,
                    data,
                    self.spec.search.seed,
                )
        self._recoveries[configuration.digest] = recovered
        while len(self._recoveries) > self._kept_recoveries:
            self._recoveries.popitem(last=False)
        return recovered

    def _recovery_data(self, plan: Plan) -> RecoveryData:
        teacher_images, teacher_classes = self._teacher
        return RecoveryData(
            image_features=self._image_features(plan, SplitName.TUNING),
            labels=self.task.split(SplitName.TUNING).labels,
            teacher_image_features=teacher_images,
            teacher_text_features=teacher_classes,
            text_features=self._class_features(plan),
            tokens=self.task.tokens[0],
            scale=self.model.logit_scale,
        )

    @cached_property
    def _teacher(self) -> tuple[Tensor, Tensor]:
        """Full-precision features of the tuning images and of the classes."""
        images = TowerInput.images(self.task, SplitName.TUNING, self.model)
        captions = self._runner.run(TowerInput.captions(self.task), FULL_PLAN, keep=False)
        return (
            self._runner.run(images, FULL_PLAN, keep=False),
            class_features(captions, len(self.task.templates)),
        )

    @property
    def _wants_latency(self) -> bool:
        is_limited = self.spec.constraints.max_latency_s is not None
        return Objective.LATENCY_S in self.spec.objectives or is_limited

    def _latency_s(self, configuration: Configuration) -> float:
        with self._timed("latency"):
            return measure_latency(
                self.model,
                configuration,
                self.switch,
                batch_size=self.task.batch_size,
                quantizer=self.spec.quantizer,
                table=self._latencies,
            )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        started_s = time.perf_counter()
        try:
            yield
        finally:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)
            elapsed_s = time.perf_counter() - started_s
            self._seconds[stage] = self._seconds.get(stage, 0.0) + elapsed_s

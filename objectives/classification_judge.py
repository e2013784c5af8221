"""How well a configuration does on a split, and all that is kept between evaluations for it."""

from collections import OrderedDict
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.layers import Tower
from bitfront.plan import Configuration, Plan
from bitfront.spec import JobSpec, Objective
from bitfront.vlm import DualEncoder, PlanSwitch
from objectives.cache import TensorCache
from objectives.classification import ClassificationTask
from objectives.recovery import Recovered, RecoveryData, recover
from objectives.runner import StreamRunner
from objectives.similarity import class_features, error_rate, logits, loss_nats
from objectives.stopwatch import Stopwatch
from objectives.streams import Stream
from objectives.task import SplitName
from objectives.teacher import FULL_PLAN

KEPT_RECOVERIES = 256
FEATURES_NBYTES = 256 << 20


class Judge(Protocol):
    """Measures how well a configuration does its task."""

    def figures(self, configuration: Configuration, split: SplitName) -> dict[str, float]:
        """`error`, `loss_nats`, and what else is measured; a figure may be NaN."""


class ClassificationJudge:
    """Judges a dual encoder by zero-shot classification.

    It keeps the activations between transformer blocks, the features of each tower by its own
    part of the plan, and finished recoveries.
    """

    def __init__(
        self,
        spec: JobSpec,
        model: DualEncoder,
        task: ClassificationTask,
        switch: PlanSwitch,
        stopwatch: Stopwatch,
        cache_nbytes: int,
    ) -> None:
        self._spec = spec
        self._model = model
        self._task = task
        self._switch = switch
        self._stopwatch = stopwatch
        self._runner = StreamRunner(model, switch, cache_nbytes)
        self._features = TensorCache(FEATURES_NBYTES if cache_nbytes else 0)
        self._recoveries: OrderedDict[str, Recovered] = OrderedDict()
        self._kept_recoveries = KEPT_RECOVERIES if cache_nbytes else 0
        self._layers = {
            frozenset({tower}): frozenset(x.name for x in model.layers if x.tower is tower)
            for tower in Tower
        }

    def figures(self, configuration: Configuration, split: SplitName) -> dict[str, float]:
        """`error` and `loss_nats` of the right class among all."""
        scores = self._scores(configuration, split)
        labels = self._task.split(split).labels
        return {
            Objective.ERROR.value: error_rate(scores, labels),
            "loss_nats": loss_nats(scores, labels),
        }

    def probabilities(
        self, configuration: Configuration, pixels: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n classes"]:
        """The share of each class for any pictures, as the model prepares them.

        A recovery is trained if it is not known.
        """
        recovered = self._recovered(configuration)
        classes = (
            self._class_features(configuration.plan)
            if recovered is None
            else recovered.text_features()
        )
        self._switch.to(configuration.plan)
        with torch.no_grad():
            images = self._model.encode_images(pixels)
        if recovered is not None:
            images = recovered.adapt(images)
        return logits(images, classes, self._model.logit_scale).softmax(dim=-1)

    def _scores(self, configuration: Configuration, split: SplitName) -> Float[Tensor, "n classes"]:
        recovered = self._recovered(configuration)
        images = self._image_features(configuration.plan, split)
        if recovered is None:
            classes = self._class_features(configuration.plan)
        else:
            images, classes = recovered.adapt(images), recovered.text_features()
        return logits(images, classes, self._model.logit_scale)

    def _image_features(self, plan: Plan, split: SplitName) -> Float[Tensor, "n d"]:
        with self._stopwatch.timed("vision"):
            return self._tower_features(self._task.images(self._model, split), plan)

    def _class_features(self, plan: Plan) -> Float[Tensor, "classes d"]:
        with self._stopwatch.timed("text"):
            features = self._tower_features(self._task.caption_stream(self._model), plan)
            return class_features(features, len(self._task.templates))

    def _tower_features(self, given: Stream, plan: Plan) -> Float[Tensor, "n d"]:
        key = (given.key, plan.part(self._layers[given.towers]))
        kept = self._features.get(key)
        self._stopwatch.hit(f"{given.key}_features", kept is not None)
        if kept is not None:
            return kept[0]
        before = self._runner.cache.hits
        features = self._runner.run(given, plan)
        self._stopwatch.hit(f"{given.key}_blocks", self._runner.cache.hits - before)
        self._features.put(key, [features])
        return features

    def _recovered(self, configuration: Configuration) -> Recovered | None:
        """The configuration's finished recovery: known already, or trained now."""
        if configuration.recovery is None:
            return None
        recovered = self._recoveries.pop(configuration.digest, None)
        self._stopwatch.hit("recovery", recovered is not None)
        if recovered is None:
            data = self._recovery_data(configuration.plan)
            # The text tower must have the plan while its prompt is trained.
            self._switch.to(configuration.plan)
            with self._stopwatch.timed("recovery"):
                recovered = recover(
                    self._model,
                    configuration.recovery,
                    self._spec.quantizer,
                    data,
                    self._spec.search.seed,
                )
        self._recoveries[configuration.digest] = recovered
        while len(self._recoveries) > self._kept_recoveries:
            self._recoveries.popitem(last=False)
        return recovered

    def _recovery_data(self, plan: Plan) -> RecoveryData:
        teacher_images, teacher_classes = self._teacher
        return RecoveryData(
            image_features=self._image_features(plan, SplitName.TUNING),
            labels=self._task.split(SplitName.TUNING).labels,
            teacher_image_features=teacher_images,
            teacher_text_features=teacher_classes,
            text_features=self._class_features(plan),
            tokens=self._task.tokens[0],
            scale=self._model.logit_scale,
        )

    @cached_property
    def _teacher(self) -> tuple[Tensor, Tensor]:
        """Full-precision features of the tuning images and of the classes."""
        images = self._task.images(self._model, SplitName.TUNING)
        captions = self._runner.run(self._task.caption_stream(self._model), FULL_PLAN, keep=False)
        return (
            self._runner.run(images, FULL_PLAN, keep=False),
            class_features(captions, len(self._task.templates)),
        )

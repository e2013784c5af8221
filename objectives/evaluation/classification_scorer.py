"""How well a configuration tells classes apart, and all that is kept between evaluations for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from bitfront.plan import Configuration, Plan, Recovery, TeacherText
from bitfront.vlm.models.captions import ClassNames
from objectives.data.classification import ClassificationTask
from objectives.data.split_name import SplitName
from objectives.data.task import first_of_each
from objectives.evaluation.scorer import (
    KEPT_RECOVERIES,
    Outputs,
    PartialScore,
    Recoveries,
    Score,
    Scorer,
    ScoringContext,
)
from objectives.evaluation.tower_features import TowerFeatures
from objectives.execution.parted import rows_of
from objectives.execution.similarity import (
    class_features,
    divergences_nats,
    is_highest,
    logits,
    loss_nats,
)
from objectives.profiling.full_precision import FULL_PLAN
from objectives.recovery.class_training import ClassData, ClassRecovered, ClassTraining


class ClassificationScorer(Scorer):
    """Scores a dual encoder by zero-shot classification.

    It keeps the activations between transformer blocks, the features of each tower by its own
    part of the plan, and finished recoveries.
    """

    def __init__(self, task: ClassificationTask, context: ScoringContext) -> None:
        self._spec = context.spec
        self._model = task.model
        self._task = task
        self._switch = context.switch
        self._towers = TowerFeatures(task.model, context)
        limit = KEPT_RECOVERIES if context.cache_nbytes else 0
        self._recoveries = Recoveries(self.begin, self._load, context.stopwatch, limit)

    def score(self, configuration: Configuration, split: SplitName) -> Score:
        """Whether the right class has the highest score; `loss_nats` is its cross-entropy.

        Under the measure `mean_per_class_accuracy` every class of the split has the same share in
        the error, however many images it has.
        `divergence` is the mean of `KL(p || q)` over the images, `p` and `q` being the softmax over
        the classes in full precision and under the configuration.
        """
        full = self._full_scores(split)
        recovered = self._recoveries.get(configuration)
        images = self._image_features(configuration.plan, split)
        if recovered is None:
            classes = self._class_features(configuration.plan)
        else:
            images, classes = recovered.adapt(images), recovered.text_features
        scores = logits(images, classes, self._model.logit_scale)
        further = {
            "loss_nats": loss_nats(scores, self.labels(split)),
            **self._further(scores, split),
        }
        return Score.of(self.errors(scores, split), divergences_nats(full, scores), further)

    def course(self, plan: Plan, split: SplitName) -> Iterator[PartialScore]:
        """The divergences of more and more images."""
        stream = self._task.images(split, 0)
        for batches, images in self._towers.course(stream, plan, "vision"):
            places = rows_of(batches, stream.sizes)
            full = self._full_scores(split)[places.to(images.device)]
            scores = logits(images, self._class_features(plan), self._model.logit_scale)
            yield PartialScore(places, divergences_nats(full, scores).cpu())

    def labels(self, split: SplitName) -> Int[Tensor, " n"]:
        """The class that is right for each image."""
        return self._task.split(split).labels

    def errors(self, scores: Float[Tensor, "n classes"], split: SplitName) -> Float[Tensor, " n"]:
        """Each image's share in the error of a split, by its logits."""
        return self._task.errors(~is_highest(scores, self.labels(split)), split)

    def _further(self, scores: Float[Tensor, "n classes"], split: SplitName) -> dict[str, float]:
        """Figures that only some measures have."""
        del scores, split
        return {}

    def _full_scores(self, split: SplitName) -> Float[Tensor, "n classes"]:
        """The logits in full precision: the features behind them are computed once and kept."""
        images = self._towers.full(self._task.images(split, 0))
        captions = self._towers.full(self._task.caption_stream())
        classes = class_features(captions, len(self._task.templates))
        return logits(images, classes, self._model.logit_scale)

    def text_features(self, configuration: Configuration) -> Float[Tensor, "classes d"]:
        """The features that the classes have under a configuration, of length 1.

        A recovery is trained if it is not known.
        """
        recovered = self._recoveries.get(configuration)
        if recovered is None:
            return self._class_features(configuration.plan)
        return recovered.text_features

    def logits(
        self, configuration: Configuration, pixels: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n classes"]:
        """The scaled cosines of any pictures, as the model prepares them, with the classes.

        A recovery is trained if it is not known.
        """
        classes = self.text_features(configuration)
        recovered = self._recoveries.get(configuration)
        self._switch.to(configuration.plan)
        with torch.no_grad():
            images = self._model.encode_images(pixels)
        if recovered is not None:
            images = recovered.adapt(images)
        return logits(images, classes, self._model.logit_scale)

    def probabilities(
        self, configuration: Configuration, pixels: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n classes"]:
        """The share of each class for any pictures; see `logits`."""
        return self.logits(configuration, pixels).softmax(dim=-1)

    def classify(
        self, configuration: Configuration, pictures: Sequence[Image], top: int
    ) -> list[list[tuple[str, float]]]:
        """The `top` most likely classes of every picture with their shares, the best first."""
        pixels = torch.stack([self._model.preprocess(picture) for picture in pictures])
        classes = self._task.classes
        shares, places = self.probabilities(configuration, pixels).topk(min(top, len(classes)))
        return [
            [(classes[place], share) for place, share in zip(row, own, strict=True)]
            for row, own in zip(places.tolist(), shares.tolist(), strict=True)
        ]

    def outputs(self, configuration: Configuration) -> Outputs:
        """The class features, and the adapter where there is one."""
        recovered, recovery = self._recoveries.get(configuration), configuration.recovery
        has_adapter = recovery is not None and bool(recovery.reduction)
        return Outputs(
            recovered.adapt if recovered is not None and has_adapter else None,
            tuple(self._task.classes),
            functional.normalize(self.text_features(configuration).detach(), dim=-1),
        )

    def begin(self, configuration: Configuration) -> ClassTraining:
        """The training of the configuration's recovery, at its start, with the plan on."""
        recovery = configuration.recovery
        assert recovery is not None
        data = self._data(configuration.plan, recovery)
        # The text tower must have the plan while its prompt is trained.
        self._switch.to(configuration.plan)
        search, quantizer = self._spec.search, self._spec.quantizer
        return ClassTraining(self._model, recovery, quantizer, data, search.seed)

    def keep(self, configuration: Configuration, stored: Mapping[str, Tensor]) -> None:
        """Takes a recovery as known, as `Training.stored` gave it."""
        self._recoveries.keep(configuration, stored)

    def stored(self, configuration: Configuration) -> dict[str, Tensor]:
        """The tensors of a configuration's recovery, which is trained if it is not known."""
        return self._recoveries.stored(configuration)

    def _load(self, configuration: Configuration, stored: Mapping[str, Tensor]) -> ClassRecovered:
        recovery = configuration.recovery
        assert recovery is not None
        text = self._class_features(configuration.plan)
        self._switch.to(configuration.plan)
        quantizer = self._spec.quantizer
        return ClassRecovered.load(stored, recovery, quantizer, self._model, self._names, text)

    @cached_property
    def _names(self) -> ClassNames:
        return self._task.names()

    def _image_features(self, plan: Plan, split: SplitName, view: int = 0) -> Float[Tensor, "n d"]:
        return self._towers.under(self._task.images(split, view), plan, "vision")

    def _class_features(self, plan: Plan) -> Float[Tensor, "classes d"]:
        captions = self._towers.under(self._task.caption_stream(), plan, "text")
        return class_features(captions, len(self._task.templates))

    def _data(self, plan: Plan, recovery: Recovery) -> ClassData:
        chosen = self._chosen(recovery.shots)
        views = range(recovery.views + 1)
        return ClassData(
            image_features=self._tuning_features(plan, recovery),
            labels=self.labels(SplitName.TUNING).cpu()[chosen].repeat(len(views)),
            teacher_image_features=self._tuning_features(FULL_PLAN, recovery),
            teacher_text_features=self._teacher_text(recovery),
            text_features=self._class_features(plan),
            names=self._names,
            scale=self._model.logit_scale,
        )

    def _tuning_features(self, plan: Plan, recovery: Recovery) -> Float[Tensor, "n d"]:
        """The features of the chosen tuning samples, view by view, the samples themselves first."""
        chosen = self._chosen(recovery.shots).to(self._model.device)
        views = range(recovery.views + 1)
        return torch.cat(
            [self._image_features(plan, SplitName.TUNING, view)[chosen] for view in views]
        )

    def _chosen(self, shots: int) -> Int[Tensor, " n"]:
        """The places of the tuning samples that count."""
        return first_of_each(self.labels(SplitName.TUNING).tolist(), shots)

    def _teacher_text(self, recovery: Recovery) -> Float[Tensor, "classes d"]:
        """The class features of full precision: from templates, or under a prompt of its own.

        That prompt is as long as the student's, or as the default, and learnt from the labels
        alone, on the same samples.
        """
        if recovery.teacher is TeacherText.TEMPLATES or not recovery.distillation:
            return self._class_features(FULL_PLAN)
        learnt = replace(
            recovery,
            context_length=recovery.context_length or Recovery().context_length,
            reduction=0,
            distillation=0,
        )
        found = self._recoveries.get(Configuration(FULL_PLAN, learnt.canonical))
        assert found is not None
        return found.text_features

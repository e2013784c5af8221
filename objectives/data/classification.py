"""Classification: captions for all classes, and four disjoint splits of images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bitfront.errors import InvalidModel, InvalidSample, SpecError
from bitfront.plan import digest
from bitfront.reference.scenes import CLASSES, SIDE, TEMPLATES, draw_scenes
from bitfront.spec import DataSource, DataSpec
from bitfront.tasks import CLASS_AGREEMENT, CLASSIFICATION, TaskMeasure
from bitfront.vlm import DualEncoder
from bitfront.vlm.models.captions import ClassNames
from bitfront.vlm.models.distinct import token_problem
from objectives.data.augmentation import Augmentation
from objectives.data.captions import fill
from objectives.data.images import READING
from objectives.data.inspection import Inspector
from objectives.data.pixels import ReadPixels, image_stream, read_pixels
from objectives.data.sources import LabelledSource, one_classes, open_labelled_source
from objectives.data.split_name import SplitName
from objectives.data.splits import Sources, fingerprint, sources_of, split_samples
from objectives.data.task import Task
from objectives.execution.similarity import class_features, logits
from objectives.execution.streams import CaptionStream, ImageStream, Stream


@dataclass(frozen=True)
class Split:
    """The samples of one split, in a fixed order.

    Attributes:
        name: What they are for.
        labels: `(n,)` int64 class indices; -1 where none is known.
        captions: The hash of the classes and templates that the samples are told apart by.
        read: The pixels `(stop - start, c, h, w)` of the samples `start` to `stop`.
        contents: A hash of each sample's content and label, read only when it is asked for.
    """

    name: SplitName
    labels: Int[Tensor, " n"]
    captions: str
    read: ReadPixels
    contents: Callable[[], Sequence[str]]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def identity(self) -> str:
        """The hash of the captions and of the samples: contents and labels, in order."""
        return digest([self.name, self.captions, list(self.contents())])


@dataclass(frozen=True)
class ClassificationTask(Task):
    """Zero-shot classification over all class captions.

    Attributes:
        model: The dual encoder that tells the classes apart.
        classes: The class names, in the order of the labels.
        templates: What makes a caption of a class name, each with `{}`.
        tokens: `(templates, classes, context_length)` int64, every caption's tokens.
        splits: The four splits.
        batch_size: Images, or captions, that go through a tower at once.
        augmentation: How augmented views are made.
        measure: What the error is of.
    """

    model: DualEncoder
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    tokens: Int[Tensor, "templates classes context_length"]
    splits: Mapping[SplitName, Split]
    batch_size: int
    augmentation: Augmentation
    measure: TaskMeasure = TaskMeasure.ACCURACY

    @property
    def class_count(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def split(self, name: SplitName) -> Split:
        """The split of that name."""
        return self.splits[name]

    def errors(self, wrong: Bool[Tensor, " n"], name: SplitName) -> Float[Tensor, " n"]:
        """Each image's share in the error of a split, whose mean is the error.

        Every class of the split counts alike under `MEAN_PER_CLASS_ACCURACY`, and every image
        under `ACCURACY`.

        Args:
            wrong: Whether each image is taken for another class than its own.
            name: The split.
        """
        shares = wrong.cpu().double()
        if self.measure is TaskMeasure.MEAN_PER_CLASS_ACCURACY:
            labels = self.splits[name].labels
            counts = labels.bincount()
            shares *= len(labels) / (counts.count_nonzero() * counts[labels])
        return shares

    def images(self, name: SplitName, view: int = 0) -> ImageStream:
        """The images of a split, or an augmented view of each, through the vision tower."""
        split = self.splits[name]

        def read(start: int, stop: int) -> Tensor:
            pixels = split.read(start, stop)
            return self.augmentation.view(pixels, view, start) if view else pixels

        key = f"{name.value}/view-{view}" if view else name.value
        return image_stream(self.model, key, len(split), self.batch_size, read)

    def names(self) -> ClassNames:
        """The classes for a learnable prompt, each with what follows it in the first template."""
        return self.model.class_names(self.classes, self.templates[0].partition("{}")[2])

    def caption_stream(self) -> CaptionStream:
        """All captions, template by template, through the text tower."""
        return CaptionStream(self.model, torch.split(self.captions, self.batch_size))

    def streams(self, name: SplitName) -> tuple[Stream, ...]:
        """The images of a split, and the captions."""
        return self.images(name), self.caption_stream()

    def scores(self, outputs: Mapping[str, Tensor]) -> Float[Tensor, "images classes"]:
        """The scaled cosine of every image with every class."""
        (images,) = (features for key, features in outputs.items() if key != CaptionStream.key)
        classes = class_features(outputs[CaptionStream.key], len(self.templates))
        return logits(images, classes, self.model.logit_scale)

    def split_identity(self, name: SplitName) -> str:
        """The hash of the captions and of the samples: contents and labels, in order."""
        return self.splits[name].identity

    @property
    def captions(self) -> Int[Tensor, "captions context_length"]:
        """The tokens of all captions, template by template."""
        return self.tokens.flatten(0, 1)


def load_classification(
    spec: DataSpec, model: DualEncoder, inspector: Inspector | None = None
) -> ClassificationTask:
    """The classes and images of a job, prepared as the model wants them.

    Images of a person's own are decoded when they are used; see `read_pixels`.

    Raises:
        MissingData: There is nothing at the path, a class is empty, or the samples are fewer
            than the splits ask for.
        InvalidSample: A label is not a class. (An image that cannot be read raises it when its
            batch is used.)
        SpecError: A column is missing, the source has questions instead of classes, or the
            reference scenes do not fit the model.
        InvalidModel: Two classes have the same tokens.
    """
    if spec.source in (DataSource.QUESTIONS, DataSource.CAPTIONS):
        raise SpecError(
            f"data of source {spec.source} are not for a model that tells classes apart: set "
            "data.source to image_folder or datasets"
        )
    if spec.source is DataSource.REFERENCE:
        classes, templates, splits = _reference(spec, model)
    else:
        sources = sources_of(spec, open_labelled_source)
        classes, templates = one_classes(sources), spec.templates
        splits = _source_splits(sources, spec, model, inspector or Inspector())
    captions = [[fill(text, name) for name in classes] for text in templates]
    problem = token_problem(model, classes, captions)
    if problem is not None:
        raise InvalidModel(problem)
    tokens = [model.tokenize(of_template) for of_template in captions]
    augmentation = Augmentation(spec.seed, spec.horizontal_flip)
    kind = CLASS_AGREEMENT if spec.is_unlabelled else CLASSIFICATION
    measure = kind.measure(spec.measure)
    return ClassificationTask(
        model,
        classes,
        templates,
        torch.stack(tokens),
        splits,
        spec.batch_size,
        augmentation,
        measure,
    )


def _reference(
    spec: DataSpec, model: DualEncoder
) -> tuple[tuple[str, ...], tuple[str, ...], dict[SplitName, Split]]:
    if model.image_shape != (3, SIDE, SIDE):
        raise SpecError(
            f"the reference scenes have the shape {(3, SIDE, SIDE)}, but the model reads "
            f"{model.image_shape}: set data.source to image_folder or datasets"
        )
    is_default = spec.templates == DataSpec.model_fields["templates"].default
    templates = TEMPLATES if is_default else spec.templates
    captions = digest([CLASSES, templates])
    splits = {}
    for name in SplitName:
        scenes = draw_scenes(name.value, getattr(spec.samples, name.value), spec.seed)
        splits[name] = _scene_split(name, captions, scenes.images, scenes.labels)
    return CLASSES, templates, splits


def _scene_split(name: SplitName, captions: str, images: Tensor, labels: Tensor) -> Split:
    def contents() -> list[str]:
        return [
            fingerprint(image.numpy().tobytes(), str(label))
            for image, label in zip(images, labels.tolist(), strict=True)
        ]

    return Split(name, labels, captions, lambda start, stop: images[start:stop], contents)


def _source_splits(
    sources: Sources[LabelledSource], spec: DataSpec, model: DualEncoder, inspector: Inspector
) -> dict[SplitName, Split]:
    """Four disjoint splits, in a random order that depends on the seed and on the names only."""
    for source in sources.values():
        _check_labels(source, is_unlabelled=spec.source is DataSource.IMAGES)
    captions = digest(_caption_recipe(one_classes(sources), spec))
    return {
        name: _source_split(
            name,
            captions,
            sources[name],
            indices,
            read_pixels(sources[name], indices, spec, model, inspector.images),
        )
        for name, indices in split_samples(sources, spec, inspector).indices.items()
    }


def _check_labels(source: LabelledSource, *, is_unlabelled: bool) -> None:
    for index, label in enumerate(source.labels):
        if not -1 <= label < len(source.classes) or (label < 0 and not is_unlabelled):
            raise InvalidSample(
                f"{source.where(index)} has the label {label}, but there are "
                f"{len(source.classes)} classes (0 to {len(source.classes) - 1})"
            )


def _caption_recipe(classes: Sequence[str], spec: DataSpec) -> list[object]:
    """What a sample is read and told apart by, beside its content."""
    captions = [[fill(template, name) for name in classes] for template in spec.templates]
    return [classes, captions, READING, spec.background]


def _source_split(
    name: SplitName,
    captions: str,
    source: LabelledSource,
    indices: Sequence[int],
    pixels: ReadPixels,
) -> Split:
    def contents() -> list[str]:
        return [fingerprint(source.content(index), str(source.labels[index])) for index in indices]

    labels = torch.tensor([source.labels[index] for index in indices])
    return Split(name, labels, captions, pixels, contents)

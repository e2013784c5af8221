"""Image-text retrieval: images with their captions, in four disjoint splits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from bitfront.errors import InvalidModel, SpecError
from bitfront.plan import digest
from bitfront.reference.scenes import SIDE
from bitfront.spec import DataSource, DataSpec
from bitfront.tasks import RETRIEVAL, TaskMeasure
from bitfront.vlm import DualEncoder
from objectives.data.caption_sources import CaptionSource, open_caption_source
from objectives.data.images import READING
from objectives.data.inspection import Inspector
from objectives.data.pixels import ReadPixels, image_stream, read_pixels
from objectives.data.reference_captions import ReferenceCaptions
from objectives.data.split_name import SplitName
from objectives.data.splits import fingerprint, sources_of, split_samples
from objectives.data.task import Task
from objectives.execution.similarity import logits
from objectives.execution.streams import CaptionStream, ImageStream, Stream

_IMPOSSIBLE = -1e4  # a logit of what is no candidate: its probability is 0, and KL stays finite
_CAPTIONS = "captions"


@dataclass(frozen=True)
class RetrievalSplit:
    """The images of one split with their captions, in a fixed order.

    Attributes:
        name: What they are for.
        captions: Of each image.
        owners: The image of every caption, image by image.
        tokens: Of every caption.
        read: Reads pixels.
        contents: A hash of each image with its captions, read only when it is asked for.
    """

    name: SplitName
    captions: Sequence[Sequence[str]]
    owners: Int[Tensor, " captions"]
    tokens: Int[Tensor, "captions context_length"]
    read: ReadPixels
    contents: Callable[[], Sequence[str]]

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def identity(self) -> str:
        """The hash of the samples: images and captions, in order."""
        return digest([self.name, _CAPTIONS, list(self.contents())])


@dataclass(frozen=True)
class RetrievalTask(Task):
    """Images found by captions and captions by images, among those of a split.

    Attributes:
        model: The dual encoder that compares them.
        splits: The four splits.
        batch_size: Images, or captions, that go through a tower at once.
        measure: What the error is of.
    """

    model: DualEncoder
    splits: Mapping[SplitName, RetrievalSplit]
    batch_size: int
    measure: TaskMeasure

    @property
    def class_count(self) -> int:
        """Zero: there are captions, and no classes."""
        return 0

    @property
    def compares_samples(self) -> bool:
        """True: of images with captions, and of captions with images."""
        return True

    def split(self, name: SplitName) -> RetrievalSplit:
        """The split of that name."""
        return self.splits[name]

    def images(self, name: SplitName) -> ImageStream:
        """The images of a split through the vision tower."""
        split = self.splits[name]
        return image_stream(
            self.model, name.value, len(split), self.batch_size, split.read, are_independent=False
        )

    def captions(self, name: SplitName) -> CaptionStream:
        """The captions of a split through the text tower."""
        batches = torch.split(self.splits[name].tokens, self.batch_size)
        return CaptionStream(self.model, batches, f"{name.value}/{_CAPTIONS}")

    def streams(self, name: SplitName) -> tuple[Stream, ...]:
        """The images of a split, and its captions."""
        return self.images(name), self.captions(name)

    def scores(self, outputs: Mapping[str, Tensor]) -> Float[Tensor, "queries candidates"]:
        """The scaled cosines of each image with all captions, then of each caption with all images.

        The shorter of the two kinds of rows is filled up with candidates of probability 0.
        """
        of = {key.endswith(_CAPTIONS): features for key, features in outputs.items()}
        texts = functional.normalize(of[True].float(), dim=-1)
        found = logits(of[False], texts, self.model.logit_scale)
        width = max(found.shape)
        rows = [
            functional.pad(part, (0, width - part.shape[1]), value=_IMPOSSIBLE)
            for part in (found, found.T)
        ]
        return torch.cat(rows)

    def split_identity(self, name: SplitName) -> str:
        """The hash of the samples: images and captions, in order."""
        return self.splits[name].identity


def load_retrieval(
    spec: DataSpec, model: DualEncoder, inspector: Inspector | None = None
) -> RetrievalTask:
    """The images and captions of a job, prepared as the model wants them.

    Raises:
        MissingData: There is nothing at the path, or the samples are fewer than the splits ask
            for.
        InvalidSample: The file has no captions, or the bundled model does not know a word.
        SpecError: The bundled scenes do not fit the model.
        InvalidModel: All captions of a split have the same tokens.
    """
    is_bundled = spec.source is DataSource.REFERENCE
    splits = _bundled(spec, model) if is_bundled else _listed(spec, model, inspector or Inspector())
    for split in splits.values():
        _refuse_like_captions(split)
    return RetrievalTask(model, splits, spec.batch_size, RETRIEVAL.measure(spec.measure))


def _bundled(spec: DataSpec, model: DualEncoder) -> dict[SplitName, RetrievalSplit]:
    if model.image_shape != (3, SIDE, SIDE):
        raise SpecError(
            f"the bundled scenes have the shape {(3, SIDE, SIDE)}, but the model reads "
            f"{model.image_shape}: set data.source to captions"
        )
    splits = {}
    for name in SplitName:
        drawn = ReferenceCaptions(name.value, int(getattr(spec.samples, name.value)), spec.seed)
        captions = [drawn.captions(index) for index in range(len(drawn))]
        splits[name] = _split(name, model, captions, drawn, range(len(drawn)), _pixels_of(drawn))
    return splits


def _pixels_of(drawn: ReferenceCaptions) -> ReadPixels:
    return lambda start, stop: drawn.pixels[start:stop]


def _listed(
    spec: DataSpec, model: DualEncoder, inspector: Inspector
) -> dict[SplitName, RetrievalSplit]:
    sources = sources_of(spec, open_caption_source)
    form = digest([READING, spec.background])
    splits = {}
    for name, indices in split_samples(sources, spec, inspector).indices.items():
        source = sources[name]
        captions = [source.captions(index) for index in indices]
        pixels = read_pixels(source, indices, spec, model, inspector.images)
        splits[name] = _split(name, model, captions, source, indices, pixels, form)
    return splits


def _split(
    name: SplitName,
    model: DualEncoder,
    captions: Sequence[Sequence[str]],
    source: CaptionSource | ReferenceCaptions,
    indices: Sequence[int],
    read: ReadPixels,
    form: str = "",
) -> RetrievalSplit:
    def contents() -> list[str]:
        return [
            fingerprint(source.content(index), digest([form, list(own)]))
            for index, own in zip(indices, captions, strict=True)
        ]

    counts = torch.tensor([len(own) for own in captions])
    owners = torch.arange(len(captions)).repeat_interleave(counts)
    tokens = model.tokenize([caption for own in captions for caption in own])
    return RetrievalSplit(name, captions, owners, tokens, read, contents)


def _refuse_like_captions(split: RetrievalSplit) -> None:
    """Refuses a split whose captions all have the same tokens.

    Raises:
        InvalidModel: They have.
    """
    words = {caption for own in split.captions for caption in own}
    if len(words) > 1 and bool((split.tokens == split.tokens[0]).all()):
        one, two = sorted(words)[:2]
        raise InvalidModel(
            f"the captions {one!r} and {two!r} have the same tokens, and so have all of the split "
            f"{split.name}: give the model its own tokenizer"
        )

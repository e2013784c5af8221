"""Where a person's own captions come from: JSON Lines, a file as COCO has it, a table, shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from bitfront.errors import InvalidSample
from bitfront.spec import DataSource, DataSpec
from objectives.data.inspection import Sample
from objectives.data.listing import Listing, problem
from objectives.data.shards import ShardCaptions
from objectives.data.splits import Source
from objectives.data.tables import TableCaptions

_EXAMPLE = '{"image": "cat.jpg", "captions": ["a cat on a mat", "..."]}'


class CaptionSource(Source, Protocol):
    """Images with captions of their own, read one by one when they are needed."""

    count: int
    """How many captions there are."""

    def captions(self, index: int) -> Sequence[str]:
        """The captions of an image."""

    def content(self, index: int) -> bytes:
        """The encoded image.

        Raises:
            InvalidSample: It cannot be read.
        """


class _Line(BaseModel):
    """One line of a caption file; further keys are welcome and not read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    image: str
    caption: str | None = None
    captions: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_one(self) -> "_Line":
        if not self.all_of_them:
            raise ValueError("it has no caption")
        return self

    @property
    def all_of_them(self) -> tuple[str, ...]:
        """The captions that have words."""
        own = (self.caption or "", *self.captions)
        return tuple(caption.strip() for caption in own if caption.strip())


@dataclass(frozen=True, slots=True)
class _CocoImage:
    """An image of COCO's."""

    id: int | str
    file_name: str


@dataclass(frozen=True, slots=True)
class _CocoAnnotation:
    """A caption of COCO's."""

    image_id: int | str
    caption: str


@dataclass(frozen=True, slots=True)
class _Coco:
    """A file as COCO has captions; further keys are not read."""

    images: list[_CocoImage]
    annotations: list[_CocoAnnotation]


class ListedCaptions:
    """Captions of a file; the images that it names are the samples.

    JSON Lines: `{"image": "cat.jpg", "captions": ["..."]}` or `"caption": "..."` a line; lines of
    one image are put together. Or one JSON object with `images` and `annotations`, as COCO has it.
    """

    def __init__(self, spec: DataSpec) -> None:
        self._listing = Listing(spec, "caption")
        self.title = f"caption file {self._listing.path}"
        found = self._coco() if self._is_coco() else self._lines()
        self.names = list(found)
        self._captions = list(found.values())
        self.count = sum(map(len, self._captions))

    def _is_coco(self) -> bool:
        """Whether it is one object, on one line or on many: a line of its own is whole."""
        with self._listing.path.open("rb") as file:
            first = file.readline().strip()
        return b'"annotations"' in first or not first.endswith(b"}")

    def _lines(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for _, line in self._listing.lines(_Line, _EXAMPLE):
            found.setdefault(line.image, []).extend(line.all_of_them)
        return found

    def _coco(self) -> dict[str, list[str]]:
        try:
            content = TypeAdapter(_Coco).validate_json(self._listing.read())
        except ValidationError as error:
            raise InvalidSample(
                f"{self._listing.path} has no captions as COCO has them: "
                f"{problem(error, 'the file')}; JSON Lines such as {_EXAMPLE} are read too"
            ) from error
        files = {image.id: image.file_name for image in content.images}
        found: dict[str, list[str]] = {}
        for annotation in content.annotations:
            if annotation.image_id not in files:
                raise InvalidSample(
                    f"{self._listing.path} has a caption of the image {annotation.image_id}, which "
                    "is not among its images: add it, or remove the caption"
                )
            if annotation.caption.strip():
                name = files[annotation.image_id]
                found.setdefault(name, []).append(annotation.caption.strip())
        return found

    def captions(self, index: int) -> Sequence[str]:
        """The captions as they are in the file."""
        return self._captions[index]

    def group(self, index: int) -> str:
        """The image: it has all its captions with it."""
        return self.names[index]

    def sample(self, index: int) -> Sample:
        """The image file."""
        return self._listing.image(self.names[index], self.where(index))

    def content(self, index: int) -> bytes:
        """The file as it is on disk."""
        return self.sample(index).read()

    def where(self, index: int) -> str:
        """The image's name in the file."""
        return f"the image {self.names[index]!r} of {self._listing.path}"


def open_caption_source(spec: DataSpec) -> CaptionSource:
    """The images and captions of a job, listed but not read.

    Raises:
        MissingData: There is nothing at the path.
        InvalidSample: A sample has no caption, or a file cannot be read.
        SpecError: A column is missing.
    """
    if spec.source is DataSource.TABLE:
        return TableCaptions(spec)
    return ShardCaptions(spec) if spec.source is DataSource.WEBDATASET else ListedCaptions(spec)

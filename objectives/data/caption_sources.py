"""Where a person's own captions come from: JSON Lines, a file as COCO has it, a table, shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from bitfront.errors import InvalidSample
from bitfront.spec import DataSource, DataSpec
from objectives.data.listing import CaptionedImages, Listing, problem
from objectives.data.sample import Sample
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

    def sample(self, index: int) -> Sample:
        """The encoded image of a sample, or where it is."""

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


class ListedCaptions(CaptionedImages):
    """Captions of a file; the images that it names are the samples.

    JSON Lines: `{"image": "cat.jpg", "captions": ["..."]}` or `"caption": "..."` a line; lines of
    one image are put together. Or one JSON object with `images` and `annotations`, as COCO has it.
    """

    def __init__(self, spec: DataSpec) -> None:
        listing = Listing(spec, "caption")
        found = _coco(listing) if _is_coco(listing) else _lines(listing)
        super().__init__(listing, f"caption file {listing.path}", found)


def _is_coco(listing: Listing) -> bool:
    """Whether it is one object, on one line or on many: a line of its own is whole."""
    with listing.path.open("rb") as file:
        first = file.readline().strip()
    return b'"annotations"' in first or not first.endswith(b"}")


def _lines(listing: Listing) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for _, line in listing.lines(_Line, _EXAMPLE):
        found.setdefault(line.image, []).extend(line.all_of_them)
    return found


def _coco(listing: Listing) -> dict[str, list[str]]:
    try:
        content = TypeAdapter(_Coco).validate_json(listing.read())
    except ValidationError as error:
        raise InvalidSample(
            f"{listing.path} has no captions as COCO has them: "
            f"{problem(error, 'the file')}; JSON Lines such as {_EXAMPLE} are read too"
        ) from error
    files = {image.id: image.file_name for image in content.images}
    found: dict[str, list[str]] = {}
    for annotation in content.annotations:
        if annotation.image_id not in files:
            raise InvalidSample(
                f"{listing.path} has a caption of the image {annotation.image_id}, which "
                "is not among its images: add it, or remove the caption"
            )
        if annotation.caption.strip():
            name = files[annotation.image_id]
            found.setdefault(name, []).append(annotation.caption.strip())
    return found


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

"""Where a person's own captions come from: JSON Lines, a file as COCO has it, a table, shards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from bitfront.errors import InvalidSample
from bitfront.spec import DataSource, DataSpec
from objectives.data.json_members import members
from objectives.data.listing import CaptionedImages, Listing, problem
from objectives.data.sample import Sample
from objectives.data.shards import ShardCaptions
from objectives.data.splits import Source
from objectives.data.tables import TableCaptions

_EXAMPLE = '{"image": "cat.jpg", "captions": ["a cat on a mat", "..."]}'
_COCO_OR_LINES = f"JSON Lines such as {_EXAMPLE} are read too"
_ANNOTATIONS: Final = b'"annotations"'
_PART: Final = 1 << 16  # bytes of a line that are looked at at once


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


_COCO_ELEMENTS: Final[Mapping[str, TypeAdapter[_CocoImage] | TypeAdapter[_CocoAnnotation]]] = {
    "images": TypeAdapter(_CocoImage),
    "annotations": TypeAdapter(_CocoAnnotation),
}


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
    before = last = b""
    with listing.path.open("rb") as file:
        while part := file.readline(_PART):
            seen = before + part
            if _ANNOTATIONS in seen:
                return True
            before, last = seen[1 - len(_ANNOTATIONS) :], part.rstrip()[-1:] or last
            if part.endswith(b"\n"):
                break
    return last != b"}"


def _lines(listing: Listing) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for _, line in listing.lines(_Line, _EXAMPLE):
        found.setdefault(line.image, []).extend(line.all_of_them)
    return found


def _coco(listing: Listing) -> dict[str, list[str]]:
    files: dict[int | str, str] = {}
    captions: dict[int | str, list[str]] = {}
    for element in _coco_elements(listing):
        if isinstance(element, _CocoImage):
            files[element.id] = element.file_name
        elif element.caption.strip():
            captions.setdefault(element.image_id, []).append(element.caption.strip())
    if not captions:
        raise InvalidSample(f"{listing.path} has no annotations with a caption: {_COCO_OR_LINES}")
    found: dict[str, list[str]] = {}
    for image, own in captions.items():
        if image not in files:
            raise InvalidSample(
                f"{listing.path} has a caption of the image {image}, which "
                "is not among its images: add it, or remove the caption"
            )
        found.setdefault(files[image], []).extend(own)
    return found


def _coco_elements(listing: Listing) -> Iterator[_CocoImage | _CocoAnnotation]:
    """Images and captions, in the order of the file.

    Raises:
        InvalidSample: There is something else among them.
    """
    counts = Counter[str]()
    name = ""
    try:
        with listing.opened() as file:
            for name, content in members(file, _COCO_ELEMENTS):
                if name in _COCO_ELEMENTS:
                    yield _COCO_ELEMENTS[name].validate_python(content)
                    counts[name] += 1
    except ValidationError as error:
        reason = f"{name}.{counts[name]}.{problem(error, 'it')}"
        raise _no_coco(listing, reason) from error
    except ValueError as error:
        raise _no_coco(listing, str(error)) from error


def _no_coco(listing: Listing, reason: str) -> InvalidSample:
    return InvalidSample(
        f"{listing.path} has no captions as COCO has them: {reason}; {_COCO_OR_LINES}"
    )


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

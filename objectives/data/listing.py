"""A file that lists samples and names their images, which lie beside it or in a folder."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from bitfront.errors import InvalidSample, MissingData
from bitfront.spec import DataSpec
from objectives.data.sample import Sample

Line = TypeVar("Line")


class Listing:
    """The job's file, with the folder that paths of images start at.

    Args:
        spec: The job's data.
        what: One of what the file lists, for messages, such as `question`.

    Attributes:
        path: The file.
        folder: `data.images`, or the file's own folder.

    Raises:
        MissingData: There is no such file, or no such folder.
    """

    def __init__(self, spec: DataSpec, what: str) -> None:
        self.path = Path(spec.path or "").expanduser()
        self._what = what
        if not self.path.is_file():
            raise MissingData(
                f"the file {spec.path!r} does not exist: set data.path to the file with the {what}s"
            )
        folder = self.path.parent if spec.images is None else Path(spec.images).expanduser()
        if not folder.is_dir():
            raise MissingData(
                f"the folder {spec.images!r} does not exist: set data.images to the folder with "
                "the images"
            )
        self.folder = folder.resolve()
        self._resolved: dict[str, str] = {}  # many images lie in one folder

    @contextmanager
    def opened(self) -> Iterator[TextIO]:
        """The file's text, to be read part by part.

        Raises:
            InvalidSample: It is no text.
        """
        try:
            with self.path.open(encoding="utf-8-sig") as file:
                yield file
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSample(
                f"{self.path} cannot be read ({error}): it must be a text file in UTF-8"
            ) from error

    def lines(self, kind: type[Line], example: str) -> Iterator[tuple[int, Line]]:
        """Each line that is not empty with its number.

        Args:
            kind: What a line is: a model of pydantic, or a dataclass.
            example: A line as it may be, for messages.

        Raises:
            InvalidSample: A line is something else.
        """
        adapter = TypeAdapter(kind)
        with self.opened() as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    yield number, adapter.validate_json(text)
                except ValidationError as error:
                    raise InvalidSample(
                        f"line {number} of {self.path} is not a {self._what}: "
                        f"{problem(error, 'the line')}; write {example}"
                    ) from error

    def image(self, name: str, where: str) -> Sample:
        """The image of a name, which must lie in the folder.

        Raises:
            InvalidSample: It lies outside.
        """
        parent, last = os.path.split(os.path.join(self.folder, name))
        if parent not in self._resolved:
            self._resolved[parent] = os.path.realpath(parent)
        path = os.path.join(self._resolved[parent], last)
        if last in ("", ".", "..") or os.path.islink(path):
            path = os.path.realpath(path)
        if not os.path.join(path, "").startswith(os.path.join(self.folder, "")):
            raise InvalidSample(f"{where} has an image outside of {self.folder}: {name}")
        return Sample(Path(path))


class ListedImages:
    """Samples of a listing that each have an image.

    Attributes:
        title: What a message calls the listing.
        names: Of each sample's image.
    """

    def __init__(self, listing: Listing, title: str, names: Sequence[str]) -> None:
        self._listing = listing
        self.title, self.names = title, names

    def group(self, index: int) -> str:
        """The image: samples of one belong together."""
        return self.names[index]

    def sample(self, index: int) -> Sample:
        """The image file."""
        return self._listing.image(self.names[index], self.where(index))

    def content(self, index: int) -> bytes:
        """The file as it is on disk."""
        return self.sample(index).read()

    def where(self, index: int) -> str:
        """The image's name in the listing."""
        return f"the image {self.names[index]!r} of {self.title}"


class CaptionedImages(ListedImages):
    """The images of a listing with all captions that each has in it.

    Attributes:
        count: How many captions there are.
    """

    def __init__(self, listing: Listing, title: str, found: Mapping[str, Sequence[str]]) -> None:
        super().__init__(listing, title, list(found))
        self._captions = list(found.values())
        self.count = sum(map(len, self._captions))

    def captions(self, index: int) -> Sequence[str]:
        """The captions as they are in the listing."""
        return self._captions[index]


def problem(error: ValidationError, whole: str) -> str:
    """The first thing that is wrong in a file's content, with its place."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or whole
    return f"{place}: {first['msg']}"

"""A sample's encoded image: a file, a part of one, or bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import fsspec

from bitfront.errors import InvalidSample
from objectives.data.image_folder import shown
from objectives.data.images import read_content


@dataclass(frozen=True, slots=True)
class Part:
    """An encoded image within a larger file.

    Attributes:
        file: The file's path, or its address as fsspec has them.
        offset: Where it begins.
        nbytes: How long it is.
    """

    file: str
    offset: int
    nbytes: int

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            InvalidSample: The file cannot be read, or ends before.
        """
        try:
            if "://" in self.file:
                files, path = fsspec.core.url_to_fs(self.file)
                content: bytes = files.cat_file(
                    path, start=self.offset, end=self.offset + self.nbytes
                )
            else:
                with open(self.file, "rb") as file:
                    file.seek(self.offset)
                    content = file.read(self.nbytes)
        except OSError as error:
            raise InvalidSample(f"{self.file} cannot be read ({error}): look after it") from error
        if len(content) != self.nbytes:
            raise InvalidSample(f"{self.file} ends in the middle of a sample: copy it again")
        return content


Encoded = Path | bytes | Part


@dataclass(frozen=True, slots=True)
class Sample:
    """An encoded image and where a person finds it, or the file that holds it.

    Without either the sample lacks the image that it should have.
    """

    encoded: Encoded | None
    where: str = ""

    @property
    def place(self) -> str:
        """What a message calls it: a file by its own name, whoever names it."""
        return shown(self.encoded) if isinstance(self.encoded, Path) else self.where

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            InvalidSample: There is none, or its file cannot be read.
        """
        if self.encoded is None:
            raise InvalidSample(f"{self.where} has no image: remove it")
        if isinstance(self.encoded, Path):
            return read_content(self.encoded)
        return self.encoded.read() if isinstance(self.encoded, Part) else self.encoded


class LazySamples(Sequence[Sample]):
    """Samples that are made when they are asked for, and not kept.

    Args:
        make: Makes the sample of a place.
        places: The places, in order.
    """

    def __init__(self, make: Callable[[int], Sample], places: Sequence[int]) -> None:
        self._make, self._places = make, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> list[Sample]: ...

    def __getitem__(self, place: int | slice) -> Sample | list[Sample]:
        if isinstance(place, slice):
            return [self._make(own) for own in self._places[place]]
        return self._make(self._places[place])

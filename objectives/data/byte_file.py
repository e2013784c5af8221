"""A file without a name, in which a process keeps what memory has no room for."""

import os
import tempfile
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Final

FILE_NBYTES: Final = 4 << 30
"""What the file of a process may hold at most."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where a content lies in the file."""

    offset: int
    nbytes: int


class ByteFile:
    """A file that contents are written to one after the other; it is gone with the process.

    Args:
        folder: Where it lies; None is where the system has temporary files.
        limit_nbytes: What it may hold at most.
    """

    def __init__(self, folder: Path | None = None, limit_nbytes: int = FILE_NBYTES) -> None:
        self._folder = folder
        self._limit_nbytes = limit_nbytes
        self._end = 0

    @cached_property
    def _file(self) -> IO[bytes]:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - see below
        weakref.finalize(self, file.close)
        return file

    def put(self, content: bytes) -> Span | None:
        """Writes a content; None where the file or its disk has no room."""
        if self._end + len(content) > self._limit_nbytes:
            return None
        try:
            written = os.pwrite(self._file.fileno(), content, self._end)
        except OSError:
            written = 0
        if written < len(content):
            self._limit_nbytes = self._end  # a disk that is full is not asked again
            return None
        span = Span(self._end, len(content))
        self._end += len(content)
        return span

    def get(self, span: Span) -> bytearray:
        """The content that was written."""
        return bytearray(os.pread(self._file.fileno(), span.nbytes, span.offset))

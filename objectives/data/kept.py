"""Tensors that a process keeps: in memory up to a bound, then in a file without a name."""

import os
import tempfile
import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Final

import torch
from torch import Tensor

FILE_NBYTES: Final = 4 << 30
"""What the file of a process may hold at most."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in the file, and what it is."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype


class TensorFile:
    """A file that tensors are written to one after the other; it is gone with the process.

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

    def put(self, tensor: Tensor) -> _Place | None:
        """Writes a tensor; None where the file or its disk has no room."""
        content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if self._end + len(content) > self._limit_nbytes:
            return None
        try:
            written = os.pwrite(self._file.fileno(), content, self._end)
        except OSError:
            written = 0
        if written < len(content):
            self._limit_nbytes = self._end  # a disk that is full is not asked again
            return None
        place = _Place(self._end, tensor.shape, tensor.dtype)
        self._end += len(content)
        return place

    def get(self, place: _Place) -> Tensor:
        """The tensor that was written."""
        nbytes = prod(place.shape) * place.dtype.itemsize
        content = bytearray(os.pread(self._file.fileno(), nbytes, place.offset))
        return torch.frombuffer(content, dtype=place.dtype).reshape(place.shape)


class Kept:
    """Tensors by key; what has room neither in memory nor in the file is not kept.

    They are read over and over from the first to the last, so that those that came first stay.

    Args:
        file: What takes over where memory ends.
        memory_nbytes: What is kept in memory at most.
    """

    def __init__(self, file: TensorFile, memory_nbytes: int) -> None:
        self._file = file
        self._room_nbytes = memory_nbytes
        self._tensors: dict[Hashable, Tensor] = {}
        self._places: dict[Hashable, _Place] = {}

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor of a key, which must not be changed; None where it is not kept."""
        place = self._places.get(key)
        return self._tensors.get(key) if place is None else self._file.get(place)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keeps a tensor of the CPU where there is room."""
        if tensor.nbytes <= self._room_nbytes:
            self._room_nbytes -= tensor.nbytes
            self._tensors[key] = tensor
            return
        place = self._file.put(tensor)
        if place is not None:
            self._places[key] = place

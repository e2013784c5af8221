"""Tensors that a process keeps: in memory up to a bound, then in a file without a name."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.data.byte_file import ByteFile, Span


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in the file, and what it is."""

    span: Span
    shape: torch.Size
    dtype: torch.dtype


class Kept:
    """Tensors by key; what has room neither in memory nor in the file is not kept.

    They are read over and over from the first to the last, so that those that came first stay.

    Args:
        file: What takes over where memory ends.
        memory_nbytes: What is kept in memory at most.
    """

    def __init__(self, file: ByteFile, memory_nbytes: int) -> None:
        self._file = file
        self._room_nbytes = memory_nbytes
        self._tensors: dict[Hashable, Tensor] = {}
        self._places: dict[Hashable, _Place] = {}

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor of a key, which must not be changed; None where it is not kept."""
        place = self._places.get(key)
        if place is None:
            return self._tensors.get(key)
        content = self._file.get(place.span)
        return torch.frombuffer(content, dtype=place.dtype).reshape(place.shape)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keeps a tensor of the CPU where there is room."""
        if tensor.nbytes <= self._room_nbytes:
            self._room_nbytes -= tensor.nbytes
            self._tensors[key] = tensor
            return
        content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        span = self._file.put(content)
        if span is not None:
            self._places[key] = _Place(span, tensor.shape, tensor.dtype)

"""Features that were computed once: in memory up to a limit, then on disk as safetensors."""

import logging
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitfront.identity.keys import feature_file_key
from bitfront.plan import Plan
from objectives.execution.tensor_cache import TensorCache

logger = logging.getLogger(__name__)

MEMORY_NBYTES = 256 << 20
DISK_NBYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class FeatureKey:
    """What features depend on beside the model and the data: the stream, and its towers' plan."""

    stream: str
    plan: Plan


class FeatureStore:
    """Groups of tensors by key; what memory has no room for goes to files, the oldest first.

    Files are named by a hash of everything that they depend on, so that they may outlive the
    process and serve others. One that cannot be read counts as absent.

    Args:
        identity: The hash of model, data and quantizer.
        folder: Where the files go; None keeps nothing beyond the memory.
        memory_nbytes: What is kept in memory at most; 0 keeps nothing at all.
        disk_nbytes: What the folder may hold at most.
    """

    def __init__(
        self,
        identity: str,
        folder: Path | None = None,
        memory_nbytes: int = MEMORY_NBYTES,
        disk_nbytes: int = DISK_NBYTES,
    ) -> None:
        self._identity = identity
        self._folder = folder if memory_nbytes else None
        self._disk_nbytes = disk_nbytes
        self._memory = TensorCache(memory_nbytes, on_drop=self._write)

    def get(self, key: FeatureKey) -> tuple[Tensor, ...] | None:
        """The tensors under a key, on the CPU where they come from a file."""
        kept = self._memory.get(key)
        if kept is None:
            kept = self._read(key)
            if kept is not None:
                self._memory.put(key, kept)
        return kept

    def put(self, key: FeatureKey, tensors: Sequence[Tensor]) -> None:
        """Keeps the tensors; they must not be changed afterwards."""
        if not self._memory.put(key, tensors):
            self._write(key, tensors)

    def _path(self, folder: Path, key: FeatureKey) -> Path:
        name = feature_file_key(self._identity, key.stream, key.plan)
        return folder / f"{name}.safetensors"

    def _read(self, key: FeatureKey) -> tuple[Tensor, ...] | None:
        if self._folder is None:
            return None
        path = self._path(self._folder, key)
        try:
            tensors = load_file(path)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("kept features cannot be read, and are computed again: %s", error)
            path.unlink(missing_ok=True)
            return None
        return tuple(tensors[str(place)] for place in range(len(tensors)))

    def _write(self, key: Hashable, tensors: Sequence[Tensor]) -> None:
        nbytes = sum(tensor.nbytes for tensor in tensors)
        if self._folder is None or nbytes > self._disk_nbytes:
            return
        assert isinstance(key, FeatureKey)
        path = self._path(self._folder, key)
        if path.exists():
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(self._folder, nbytes)
            draft = path.with_suffix(f".{os.getpid()}.draft")
            named = {str(n): tensor.detach().cpu().contiguous() for n, tensor in enumerate(tensors)}
            save_file(named, draft)
            draft.replace(path)
        except OSError as error:
            logger.warning("features are not kept on disk, and may be computed again: %s", error)

    def _make_room(self, folder: Path, nbytes: int) -> None:
        """Removes the files that were used least recently until so many bytes more fit."""
        found = []
        for path in folder.glob("*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process made room too
                continue
            found.append((status.st_mtime, status.st_size, path))
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held + nbytes <= self._disk_nbytes:
                return
            path.unlink(missing_ok=True)
            held -= size

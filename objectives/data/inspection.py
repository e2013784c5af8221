"""Opens every sample once, in parallel, and remembers by path, size and time what it was like."""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL.Image import Image

from bitfront.errors import InvalidSample
from bitfront.processes import FRESH
from objectives.data.byte_file import ByteFile
from objectives.data.decoded import DecodedImages
from objectives.data.images import decode_image
from objectives.data.sample import LazySamples, Part, Sample

# Goes up with whatever makes an image that was readable unreadable, or the other way round, and
# with what is remembered of it.
_VERSION: Final = 2
# Fewer unknown samples are opened in this process: others take a second to start.
_FEW: Final = 256
_CHUNK: Final = 16
# So many are given to the processes at a time: those of a dataset are held in memory.
_WINDOW: Final = 1024


@dataclass(frozen=True, slots=True)
class Inspection:
    """What opening a sample's image showed.

    Attributes:
        digest: SHA-256 of the pixels, so that two files of one image are known as such; of the
            file where it cannot be decoded; empty where it cannot even be read.
        problem: Why it cannot be used, as one sentence; None where it can.
    """

    digest: str
    problem: str | None = None


def inspect_sample(sample: Sample, images: DecodedImages | None = None) -> Inspection:
    """Reads and decodes one image, which is kept where images are."""
    try:
        content = sample.read()
    except InvalidSample as error:
        return Inspection("", str(error))
    try:
        image = _decoded(sample, content, images)
    except InvalidSample as error:
        return Inspection(hashlib.sha256(content).hexdigest(), str(error))
    return Inspection(hashlib.sha256(f"{image.size}/".encode() + image.tobytes()).hexdigest())


def _decoded(sample: Sample, content: bytes, images: DecodedImages | None) -> Image:
    if images is None:
        return decode_image(content, sample.place)
    return images.open(sample, sample.place)


class Inspector:
    """Inspects samples, those that are remembered at the price of a look at their file.

    Attributes:
        images: Images that were decoded in this process, for whoever uses them.

    Args:
        memory: An SQLite file of its own that remembers; None remembers nothing.
        workers: Processes that open images.
        on_progress: Hears how many more samples have been looked at.
    """

    def __init__(
        self,
        memory: Path | None = None,
        workers: int | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.images = DecodedImages(ByteFile(memory and memory.parent))
        self._memory = memory
        self._workers = workers or os.cpu_count() or 1
        self._on_progress = on_progress

    def inspect(self, samples: Sequence[Sample]) -> list[Inspection]:
        """What each sample is like, in their order."""
        keys = [_key(sample) for sample in samples]
        known = self._recall(key for key in keys if key is not None)
        found: dict[int, Inspection] = {
            place: known[key] for place, key in enumerate(keys) if key in known
        }
        self._on_progress(len(found))
        missing = [place for place in range(len(samples)) if place not in found]
        new: list[tuple[str, Inspection]] = []
        for place, inspection in zip(
            missing, self._open(LazySamples(samples.__getitem__, missing)), strict=True
        ):
            found[place] = inspection
            key = keys[place]
            # What could not even be read may be readable the next time, with the file unchanged.
            if key is not None and inspection.digest:
                new.append((key, inspection))
            self._on_progress(1)
        self._remember(new)
        return [found[place] for place in range(len(samples))]

    def _open(self, samples: Sequence[Sample]) -> Iterable[Inspection]:
        if len(samples) < _FEW or self._workers == 1:
            yield from (inspect_sample(sample, self.images) for sample in samples)
            return
        with ProcessPoolExecutor(self._workers, mp_context=FRESH) as pool:
            for start in range(0, len(samples), _WINDOW):
                window = samples[start : start + _WINDOW]
                yield from pool.map(inspect_sample, window, chunksize=_CHUNK)

    def _recall(self, keys: Iterable[str]) -> dict[str, Inspection]:
        if self._memory is None or not self._memory.exists():
            return {}
        found: dict[str, Inspection] = {}
        try:
            with closing(sqlite3.connect(self._memory, timeout=10)) as connection:
                for key in keys:
                    row = connection.execute(
                        "SELECT digest, problem FROM inspection WHERE key = ?", (key,)
                    ).fetchone()
                    if row is not None:
                        found[key] = Inspection(*row)
        except sqlite3.Error:
            # It only saves time: a damaged or busy one is done without.
            return found
        return found

    def _remember(self, new: Sequence[tuple[str, Inspection]]) -> None:
        if self._memory is None or not new:
            return
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._memory, timeout=10)) as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS inspection "
                    "(key TEXT PRIMARY KEY, digest TEXT NOT NULL, problem TEXT)"
                )
                connection.executemany(
                    "INSERT OR REPLACE INTO inspection VALUES (?, ?, ?)",
                    [(key, found.digest, found.problem) for key, found in new],
                )
        except (OSError, sqlite3.Error):
            return


def _key(sample: Sample) -> str | None:
    """Names a file, or a part of one, as it is now, or the content; None for what is elsewhere."""
    encoded = sample.encoded
    if encoded is None:
        return None
    if isinstance(encoded, bytes):
        return hashlib.sha256(f"{_VERSION}/".encode() + encoded).hexdigest()
    part = f"{encoded.offset}+{encoded.nbytes}/" if isinstance(encoded, Part) else ""
    try:
        path = (Path(encoded.file) if isinstance(encoded, Part) else encoded).resolve()
        status = path.stat()
    except (OSError, RuntimeError):
        return None
    text = f"{_VERSION}/{part}{status.st_size}/{status.st_mtime_ns}/".encode() + os.fsencode(path)
    return hashlib.sha256(text).hexdigest()

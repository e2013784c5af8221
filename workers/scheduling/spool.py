"""The spool: finished attempts on disk, so that a result outlives the driver that asked for it."""

import hashlib
import logging
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bitfront.attempt import AttemptResult
from bitfront.errors import UnusableSpool
from bitfront.failpoints import failpoint
from bitfront.files import (
    SharedPath,
    find,
    make_folder,
    read_whole,
    remove,
    remove_folder,
    write_whole,
)
from workers.scheduling.result_json import from_json, to_json

logger = logging.getLogger(__name__)

_REMOVERS = 8


class Spool:
    """One file an attempt, written whole or not at all.

    A file holds the SHA-256 of its content in the first line and the result as JSON in the
    second. A file that does not match its hash counts as absent: the attempt runs again.
    Every method raises `UnusableSpool` where the folder cannot be reached; only `discard` logs it,
    for what it leaves behind does no harm.
    """

    def __init__(self, folder: SharedPath) -> None:
        self.folder = folder
        self._removers = ThreadPoolExecutor(_REMOVERS, thread_name_prefix="spool")

    def _path(self, number: int, attempt: int) -> SharedPath:
        return self.folder / f"{number:06d}-{attempt}.json"

    def checkpoint(self, number: int) -> SharedPath:
        """Where a trial's recovery is saved while it is trained, whatever the attempt."""
        return self.folder / f"{number:06d}.safetensors"

    def write(self, number: int, attempt: int, result: AttemptResult) -> None:
        """Puts a result on disk; when this returns, a power cut does not lose it."""
        failpoint("spool.before")
        text = to_json(result)
        content = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n"
        with self._reaching():
            write_whole(self._path(number, attempt), content.encode())
        failpoint("spool.after")

    def read(self, number: int, attempt: int) -> AttemptResult | None:
        """The result of an attempt, or None where there is none or it is damaged."""
        path = self._path(number, attempt)
        content = self._content(path)
        if content is None:
            return None
        checksum, _, text = content.partition(b"\n")
        text = text.removesuffix(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != checksum:
            logger.warning("the spooled result %s is damaged: the trial runs again", path.name)
            return None
        return from_json(text.decode())

    def discard(self, number: int, attempt: int) -> None:
        """Forgets a result that is now in the database, and what it was trained from.

        An object store takes its time for that, and the driver has none: it is done aside.
        """
        self._drop(self._path(number, attempt))
        self._drop(self.checkpoint(number))

    def sweep(self, finished: Container[int]) -> None:
        """Discards what finished trials left, where a driver died before it did so."""
        with self._reaching():
            found = find(self.folder, "[0-9]*")
        for path in found:
            number = path.stem.partition("-")[0]
            if number.isdecimal() and int(number) in finished:
                self._drop(path)

    def _drop(self, path: SharedPath) -> None:
        if isinstance(path, Path):
            _remove(path)
        else:
            self._removers.submit(_remove, path)

    def close(self) -> None:
        """Waits until everything is discarded that was to be."""
        self._removers.shutdown()

    def end(self, epoch: int) -> None:
        """Tells the workers of a driver, known by its epoch, to save what they train and end."""
        with self._reaching():
            write_whole(self._ending(epoch), b"")

    def is_ending(self, epoch: int) -> bool:
        """Whether the driver of that epoch told its workers to end."""
        return self._content(self._ending(epoch)) is not None

    def tidy(self, epoch: int) -> None:
        """Removes what drivers before that epoch told their workers, and half-written files."""
        with self._reaching():
            make_folder(self.folder)
            for path in (*find(self.folder, "end-*"), *find(self.folder, "*.partial")):
                if path != self._ending(epoch):
                    remove(path)

    def remove(self) -> None:
        """Removes the folder with all that is in it, if there is one."""
        with self._reaching():
            remove_folder(self.folder)

    def _ending(self, epoch: int) -> SharedPath:
        return self.folder / f"end-{epoch}"

    def _content(self, path: SharedPath) -> bytes | None:
        """What is in a file; None where there is none. One request, as many workers look often."""
        with self._reaching():
            try:
                return read_whole(path)
            except FileNotFoundError:
                return None

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnusableSpool(str(self.folder), str(error)) from error


def _remove(path: SharedPath) -> None:
    try:
        remove(path)
    except OSError as error:
        logger.warning("%s stays in the spool: %s", path.name, error)

"""The spool: finished attempts on disk, so that a result outlives the driver that asked for it."""

import hashlib
import logging
import shutil
from contextlib import suppress
from pathlib import Path

from bitfront.probes import failpoint
from objectives.files import SharedPath, write_whole
from workers.outcome import Outcome

logger = logging.getLogger(__name__)


class Spool:
    """One file an attempt, written whole or not at all.

    A file holds the SHA-256 of its content in the first line and the outcome as JSON in the
    second. A file that does not match its hash counts as absent: the attempt runs again.
    """

    def __init__(self, folder: SharedPath) -> None:
        self.folder = folder

    def _path(self, number: int, attempt: int) -> SharedPath:
        return self.folder / f"{number:06d}-{attempt}.json"

    def checkpoint(self, number: int) -> SharedPath:
        """Where a trial's recovery is saved while it is trained, whatever the attempt."""
        return self.folder / f"{number:06d}.safetensors"

    def write(self, number: int, attempt: int, outcome: Outcome) -> None:
        """Puts an outcome on disk; when this returns, a power cut does not lose it.

        Raises:
            OSError: The folder cannot be written.
        """
        failpoint("spool.before")
        text = outcome.to_json()
        content = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n"
        write_whole(self._path(number, attempt), content.encode())
        failpoint("spool.after")

    def read(self, number: int, attempt: int) -> Outcome | None:
        """The outcome of an attempt, or None where there is none or it is damaged."""
        path = self._path(number, attempt)
        try:
            checksum, _, text = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        text = text.removesuffix(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != checksum:
            logger.warning("the spooled result %s is damaged: the trial runs again", path.name)
            return None
        return Outcome.from_json(text.decode())

    def discard(self, number: int, attempt: int) -> None:
        """Forgets an outcome that is now in the database, and what it was trained from."""
        self._path(number, attempt).unlink(missing_ok=True)
        self.checkpoint(number).unlink(missing_ok=True)

    def end(self, epoch: int) -> None:
        """Tells the workers of a driver, known by its epoch, to save what they train and end."""
        write_whole(self._ending(epoch), b"")

    def is_ending(self, epoch: int) -> bool:
        """Whether the driver of that epoch told its workers to end."""
        return self._ending(epoch).exists()

    def tidy(self, epoch: int) -> None:
        """Removes what drivers before that epoch told their workers, and half-written files."""
        leftovers = [*self.folder.glob("end-*"), *self.folder.glob("*.partial")]
        for path in leftovers:
            if path != self._ending(epoch):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the folder with all that is in it, if there is one."""
        if isinstance(self.folder, Path):
            with suppress(FileNotFoundError):
                shutil.rmtree(self.folder)
        elif self.folder.exists():
            self.folder.fs.rm(self.folder.path, recursive=True)

    def _ending(self, epoch: int) -> SharedPath:
        return self.folder / f"end-{epoch}"

"""The spool: finished attempts on disk, so that a result outlives the driver that asked for it."""

import hashlib
import logging
import os
from pathlib import Path

from bitfront.probes import failpoint
from workers.outcome import Outcome

logger = logging.getLogger(__name__)


class Spool:
    """One file an attempt, written whole or not at all.

    A file holds the SHA-256 of its content in the first line and the outcome as JSON in the
    second. A file that does not match its hash counts as absent: the attempt runs again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, number: int, attempt: int) -> Path:
        return self.folder / f"{number:06d}-{attempt}.json"

    def checkpoint(self, number: int) -> Path:
        """Where a trial's recovery is saved while it is trained, whatever the attempt."""
        return self.folder / f"{number:06d}.safetensors"

    def write(self, number: int, attempt: int, outcome: Outcome) -> None:
        """Puts an outcome on disk; when this returns, a power cut does not lose it."""
        failpoint("spool.before")
        self.folder.mkdir(parents=True, exist_ok=True)
        text = outcome.to_json()
        path = self._path(number, attempt)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        with draft.open("w") as file:
            file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        self._sync_folder()
        failpoint("spool.after")

    def read(self, number: int, attempt: int) -> Outcome | None:
        """The outcome of an attempt, or None where there is none or it is damaged."""
        path = self._path(number, attempt)
        try:
            checksum, _, text = path.read_text().partition("\n")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            checksum, text = "", ""
        text = text.removesuffix("\n")
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            logger.warning("the spooled result %s is damaged: the trial runs again", path.name)
            return None
        return Outcome.from_json(text)

    def discard(self, number: int, attempt: int) -> None:
        """Forgets an outcome that is now in the database, and what it was trained from."""
        self._path(number, attempt).unlink(missing_ok=True)
        self.checkpoint(number).unlink(missing_ok=True)

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Files that outlive a process: on a disk, or wherever fsspec reaches (S3, GCS, ...)."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from fsspec.asyn import AsyncFileSystem
from upath import UPath

from bitfront.errors import SpecError

SharedPath: TypeAlias = Path | UPath

_DISK = frozenset({"file", "local"})


def shared_path(text: str) -> SharedPath:
    """The path that a person means: a folder of this machine, or any URL that fsspec knows.

    Raises:
        SpecError: The URL's protocol is unknown, or its package is not installed.
    """
    if "://" not in text:
        return Path(text).expanduser().absolute()
    try:
        path = UPath(text)
        _ = path.fs
    except (ImportError, ValueError) as error:
        protocol = text.partition("://")[0]
        raise SpecError(
            f"{protocol}:// cannot be used ({error}): install the fsspec package for {protocol}"
        ) from error
    return Path(path.path) if path.protocol in _DISK else path


def write_whole(path: SharedPath, content: bytes) -> None:
    """Puts a file in its place, whole or not at all; when this returns, it is there to stay.

    On a disk it is written beside its place, synced and renamed. An object store puts an
    object whole by itself.

    Raises:
        OSError: It cannot be written.
    """
    if isinstance(path, UPath):
        with _as_os_errors(path):
            try:
                path.fs.pipe_file(path.path, content)
            except FileNotFoundError:
                if isinstance(path.fs, AsyncFileSystem):  # an object store: no bucket of that name
                    raise
                path.parent.mkdir(parents=True, exist_ok=True)
                path.fs.pipe_file(path.path, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_whole(path: SharedPath) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: It is not there.
        OSError: It cannot be read.
    """
    with _as_os_errors(path):
        return path.read_bytes()


def is_there(path: SharedPath) -> bool:
    """Whether there is such a file or folder.

    Raises:
        OSError: That cannot be told.
    """
    if isinstance(path, Path):
        return path.exists()
    try:
        with _as_os_errors(path):
            path.fs.info(path.path)  # `exists` takes every error for a no
    except FileNotFoundError:
        return False
    return True


def make_folder(folder: SharedPath) -> None:
    """Makes a folder, and those that it lies in, if it is not there.

    Behind fsspec the first file makes it: an object store has no folders, and to ask it for one
    may take rights on the whole bucket.

    Raises:
        OSError: It cannot be made.
    """
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def find(folder: SharedPath, pattern: str) -> list[SharedPath]:
    """The files in a folder whose name matches a glob pattern; none where there is no folder.

    Raises:
        OSError: The folder cannot be read.
    """
    with _as_os_errors(folder):
        return list(folder.glob(pattern))


def remove(path: SharedPath) -> None:
    """Removes a file, if it is there.

    Raises:
        OSError: It cannot be removed.
    """
    with suppress(FileNotFoundError), _as_os_errors(path):
        if isinstance(path, Path):
            path.unlink()
        else:
            path.fs.rm_file(path.path)


def remove_folder(folder: SharedPath) -> None:
    """Removes a folder with all that is in it, if it is there.

    Raises:
        OSError: It cannot be removed.
    """
    if isinstance(folder, Path):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        return
    if is_there(folder):
        with _as_os_errors(folder):
            folder.fs.rm(folder.path, recursive=True)


@contextmanager
def _as_os_errors(path: SharedPath) -> Iterator[None]:
    """Lets what a storage's package raises be an OSError, as it would be on a disk.

    Each package has errors of its own (botocore's, aiohttp's), with nothing in common.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(path, UPath):
            raise OSError(f"{type(error).__name__}: {error}") from error
        raise

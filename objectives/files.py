"""Files that outlive a process: on a disk, or wherever fsspec reaches (S3, GCS, ...)."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from upath import UPath

from bitfront.errors import SpecError

SharedPath: TypeAlias = Path | UPath


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
    return path


def write_whole(path: SharedPath, content: bytes) -> None:
    """Puts a file in its place, whole or not at all; when this returns, it is there to stay.

    On a disk it is written beside its place, synced and renamed. An object store puts an
    object whole by itself.
    """
    if isinstance(path, UPath):
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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

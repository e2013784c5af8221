"""A folder's files as a tar archive, written as it is read."""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

_PART: Final = 2**20


def tar_stream(folder: Path, names: Sequence[str], stem: str) -> Iterator[bytes]:
    """The archive of some of a folder's files under the folder's name in it, `stem`.

    Every file is as long as it was at its start: one that shrinks meanwhile ends the archive early.

    Raises:
        OSError: A file cannot be read.
    """
    for name in names:
        with (folder / name).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            info = tarfile.TarInfo(f"{stem}/{name}")
            info.size = size
            info.mode = 0o644
            yield info.tobuf(tarfile.PAX_FORMAT)
            left = size
            while left and (part := file.read(min(_PART, left))):
                left -= len(part)
                yield part
            if left:
                raise OSError(f"{name} has shrunk while it was read")
        yield bytes(-size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)

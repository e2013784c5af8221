"""The one lister of image folders: a sub-folder a class, and a count of what was left out."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bitfront.errors import MissingData
from bitfront.job.document import one_line

SUFFIXES: Final = frozenset(
    {
        *(".avif", ".bmp", ".dib", ".gif", ".ico", ".jfif", ".jpe", ".jpeg", ".jpg"),
        *(".j2k", ".jp2", ".jpx", ".pbm", ".pgm", ".png", ".apng", ".pnm", ".ppm"),
        *(".qoi", ".tga", ".tif", ".tiff", ".webp", ".mpo"),
    }
)
"""What the names of images end in, those that `objectives.data.images` decodes."""

_UNREADABLE = frozenset(
    {
        *(".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".cr2", ".cr3", ".nef", ".arw"),
        *(".dng", ".orf", ".rw2", ".eps", ".exr", ".hdr", ".xcf"),
    }
)
_FOREIGN = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
)


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder with one sub-folder a class, sorted by name.

    Attributes:
        root: The folder.
        classes: The names of the sub-folders, in the order of the labels.
        files: Every image.
        labels: The index of its class.
        left_out: What was not taken, with how often.
    """

    root: Path
    classes: tuple[str, ...]
    files: list[Path]
    labels: list[int]
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def names(self) -> list[str]:
        """The path of every image from the root on."""
        return names_below(self.root, self.files)

    @property
    def summary(self) -> str:
        """What was found and what was left out, in one line."""
        found = f"{len(self.files)} images in {len(self.classes)} classes"
        if not self.left_out:
            return found
        left = ", ".join(f"{count} {what}" for what, count in sorted(self.left_out.items()))
        return f"{found}; left out: {left}"


def list_images(root: Path) -> ImageFolder:
    """Lists an image folder; links are followed, each folder at most once within a class.

    Hidden names (`.ipynb_checkpoints`, `._cat.jpg`) and what systems leave behind
    (`Thumbs.db`, `__MACOSX`) are left out, and so is what is not an image by its name, a broken
    link, and what lies beside the class folders.

    Raises:
        MissingData: There are fewer than two class folders, one has no image, two have the same
            name but for its spelling in Unicode, or a folder cannot be looked into.
    """
    left_out: Counter[str] = Counter()
    folders: list[Path] = []
    for entry in _entries(root):
        if _is_foreign(entry.name):
            left_out["hidden or system names"] += 1
        elif _is_folder(entry):
            folders.append(Path(entry.path))
        else:
            left_out["files beside the class folders"] += 1
    if len(folders) < 2:
        raise MissingData(
            f"{shown(root)} has {len(folders)} class folder{'s' * (len(folders) != 1)}, but a "
            "task needs at least 2 classes: put the images of each class into a sub-folder of "
            "its own"
        )
    _refuse_twins(folders)
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        own = list(_images_below(folder, left_out, set()))
        if not own:
            raise MissingData(_no_image(folder, left_out))
        files += own
        labels += [label] * len(own)
    return ImageFolder(root, tuple(folder.name for folder in folders), files, labels, left_out)


def existing_folder(path: str | None) -> Path:
    """The job's folder.

    Raises:
        MissingData: It is not there.
    """
    root = Path(path or "").expanduser()
    if not path or not root.is_dir():
        raise MissingData(
            f"the folder {path!r} does not exist: set data.path to the folder with the images"
        )
    return root


def list_pictures(root: Path) -> tuple[list[Path], Counter[str]]:
    """All images of a folder and of those in it, sorted by name, and what was left out.

    Raises:
        MissingData: There are none, or a folder cannot be looked into.
    """
    left_out: Counter[str] = Counter()
    files = list(_images_below(root, left_out, set()))
    if not files:
        raise MissingData(
            f"the folder {shown(root)} has no images: set data.path to where they are"
        )
    return files, left_out


def names_below(root: Path, files: Sequence[Path]) -> list[str]:
    """The paths of files that were listed, from the folder on where they were."""
    start = len(os.path.join(root, "")) if root.parts else 0
    return [str(path)[start:] for path in files]


def shown(path: Path | str) -> str:
    """A path as text that can be printed and stored, whatever bytes its name is made of.

    What is no character, or one that a terminal obeys, is written as an escape.
    """
    return one_line(os.fsencode(path).decode(errors="backslashreplace"))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name alike on every file system."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: (_normal(entry.name), os.fsencode(entry.name)))
    except OSError as error:
        raise MissingData(f"the folder {shown(folder)} cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one; only links cost a look at the disk."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _images_below(
    folder: Path, left_out: Counter[str], seen: set[tuple[int, int]]
) -> Iterator[Path]:
    status = folder.stat()
    place = (status.st_dev, status.st_ino)
    if place in seen:
        left_out["links to folders that were listed already"] += 1
        return
    seen.add(place)
    for entry in _entries(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        is_link = entry.is_symlink()
        if _is_foreign(entry.name):
            left_out["hidden or system names"] += 1
        elif _is_folder(entry):
            yield from _images_below(Path(entry.path), left_out, seen)
        elif is_link and not os.path.exists(entry.path):
            left_out["broken links"] += 1
        elif suffix in _UNREADABLE:
            left_out[f"{suffix} files (convert them to JPEG or PNG)"] += 1
        elif suffix not in SUFFIXES or not (
            os.path.isfile(entry.path) if is_link else entry.is_file(follow_symlinks=False)
        ):
            left_out["files that are not images"] += 1
        else:
            yield Path(entry.path)


def _is_foreign(name: str) -> bool:
    return name.startswith(".") or name.lower() in _FOREIGN


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _refuse_twins(folders: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for folder in folders:
        twin = seen.setdefault(_normal(folder.name), folder)
        if twin is not folder:
            raise MissingData(
                f"the class folders {shown(twin)} and {shown(folder)} have the same name, spelled "
                "in two ways in Unicode: put their images into one"
            )


def _no_image(folder: Path, left_out: Counter[str]) -> str:
    unreadable = sorted(what for what in left_out if what.startswith("."))
    hint = f" (it may have {' and '.join(unreadable)})" if unreadable else ""
    return f"the class folder {shown(folder)} has no images{hint}: add some, or remove the folder"

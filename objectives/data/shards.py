"""Webdataset shards: tar files of samples, listed by their headers and read member by member."""

import json
import math
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO, Final

import fsspec

from bitfront.errors import InvalidSample, MissingData
from bitfront.spec import DataSpec
from objectives.data.captions import names_in
from objectives.data.image_folder import SUFFIXES
from objectives.data.labels import labelled
from objectives.data.sample import Part, Sample

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NAMES: Final = "classnames.txt"  # as CLIP_benchmark has them, beside the shards or above them
_TEXTS: Final = frozenset({"txt", "cls", "json"})
_LARGEST_TEXT: Final = 1 << 20
_BLOCK: Final = 512
_MOST_SHARDS: Final = 1_000_000


@dataclass(slots=True)
class _Packed:
    """A sample of a shard.

    Attributes:
        shard: Its address.
        key: The name that its members share.
        image: Where its image lies; None without one.
        texts: What its further members hold, by suffix.
    """

    shard: str
    key: str
    image: Part | None = None
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Where a person finds it."""
        return f"the sample {self.key!r} of {self.shard}"


class ShardSource:
    """The samples of all shards of a job: what they are, and where each one's image lies.

    Shards are read once from end to end, in which images are passed over.
    """

    def __init__(self, spec: DataSpec) -> None:
        path = spec.path or ""
        shards = list_shards(path)
        self.title = f"shards {path}"
        self._samples = [sample for shard in shards for sample in _read_shard(shard)]
        if not self._samples:
            raise MissingData(f"the {self.title} have no samples: set data.path to shards that do")
        self.names = [f"{sample.shard.rpartition('/')[2]}/{sample.key}" for sample in self._samples]
        self.shard_count = len(shards)

    def group(self, index: int) -> str:
        """The sample: each one stands alone."""
        return self.names[index]

    def sample(self, index: int) -> Sample:
        """The image within its shard."""
        return Sample(self._samples[index].image, self.where(index))

    def content(self, index: int) -> bytes:
        """The image as it is in its shard."""
        return self.sample(index).read()

    def where(self, index: int) -> str:
        """The key and the shard."""
        return self._samples[index].where

    def text(self, index: int, suffix: str) -> str | None:
        """What a further member of the sample holds; None where there is none."""
        return self._samples[index].texts.get(suffix)


class ShardLabels(ShardSource):
    """Samples with a class each: `.cls` is its number or its name.

    Numbers are those of `data.classes`, or of the lines of `classnames.txt` beside the shards.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        values = []
        for index in range(len(self._samples)):
            value = (self.text(index, "cls") or "").strip()
            if not value:
                raise InvalidSample(
                    f"{self.where(index)} has no class: add a member .cls with its number or name, "
                    "or for captions set data.task: retrieval"
                )
            values.append(value)
        given = spec.classes if spec.classes is not None else _names_beside(spec.path or "")
        self.classes, self.labels = labelled(values, given, self.title)

    @property
    def summary(self) -> str:
        """What was found, in one line."""
        count = len(self._samples)
        return f"{count} samples in {self.shard_count} shards, of {len(self.classes)} classes"


class ShardCaptions(ShardSource):
    """Samples with captions: the lines of `.txt`, or `caption` or `captions` of `.json`."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self._captions = [self._read(index) for index in range(len(self._samples))]
        self.count = sum(map(len, self._captions))

    def captions(self, index: int) -> Sequence[str]:
        """The captions as they are in the shard."""
        return self._captions[index]

    def _read(self, index: int) -> tuple[str, ...]:
        text, content = self.text(index, "txt"), self.text(index, "json")
        lines: object = (text or "").splitlines()
        if text is None and content is not None:
            try:
                known = json.loads(content)
            except ValueError as error:
                raise InvalidSample(f"{self.where(index)}: its .json is none ({error})") from error
            found = known if isinstance(known, dict) else {}
            lines = found.get("captions", [found.get("caption", "")])
        captions = (
            [x.strip() for x in lines if isinstance(x, str)] if isinstance(lines, list) else []
        )
        if not any(captions):
            raise InvalidSample(
                f"{self.where(index)} has no caption: add a member .txt with one a line, or .json "
                "with caption or captions"
            )
        return tuple(filter(None, captions))


def list_shards(path: str) -> list[str]:
    """The addresses of shards: `{000..012}` stands for its numbers, and a folder for its tar files.

    Raises:
        MissingData: There are none, or more than a data set has.
    """
    count = math.prod(int(last) - int(first) + 1 for first, last in _RANGE.findall(path))
    if count > _MOST_SHARDS:
        raise MissingData(
            f"{path} names {count:,} shards, and {_MOST_SHARDS:,} are the most: correct its numbers"
        )
    found = _RANGE.search(path)
    if found is not None:
        first, last = found.groups()
        numbers = range(int(first), int(last) + 1)
        return [
            shard
            for number in numbers
            for shard in list_shards(
                f"{path[: found.start()]}{number:0{len(first)}}{path[found.end() :]}"
            )
        ]
    if path.endswith(".tar"):
        return [path]
    files, root = _file_system(path)
    shards = sorted(files.glob(f"{root.rstrip('/')}/*.tar"))
    if not shards:
        raise MissingData(
            f"{path} has no shards: set data.path to a folder with .tar files, to one of them, or "
            "to shards such as train/{00000..00012}.tar"
        )
    is_local = "://" not in path
    return [shard if is_local else files.unstrip_protocol(shard) for shard in shards]


def _file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """What opens a path or an address, and what it calls it.

    Raises:
        MissingData: Nothing does.
    """
    if "://" not in path:
        return fsspec.filesystem("file"), path
    try:
        files, own = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise MissingData(f"data.path: {path} cannot be opened: {error}") from error
    return files, str(own)


def _read_shard(shard: str) -> Iterator[_Packed]:
    """The samples of a shard, in its order.

    Raises:
        MissingData: There is no such shard.
        InvalidSample: It is no tar file, it ends in the middle, or a sample has no image.
    """
    try:
        files, path = _file_system(shard)
        with files.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = _members(shard, file, tar)
            for key, own in groupby(members, key=lambda member: member[0]):
                packed = _Packed(shard, key)
                for _, suffix, found in own:
                    if isinstance(found, Part):
                        packed.image = found
                    else:
                        packed.texts[suffix] = found
                if packed.image is None:
                    raise InvalidSample(
                        f"{packed.where} has no image: add one, such as {key}.jpg, or remove it"
                    )
                yield packed
            _refuse_cut(shard, file, tar.offset)
    except FileNotFoundError as error:
        raise MissingData(
            f"the shard {shard} does not exist: set data.path to shards that do"
        ) from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InvalidSample(
            f"the shard {shard} cannot be read to its end ({error}): copy or write it again"
        ) from error


def _members(
    shard: str, file: IO[bytes], tar: tarfile.TarFile
) -> Iterator[tuple[str, str, Part | str]]:
    """Key, suffix, and the place of an image or the text of each member that is one."""
    for path, offset, nbytes in _files(file, tar):
        folder, _, name = path.removeprefix("./").rpartition("/")
        stem, _, suffix = name.partition(".")
        suffix = suffix.lower()
        key = f"{folder}/{stem}" if folder else stem
        if not stem:
            continue
        if f".{suffix.rpartition('.')[2]}" in SUFFIXES:
            yield key, suffix, Part(shard, offset, nbytes)
        elif suffix in _TEXTS and nbytes <= _LARGEST_TEXT:
            file.seek(offset)
            try:
                yield key, suffix, file.read(nbytes).decode()
            except UnicodeDecodeError as error:
                raise InvalidSample(
                    f"the sample {key!r} of {shard} has a .{suffix} that is not UTF-8 text "
                    f"({error}): correct it"
                ) from error


def _files(file: IO[bytes], tar: tarfile.TarFile) -> Iterator[tuple[str, int, int]]:
    """The name of every file in a tar, where it begins, and how long it is."""
    while (member := tar.next()) is not None:
        if member.isfile():
            yield member.name, member.offset_data, member.size
        while (plain := _plain_file(file, tar)) is not None:
            yield plain
        tar.members = []  # type: ignore[attr-defined]  # or it would keep them all


def _plain_file(file: IO[bytes], tar: tarfile.TarFile) -> tuple[str, int, int] | None:
    """The next file where its header is a plain one, which is passed over; None otherwise.

    `tarfile` takes several times as long for a header, and reads all others. The layout is that
    of `ustar` in POSIX.1-1988.
    """
    start = tar.offset
    file.seek(start)
    header = file.read(_BLOCK)
    if len(header) < _BLOCK or header[156:157] != tarfile.REGTYPE or tar.pax_headers:
        return None
    name, prefix = (
        header[first:last].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        for first, last in ((0, 100), (345, 500))
    )
    try:
        nbytes, found = (
            int(header[first:last].strip(b" \0"), 8) for first, last in ((124, 136), (148, 156))
        )
    except ValueError:
        return None
    if found != sum(header[:148]) + sum(header[156:]) + 8 * ord(" ") or nbytes < 0:
        return None
    tar.offset = start + _BLOCK + math.ceil(nbytes / _BLOCK) * _BLOCK
    return f"{prefix}/{name}" if prefix else name, start + _BLOCK, nbytes


def _refuse_cut(shard: str, file: IO[bytes], end: int) -> None:
    """Refuses a shard without the block of zeros that ends a tar file."""
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise InvalidSample(
            f"the shard {shard} ends in the middle, after {end} bytes: copy or write it again"
        )


def _names_beside(path: str) -> Sequence[str] | None:
    """The lines of CLIP_benchmark's file of class names; None where there is none."""
    folder = path.rstrip("/") if not path.endswith(".tar") else path.rpartition("/")[0]
    for place in (f"{folder}/{_NAMES}", f"{folder.rpartition('/')[0]}/{_NAMES}"):
        files, file = _file_system(place)
        if files.exists(file):
            if "://" not in place:
                return names_in(place)
            text: str = files.cat_file(file).decode("utf-8-sig")
            return [line.strip() for line in text.splitlines() if line.strip()]
    return None

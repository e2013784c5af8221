"""Where the samples of a person's own data come from: an image folder, or a saved dataset."""

from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, cast

from PIL import Image

from bitfront.errors import InvalidSample, MissingData, SpecError
from bitfront.spec import DataSpec

if TYPE_CHECKING:
    from datasets import Dataset


class Source(Protocol):
    """Labelled images, read one by one when they are needed."""

    @property
    def title(self) -> str:
        """What a message calls it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""

    @property
    def labels(self) -> Sequence[int]:
        """The class index of every sample."""

    @property
    def names(self) -> Sequence[str]:
        """What tells one sample from another, whatever is added or taken away beside it."""

    def content(self, index: int) -> bytes:
        """The encoded image of a sample.

        Raises:
            InvalidSample: It cannot be read.
        """

    def where(self, index: int) -> str:
        """Where a person finds the sample."""


def open_image(source: Source, index: int) -> Image.Image:
    """A sample's image in RGB.

    Raises:
        InvalidSample: The image cannot be read; the message says where it is.
    """
    return decode_image(source.content(index), source.where(index))


def decode_image(content: bytes, where: str) -> Image.Image:
    """An encoded image in RGB.

    Raises:
        InvalidSample: It cannot be read; the message says where it is.
    """
    try:
        return Image.open(BytesIO(content)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidSample(
            f"the image {where} cannot be read ({error}): replace or remove it"
        ) from error


class FolderSource:
    """A folder with one sub-folder a class; names are sorted, and `_` in them reads as a space."""

    def __init__(self, spec: DataSpec) -> None:
        self._root = _existing_folder(spec.path)
        self.title = f"image folder {self._root}"
        known = Image.registered_extensions()
        folders = sorted(
            path for path in self._root.iterdir() if path.is_dir() and path.name[0] != "."
        )
        if len(folders) < 2:
            raise MissingData(
                f"{self._root} has {len(folders)} sub-folders, but a task needs at least 2 "
                "classes: put the images of each class into a sub-folder of its own"
            )
        members = [
            sorted(path for path in folder.rglob("*") if path.suffix.lower() in known)
            for folder in folders
        ]
        for folder, files in zip(folders, members, strict=True):
            if not files:
                raise MissingData(
                    f"the class folder {folder} has no images: add some, or remove the folder"
                )
        self.classes = tuple(folder.name.replace("_", " ") for folder in folders)
        self.labels = [label for label, files in enumerate(members) for _ in files]
        self._files = list(chain.from_iterable(members))
        self.names = [path.relative_to(self._root).as_posix() for path in self._files]

    def content(self, index: int) -> bytes:
        """The file as it is on disk."""
        try:
            return self._files[index].read_bytes()
        except OSError as error:
            raise InvalidSample(f"{self._files[index]} cannot be read: {error}") from error

    def where(self, index: int) -> str:
        """The file's path."""
        return str(self._files[index])


class DatasetSource:
    """A `datasets` dataset saved to disk, with an image column and a label column."""

    def __init__(self, spec: DataSpec) -> None:
        dataset = load_dataset(spec, (spec.image_column, spec.label_column))
        self.title = f"dataset {spec.path}"
        self.classes, self.labels = _read_labels(dataset, spec.label_column, self.title)
        self.names = [str(index) for index in range(len(self.labels))]
        self._cells = undecoded_images(dataset, spec.image_column, self.title)

    def content(self, index: int) -> bytes:
        """The encoded image: from the dataset, or from the file that it names."""
        cell = self._cells(index)
        if cell is None:
            raise InvalidSample(f"{self.where(index)} has no image: remove it from the dataset")
        return read_cell(cell, self.where(index))

    def where(self, index: int) -> str:
        """The row of the dataset."""
        return f"row {index} of {self.title}"


def _existing_folder(path: str | None) -> Path:
    root = Path(path or "").expanduser()
    if not path or not root.is_dir():
        raise MissingData(f"there is no folder {path!r}: set data.path to where the images are")
    return root


def load_dataset(spec: DataSpec, columns: Sequence[str]) -> "Dataset":
    """The job's dataset, which has all of the columns.

    Raises:
        MissingData: There is none at the path, or the package is missing.
        SpecError: A column is missing.
    """
    dataset = _open_dataset(_existing_folder(spec.path))
    for column in columns:
        if column not in dataset.column_names:
            raise SpecError(
                f"the dataset {spec.path} has no column {column!r}; its columns are "
                f"{', '.join(dataset.column_names)}: set data.image_column and its like"
            )
    return dataset


def _open_dataset(root: Path) -> "Dataset":
    try:
        import datasets
    except ImportError as error:
        raise MissingData(
            "data of source datasets needs the package datasets: "
            "install it with 'pip install bitfront[datasets]'"
        ) from error
    try:
        loaded = datasets.load_from_disk(str(root))
    except (FileNotFoundError, ValueError) as error:
        raise MissingData(
            f"{root} holds no dataset that was saved with save_to_disk: {error}"
        ) from error
    if isinstance(loaded, datasets.Dataset):
        return loaded
    raise MissingData(
        f"{root} holds several splits ({', '.join(loaded)}): set data.path to one of them, "
        f"such as {root / next(iter(loaded))}"
    )


def _read_labels(dataset: "Dataset", column: str, title: str) -> tuple[tuple[str, ...], list[int]]:
    """The class names, and every sample's index into them."""
    values = dataset[column][:]
    names = getattr(dataset.features[column], "names", None)
    if names is not None:
        return tuple(names), [-1 if value is None else value for value in values]
    if not all(isinstance(value, str) for value in values):
        raise SpecError(
            f"the column {column!r} of {title} has neither class names nor texts, so there are "
            "no captions: cast it to datasets.ClassLabel"
        )
    classes = tuple(sorted(set(values)))
    codes = {name: code for code, name in enumerate(classes)}
    return classes, [codes[value] for value in values]


class EncodedImage(TypedDict):
    """An image cell as a dataset stores it."""

    bytes: bytes | None
    path: str | None


def read_cell(cell: EncodedImage, where: str) -> bytes:
    """The encoded image: from the dataset, or from the file that it names.

    Raises:
        InvalidSample: The file cannot be read; the message says whose it is.
    """
    if cell["bytes"] is not None:
        return cell["bytes"]
    try:
        return Path(cell["path"] or "").read_bytes()
    except OSError as error:
        raise InvalidSample(f"the image of {where} cannot be read: {error}") from error


def undecoded_images(
    dataset: "Dataset", column: str, title: str
) -> Callable[[int], EncodedImage | None]:
    """Reads one row's image as it is stored."""
    import datasets

    if not isinstance(dataset.features[column], datasets.Image):
        raise SpecError(
            f"the column {column!r} of {title} has no images: cast it to datasets.Image"
        )
    cells = dataset.cast_column(column, datasets.Image(decode=False))
    return lambda index: cast("EncodedImage | None", cells[index][column])

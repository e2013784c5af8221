"""Where the samples of a person's own data come from: a folder, a dataset, a table or shards."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, cast

from bitfront.errors import InvalidSample, MissingData, SpecError
from bitfront.spec import DataSource, DataSpec
from objectives.data.captions import class_names
from objectives.data.image_folder import existing_folder, list_images, shown
from objectives.data.pictures import LabelledPictures
from objectives.data.sample import Encoded, Sample
from objectives.data.shards import ShardLabels
from objectives.data.splits import Source, Sources
from objectives.data.tables import TableLabels

if TYPE_CHECKING:
    from datasets import Dataset


class LabelledSource(Source, Protocol):
    """Images with a class each, read one by one when they are needed."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What the classes are called in captions, in the order of the labels."""

    @property
    def labels(self) -> Sequence[int]:
        """The class index of every sample; -1 where none is known."""

    @property
    def summary(self) -> str:
        """What was found and what was left out, in one line."""

    def sample(self, index: int) -> Sample:
        """The encoded image of a sample, or where it is."""

    def content(self, index: int) -> bytes:
        """The encoded image of a sample.

        Raises:
            InvalidSample: It cannot be read.
        """


class FolderSource:
    """A folder with one sub-folder a class; see `objectives.data.image_folder`."""

    def __init__(self, spec: DataSpec) -> None:
        self._folder = list_images(existing_folder(spec.path))
        self.title = f"image folder {shown(self._folder.root)}"
        self.summary = self._folder.summary
        self.classes = class_names(self._folder.classes, spec.classes, self.title)
        self.labels = self._folder.labels
        self.names = self._folder.names

    def group(self, index: int) -> str:
        """The file's name: each one stands alone."""
        return self.names[index]

    def sample(self, index: int) -> Sample:
        """The file."""
        return Sample(self._folder.files[index])

    def content(self, index: int) -> bytes:
        """The file as it is on disk."""
        return self.sample(index).read()

    def where(self, index: int) -> str:
        """The file's path."""
        return shown(self._folder.files[index])


class DatasetSource:
    """A `datasets` dataset saved to disk, with an image column and a label column."""

    def __init__(self, spec: DataSpec) -> None:
        dataset = load_dataset(spec, (spec.image_column, spec.label_column))
        self.title = f"dataset {spec.path}"
        found, self.labels = _read_labels(dataset, spec.label_column, self.title)
        self.classes = class_names(found, spec.classes, self.title)
        self.summary = f"{len(self.labels)} rows in {len(self.classes)} classes"
        self.names = [str(index) for index in range(len(self.labels))]
        self._cells = undecoded_images(dataset, spec.image_column, self.title)

    def group(self, index: int) -> str:
        """The row: each one stands alone."""
        return self.names[index]

    def sample(self, index: int) -> Sample:
        """The encoded image of a row."""
        cell = self._cells(index)
        return Sample(None if cell is None else encoded(cell), self.where(index))

    def content(self, index: int) -> bytes:
        """The encoded image: from the dataset, or from the file that it names."""
        return self.sample(index).read()

    def where(self, index: int) -> str:
        """The row of the dataset."""
        return f"row {index} of {self.title}"


def open_labelled_source(spec: DataSpec) -> LabelledSource:
    """The images and classes of a job, listed but not read.

    Raises:
        MissingData: There is nothing at the path, or a class is empty.
        InvalidSample: A row has no label.
        SpecError: A column is missing, or classes cannot be told apart by their names.
    """
    if spec.source is DataSource.IMAGES:
        return LabelledPictures(spec)
    if spec.source is DataSource.TABLE:
        return TableLabels(spec)
    if spec.source is DataSource.WEBDATASET:
        return ShardLabels(spec)
    return FolderSource(spec) if spec.source is DataSource.IMAGE_FOLDER else DatasetSource(spec)


def one_classes(sources: Sources[LabelledSource]) -> tuple[str, ...]:
    """The classes of all splits.

    Raises:
        SpecError: Two splits have other classes.
    """
    first, *others = sources.values()
    for other in others:
        if other.classes != first.classes:
            raise SpecError(
                f"data.splits: the {other.title} has {len(other.classes)} classes and the "
                f"{first.title} {len(first.classes)}, which are not the same: give each split the "
                "same classes"
            )
    return first.classes


def load_dataset(spec: DataSpec, columns: Sequence[str]) -> "Dataset":
    """The job's dataset, which has all of the columns.

    Raises:
        MissingData: There is none at the path, or the package is missing.
        SpecError: A column is missing.
    """
    dataset = _open_dataset(existing_folder(spec.path))
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
    empty = next((place for place, value in enumerate(values) if value is None), None)
    if empty is not None and any(isinstance(value, str) for value in values):
        raise InvalidSample(
            f"row {empty} of {title} has no label in the column {column!r}: give it one, or "
            "remove the row"
        )
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


def encoded(cell: EncodedImage) -> Encoded:
    """The image's bytes, or the file that the dataset names."""
    return Path(cell["path"] or "") if cell["bytes"] is None else cell["bytes"]


def undecoded_images(
    dataset: "Dataset", column: str, title: str
) -> Callable[[int], EncodedImage | None]:
    """Reads one row's image as it is stored."""
    import datasets

    if not isinstance(dataset.features[column], datasets.Image):
        raise SpecError(
            f"the column {column!r} of {title} has no images: cast it to datasets.Image"
        )
    # Of a row that is asked for, all columns are read.
    cells = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return lambda index: cast("EncodedImage | None", cells[index][column])

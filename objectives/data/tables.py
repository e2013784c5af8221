"""Tables of samples: CSV or Parquet files, a row with an image's path and its label or caption."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from bitfront.errors import InvalidSample, MissingData, SpecError
from bitfront.spec import DataSpec
from objectives.data.labels import labelled
from objectives.data.listing import CaptionedImages, ListedImages, Listing

_PARQUET = (".parquet", ".pq")


class TableLabels(ListedImages):
    """A table of images with a class each: its name, or its number in `data.classes`."""

    def __init__(self, spec: DataSpec) -> None:
        listing, title, rows = _read(spec, spec.label_column)
        super().__init__(listing, title, [image for image, _ in rows])
        values = [value for _, value in rows]
        self.classes, self.labels = labelled(values, spec.classes, self.title)

    @property
    def summary(self) -> str:
        """What was found, in one line."""
        return f"{len(self.names)} rows of {len(self.classes)} classes"

    def where(self, index: int) -> str:
        """The row of the table, the first one being 1."""
        return f"row {index + 1} of {self.title}"


class TableCaptions(CaptionedImages):
    """A table of images with a caption a row; rows of one image are put together."""

    def __init__(self, spec: DataSpec) -> None:
        listing, title, rows = _read(spec, spec.caption_column)
        found: dict[str, list[str]] = {}
        for image, caption in rows:
            found.setdefault(image, []).append(caption)
        super().__init__(listing, title, found)


def _read(spec: DataSpec, column: str) -> tuple[Listing, str, list[tuple[str, str]]]:
    """The table, what a message calls it, and the image and another column of each row.

    Raises:
        MissingData: There is no such file, or it has no rows.
        InvalidSample: It cannot be read, or a row lacks something.
        SpecError: A column is missing.
    """
    listing = Listing(spec, "row")
    title = f"table {listing.path}"
    rows = list(_rows(listing.path, (spec.image_column, column), title))
    if not rows:
        raise MissingData(f"the {title} has no rows: set data.path to one that has")
    for number, row in enumerate(rows, 1):
        for name, found in zip((spec.image_column, column), row, strict=True):
            if not found:
                raise InvalidSample(
                    f"row {number} of {title} has nothing in the column {name!r}: fill "
                    "it, or remove the row"
                )
    return listing, title, rows


def _rows(path: Path, columns: tuple[str, str], title: str) -> Iterator[tuple[str, str]]:
    """Two columns of each row as texts, empty where there is nothing."""
    if path.suffix.lower() in _PARQUET:
        yield from _parquet_rows(path, columns, title)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            # open_clip's own tables have tabs.
            table = csv.reader(file, delimiter="\t" if "\t" in header else ",", strict=True)
            names = next(table, [])
            places = [_place(names, column, title) for column in columns]
            for row in table:
                if not row:
                    continue
                if len(row) != len(names):
                    raise InvalidSample(
                        f"line {table.line_num} of {title} has {len(row)} columns, but the first "
                        f"line has {len(names)}: correct it"
                    )
                yield row[places[0]].strip(), row[places[1]].strip()
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InvalidSample(
            f"the {title} cannot be read to its end ({error}): it must be CSV in UTF-8, or Parquet "
            "with a name that ends in .parquet"
        ) from error


def _parquet_rows(path: Path, columns: tuple[str, str], title: str) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingData(
            "a Parquet table needs the package pyarrow: install it with 'pip install "
            "bitfront[datasets]', or give CSV"
        ) from error
    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            for column in columns:
                _place(names, column, title)
            for batch in table.iter_batches(columns=list(dict.fromkeys(columns))):
                values = batch.to_pydict()
                for image, value in zip(*(values[column] for column in columns), strict=True):
                    yield _text(image), _text(value)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidSample(
            f"the {title} cannot be read to its end ({reason}): copy or write it again"
        ) from error


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _place(names: Sequence[str], column: str, title: str) -> int:
    if column not in names:
        raise SpecError(
            f"the {title} has no column {column!r}; its columns are {', '.join(names)}: set "
            "data.image_column and its like"
        )
    return list(names).index(column)

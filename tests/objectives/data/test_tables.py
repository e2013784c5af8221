"""Tables of samples, as pandas writes them."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from bitfront.errors import BitfrontError, InvalidSample, SpecError
from bitfront.spec import DataSpec
from objectives.data.preview import preview_data
from objectives.data.tables import TableCaptions, TableLabels

ROWS = [
    ("a.png", "wolf", "a wolf, in snow"),
    ("b.png", "bear", "a bear"),
    ("a.png", "wolf", "x\ny"),
]
FORMS = ("csv", "tsv", "parquet")


def spec_of(path: Path, **settings: object) -> DataSpec:
    return DataSpec.model_validate({"source": "table", "path": str(path), **settings})


def write(folder: Path, form: str, table: pd.DataFrame) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (2, 2), "red" if name < "b" else "blue").save(folder / name)
    path = folder / f"table.{form}"
    if form == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    return path


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=["image", "label", "caption"])


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_those_that_pandas_wrote(form: str, table: pd.DataFrame, tmp_path: Path) -> None:
    source = TableLabels(spec_of(write(tmp_path, form, table)))

    assert source.classes == ("bear", "wolf")
    assert [source.classes[label] for label in source.labels] == list(table["label"])
    assert source.content(1) == (tmp_path / "b.png").read_bytes()
    assert source.group(0) == source.group(2)
    assert source.where(1) == f"row 2 of {source.title}"


@pytest.mark.parametrize("form", FORMS)
def test_captions_of_one_image_are_put_together(
    form: str, table: pd.DataFrame, tmp_path: Path
) -> None:
    renamed = table.rename(columns={"image": "filepath", "caption": "title"})
    path = write(tmp_path, form, renamed)

    source = TableCaptions(spec_of(path, image_column="filepath", caption_column="title"))

    found = {source.names[index]: list(source.captions(index)) for index in range(2)}
    assert found == renamed.groupby("filepath")["title"].apply(list).to_dict()
    assert source.count == 3


@pytest.mark.parametrize("form", FORMS)
def test_labels_may_be_numbers_of_named_classes(form: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"image": ["a.png", "b.png"], "label": [2, 0]})

    source = TableLabels(spec_of(write(tmp_path, form, table), classes=["x", "y", "z"]))

    assert source.classes == ("x", "y", "z")
    assert list(source.labels) == [2, 0]


def test_images_may_lie_in_another_folder(table: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = write(tmp_path, "csv", table).rename(tmp_path / "table.txt.csv")
    (tmp_path / "a.png").rename(tmp_path / "images" / "a.png")

    source = TableLabels(spec_of(path, images=str(tmp_path / "images")))

    assert source.content(0) == (tmp_path / "images" / "a.png").read_bytes()
    with pytest.raises(InvalidSample, match="cannot be read: No such file"):
        source.content(1)


def test_a_preview_says_what_was_found(table: pd.DataFrame, tmp_path: Path) -> None:
    path = write(tmp_path, "csv", table)

    assert preview_data(spec_of(path), None).notes[0] == "3 rows of 2 classes"
    notes = preview_data(spec_of(path, task="retrieval"), None).notes
    assert notes == (f"table {path}: 2 images with 3 captions",)


BAD: dict[str, tuple[str, str | bytes, type[BitfrontError], str]] = {
    "no column": ("csv", "image,class\na.png,x\n", SpecError, "no column 'label'; its columns are"),
    "an empty label": ("csv", "image,label\na.png,\n", InvalidSample, "row 1 of .* nothing in the"),
    "a short row": (
        "csv",
        "image,label\na.png\n",
        InvalidSample,
        "line 2 of .* has 1 columns, but",
    ),
    "an open quote": ("csv", 'image,label\n"a.png,x\n', InvalidSample, "cannot be read to its end"),
    "no text": ("csv", b"\xff\xfe\x00", InvalidSample, "it must be CSV in UTF-8"),
    "no rows": ("csv", "image,label\n", BitfrontError, "has no rows"),
    "no Parquet": ("parquet", "image,label\na.png,x\n", InvalidSample, "cannot be read to its end"),
    "an image outside": ("csv", "image,label\n../a.png,x\nb.png,y\n", InvalidSample, "outside of"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_table_is_one_sentence(case: str, tmp_path: Path) -> None:
    form, text, kind, sentence = BAD[case]
    path = tmp_path / f"table.{form}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(kind, match=sentence) as refused:
        TableLabels(spec_of(path)).sample(0)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_a_parquet_file_that_ends_in_the_middle_is_refused(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    path = write(tmp_path, "parquet", table)
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(InvalidSample, match="cannot be read to its end"):
        TableLabels(spec_of(path))

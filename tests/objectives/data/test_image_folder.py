"""Image folders as they lie on people's disks: what counts, and what is left out."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.errors import MissingData
from objectives.data.image_folder import list_images, shown


def touch(root: Path, *names: str | bytes) -> Path:
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def found(root: Path) -> list[str]:
    return [shown(path.relative_to(root)) for path in list_images(root).files]


def test_images_are_sorted_by_class_and_name(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/1.JPG", "a/deep/er/3.webp")

    folder = list_images(tmp_path)

    assert folder.classes == ("a", "b")
    assert found(tmp_path) == ["a/deep/er/3.webp", "b/1.JPG", "b/2.png"]
    assert folder.labels == [0, 1, 1]
    assert folder.summary == "3 images in 2 classes"


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints/1-checkpoint.png", "._1.png", ".hidden.jpg", "Thumbs.db"),
        *("__MACOSX/1.png", "notes.txt", "paper.pdf", "clip.mpg", "data.h5", "old.png/readme.txt"),
        *("photo.heic", "1.png.txt", "png"),
    ],
)
def test_what_is_no_image_is_left_out_and_counted(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", f"a/{name}")

    assert found(tmp_path) == ["a/1.png", "b/1.png"]
    assert list_images(tmp_path).left_out.total() == 1
    assert "left out: 1 " in list_images(tmp_path).summary


def test_a_folder_with_the_name_of_an_image_is_looked_into(tmp_path: Path) -> None:
    touch(tmp_path, "a/old.png/1.png", "b/1.png")

    assert found(tmp_path) == ["a/old.png/1.png", "b/1.png"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "1.png")
    root = touch(tmp_path / "root", "a/0.png", "b/0.png")
    (root / "a" / "linked").symlink_to(elsewhere, target_is_directory=True)
    (root / "a" / "loop").symlink_to(root / "a", target_is_directory=True)
    (root / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "c").symlink_to(elsewhere, target_is_directory=True)

    assert found(root) == ["a/0.png", "a/linked/1.png", "b/0.png", "c/1.png"]
    assert list_images(root).left_out == {
        "links to folders that were listed already": 1,
        "broken links": 1,
    }


def test_names_of_any_bytes_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, b"a/\xff\xfe.png", b"b/caf\xe9.png")

    assert found(tmp_path) == ["a/\\xff\\xfe.png", "b/caf\\xe9.png"]


def test_one_name_in_two_spellings_is_refused(tmp_path: Path) -> None:
    composed, parted = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    touch(tmp_path, f"{composed}/1.png", f"{parted}/1.png")

    with pytest.raises(MissingData, match="have the same name, spelled in two ways"):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("a/1.png",), "has 1 class folder, but a task needs at least 2 classes"),
        (("1.png", "2.png"), "has 0 class folders"),
        (("a/1.png", "b/notes.txt"), "the class folder .*b has no images: add some"),
        (("a/1.png", "b/1.heic"), r"it may have \.heic files \(convert them to JPEG or PNG\)"),
    ],
)
def test_a_folder_that_is_no_task_is_one_sentence(
    tmp_path: Path, names: tuple[str, ...], sentence: str
) -> None:
    touch(tmp_path, *names)

    with pytest.raises(MissingData, match=sentence):
        list_images(tmp_path)


@given(name=st.binary(min_size=1, max_size=40).filter(lambda n: b"/" not in n and b"\0" not in n))
def test_a_path_of_any_bytes_is_shown_as_text(name: bytes) -> None:
    assert shown(os.fsdecode(name)).encode()
    assert shown(os.fsdecode(name)).isprintable()


def test_a_name_with_an_escape_code_is_shown_without_it(tmp_path: Path) -> None:
    touch(tmp_path, "\x1b[31mred/notes.txt", "b/1.png")

    with pytest.raises(MissingData, match=r"the class folder .*\\x1b\[31mred has no images"):
        list_images(tmp_path)

"""Pictures and folders of any kind: read as another library reads them, or refused.

A picture has any format, mode, depth, orientation and profile, and may be cut, overwritten or
followed by something. A folder holds pictures under any names, copies, links, and what is no
picture. What is read must be what libvips reads; what is not ends in one sentence, and leaves no
study behind.
"""

import os
import shutil
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from bitfront.errors import BitfrontError, InvalidSample
from bitfront.job import load_job
from bitfront.vlm import DualEncoder
from objectives.data.classification import load_classification
from objectives.data.image_folder import shown
from objectives.data.images import decode_image
from objectives.data.inspection import Inspector
from objectives.data.sources import open_labelled_source
from objectives.data.split_name import SplitName
from objectives.data.splits import split_samples
from service.cli import main
from service.database_url import file_url
from service.study.check import check_job
from storage.store import open_store
from tests.support.model_folders import load_saved, save_model
from tests.support.pictures import Choices, Picture, draw_picture, encoded

RELAXED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],  # explaining takes minutes
)
QUICK = settings(RELAXED, max_examples=40, derandomize=True)
LONG = settings(RELAXED, max_examples=2_000)

ROUNDING = 1
"""What two decoders may differ by, of 255: one cuts where the other rounds."""

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605157884\n"


def check_sentence(told: str) -> None:
    assert told.strip()
    assert told.isprintable(), told
    assert len(told) < 1_500, told


def check_pixels(read: Image.Image, wanted: np.ndarray) -> None:
    pixels = np.asarray(read)
    assert read.mode == "RGB"
    assert pixels.shape == wanted.shape
    assert np.abs(pixels.astype(int) - wanted).max() <= ROUNDING


def try_picture(choices: Choices) -> None:
    """A sound picture is read right; a cut one is read as the whole, or refused."""
    picture = draw_picture(choices)
    damage = choices.draw(st.sampled_from(["none", "cut", "cut", "followed", "pointer"]))
    content = picture.content
    if damage == "cut":
        content = content[: choices.draw(st.integers(0, len(content) - 1))]
    elif damage == "followed":
        content += choices.draw(st.binary(min_size=1, max_size=40))
    elif damage == "pointer":
        content = LFS
    told, read = "", None
    try:
        read = decode_image(content, "here")
    except InvalidSample as error:
        told = str(error)
    event(f"{damage}: {'refused' if read is None else 'read'}")
    if read is None:
        check_sentence(told)
        assert damage != "none" or picture.pixels is None, f"{picture}: {told}"
        return
    assert picture.pixels is not None
    check_pixels(read, picture.pixels)


def try_overwritten(choices: Choices) -> None:
    """Of a picture with other bytes in it nobody can say what is right; it must be an image."""
    content = bytearray(draw_picture(choices).content)
    for _ in range(choices.draw(st.integers(1, 8))):
        content[choices.draw(st.integers(0, len(content) - 1))] = choices.draw(st.integers(0, 255))
    try:
        read = decode_image(bytes(content), "here")
    except InvalidSample as error:
        check_sentence(str(error))
        return
    assert read.mode == "RGB"


@given(choices=st.data())
@QUICK
def test_a_picture_is_read_as_another_library_reads_it(choices: Choices) -> None:
    try_picture(choices)


@given(choices=st.data())
@QUICK
def test_an_overwritten_picture_is_an_image_or_one_sentence(choices: Choices) -> None:
    try_overwritten(choices)


@pytest.mark.slow
@given(choices=st.data())
@LONG
def test_many_pictures_are_read_as_another_library_reads_them(choices: Choices) -> None:
    try_picture(choices)


@pytest.mark.slow
@given(choices=st.data())
@LONG
def test_many_overwritten_pictures_are_images_or_one_sentence(choices: Choices) -> None:
    try_overwritten(choices)


WORDS = ("ant", "bee", "wheaten terrier", "old-barn", "aquarium_fish", "Ölbaum", "猫", "t-shirt")
ODD = (
    "a_b",
    "a b",
    "123",
    "n02123045",
    "...",
    " ",
    "-",
    ".hidden",
    "x" * 200,
    "old.png",
    "\x1b[31m",
)


@dataclass
class Folder:
    """An image folder under construction.

    Attributes:
        root: Where it is.
        outside: A folder beside it.
        pictures: What counts as an image, by its path below the root; None cannot be read.
        is_sound: Whether nothing but the number and state of its pictures speaks against it.
        named: How many names were given.
    """

    root: Path
    outside: Path
    pictures: dict[str, Picture | None] = field(default_factory=dict)
    is_sound: bool = True
    named: int = 0

    def put(self, path: Path, content: bytes, picture: Picture | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.pictures[str(path.relative_to(self.root))] = picture


def file_name(choices: Choices, folder: Folder, suffix: str) -> str:
    """A name that no other one is alike to, of any letters or bytes."""
    letters = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=12)
    odd = st.sampled_from(["", " ", "a b", "'", '"', "\n", "-", "ü", "x" * 150]) | letters
    raw = st.binary(max_size=8).map(lambda name: name.replace(b"/", b"").replace(b"\0", b""))
    middle = choices.draw(odd | raw.map(os.fsdecode))
    suffix = choices.draw(st.sampled_from([suffix, suffix.upper()]))
    folder.named += 1
    return f"f{folder.named}{middle}"[:200] + suffix


def readable(choices: Choices) -> Picture:
    picture = draw_picture(choices)
    while picture.pixels is None:
        picture = draw_picture(choices)
    return picture


def add_picture(choices: Choices, folder: Folder, own: Path) -> None:
    picture = readable(choices)
    depth = choices.draw(st.sampled_from(["", "", "deep", "deep/er", "old.png"]))
    folder.put(own / depth / file_name(choices, folder, picture.suffix), picture.content, picture)


def add_copy(choices: Choices, folder: Folder, own: Path) -> None:
    known = [one for one in folder.pictures.values() if one is not None]
    if not known:
        return
    picture = choices.draw(st.sampled_from(known))
    if choices.draw(st.booleans()):
        folder.put(own / file_name(choices, folder, picture.suffix), picture.content, picture)
        return
    shown_pixels = np.asarray(decode_image(picture.content, "here"))
    stored = encoded(Image.fromarray(shown_pixels), "BMP")
    folder.put(
        own / file_name(choices, folder, ".bmp"),
        stored,
        Picture(stored, ".bmp", shown_pixels, "copy"),
    )


def add_unreadable(choices: Choices, folder: Folder, own: Path) -> None:
    content = choices.draw(st.sampled_from([b"", LFS, b"\x89PNG\r\n\x1a\n", b"%PDF-1.7"]))
    folder.put(own / file_name(choices, folder, ".png"), content, None)


def add_foreign(choices: Choices, folder: Folder, own: Path) -> None:
    name = choices.draw(
        st.sampled_from(
            [
                *(
                    "notes.txt",
                    "paper.pdf",
                    ".DS_Store",
                    "._1.png",
                    "Thumbs.db",
                    "clip.mpg",
                    "1.png~",
                ),
                *(".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/1.png", "png", "data.h5"),
            ]
        )
    )
    path = choices.draw(st.sampled_from([own, folder.root])) / name
    if path.parent == folder.root and not name.startswith((".", "__")):
        path = own / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(readable(choices).content)


def add_link(choices: Choices, folder: Folder, own: Path) -> None:
    place = own / file_name(choices, folder, ".png")
    kind = choices.draw(st.sampled_from(["broken", "loop", "itself", "outside", "pipe"]))
    if kind == "broken":
        place.symlink_to(folder.outside / "nowhere.png")
    elif kind == "itself":
        place.symlink_to(place)
    elif kind == "loop":
        place.with_suffix("").symlink_to(choices.draw(st.sampled_from([own, folder.root])))
        folder.is_sound = False  # a link to the root brings in the other classes' images
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        picture = readable(choices)
        target = folder.outside / f"{len(list(folder.outside.iterdir()))}{picture.suffix}"
        target.write_bytes(picture.content)
        place = place.with_suffix(picture.suffix)
        place.symlink_to(target)
        folder.pictures[str(place.relative_to(folder.root))] = picture


def add_folder(choices: Choices, folder: Folder, own: Path) -> None:
    (own / choices.draw(st.sampled_from(["empty", "empty.png", ".git"]))).mkdir(exist_ok=True)


ENTRIES = (
    *[add_picture] * 6,
    add_copy,
    add_copy,
    add_unreadable,
    add_foreign,
    add_link,
    add_folder,
)


def draw_folder(choices: Choices, place: Path) -> Folder:
    folder = Folder(place / "pictures", place / "outside")
    folder.root.mkdir()
    folder.outside.mkdir()
    names = choices.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True))
    odd = choices.draw(st.one_of(st.just([]), st.just([]), st.sampled_from(ODD).map(lambda n: [n])))
    folder.is_sound = len(names) > 1 and not odd
    for name in (*names, *odd):
        form = choices.draw(st.sampled_from(["NFC", "NFD"]))
        own = folder.root / unicodedata.normalize(form, name)
        own.mkdir()
        for _ in range(choices.draw(st.sampled_from([0, 3, 4, 5, 6, 7, 8]))):
            choices.draw(st.sampled_from(ENTRIES))(choices, folder, own)
    return folder


@cache
def encoder() -> DualEncoder:
    folder = Path(tempfile.mkdtemp(prefix="bitfront-pictures-"))
    save_model(folder, "open_clip")
    model = load_saved(folder, "open_clip")
    assert isinstance(model, DualEncoder)
    shutil.rmtree(folder)
    return model


def distinct(pictures: list[Picture]) -> int:
    """How many pictures show something that no other one shows."""
    return len({decode_image(one.content, "here").tobytes() for one in pictures})


def must_be_taken(folder: Folder, *, each: int, skips: bool) -> bool:
    """Whether nothing speaks against a folder: classes with words for names, and enough images."""
    found = defaultdict(list)
    for name, picture in folder.pictures.items():
        found[name.partition("/")[0]].append(picture)
    seen = [one for one in folder.pictures.values() if one is not None]
    return (
        folder.is_sound
        and len(found) == len(list(folder.root.iterdir())) - hidden(folder.root)
        and (skips or None not in folder.pictures.values())
        and distinct(seen) == len(seen)
        and len(seen) >= 4 * each
    )


def hidden(root: Path) -> int:
    return sum(entry.name.startswith((".", "__")) for entry in root.iterdir())


def try_folder(choices: Choices, store: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = draw_folder(choices, Path(place))
        each, skips = choices.draw(st.integers(1, 2)), choices.draw(st.booleans())
        samples = dict.fromkeys(("calibration", "tuning", "selection", "test"), each)
        job = Path(place) / "job.yaml"
        job.write_text(
            f"study: fuzzed\nmodel: {{source: reference}}\ndata:\n  source: image_folder\n"
            f"  path: pictures\n  skip_unreadable: {str(skips).lower()}\n  samples: {samples}\n"
        )
        spec = load_job(job)
        findings = check_job(spec)
        event("refused" if findings.problems else "read")
        if findings.problems:
            for _, told in findings.problems:
                check_sentence(told)
            assert not must_be_taken(folder, each=each, skips=skips), findings.problems
            check_refusal(job, store)
            return
        source = open_labelled_source(spec.data)
        names = [shown(name) for name in folder.pictures]
        if folder.is_sound:
            assert sorted(map(shown, source.names)) == sorted(names)
        sources = dict.fromkeys(SplitName, source)
        splits = split_samples(sources, spec.data, Inspector()).indices
        must = must_be_taken(folder, each=each, skips=skips)
        told, task = "", None
        try:
            task = load_classification(spec.data, encoder(), Inspector())
        except BitfrontError as error:  # what only the model's tokenizer shows
            told = str(error)
        if task is None:
            event("refused by the model")
            check_sentence(told)
            assert not must, told
            return
        owners: dict[bytes, str] = {}
        for name, indices in splits.items():
            assert len(indices) == each
            pixels = task.splits[name].read(0, each)
            for index, found in zip(indices, pixels, strict=True):
                path = folder.root / source.names[index]
                picture = drawn(folder, path)
                read = decode_image(path.read_bytes(), "here")
                check_pixels(read, picture)
                torch.testing.assert_close(found, encoder().preprocess(read))
                assert owners.setdefault(read.tobytes(), name) is name
                assert source.labels[index] == class_of(folder, source.names[index])


def drawn(folder: Folder, path: Path) -> np.ndarray:
    """The reference pixels of a file, whatever links lead to it."""
    by_content = {one.content: one for one in folder.pictures.values() if one is not None}
    pixels = by_content[path.read_bytes()].pixels
    assert pixels is not None
    return pixels


def class_of(folder: Folder, name: str) -> int:
    classes = [e for e in folder.root.iterdir() if e.is_dir() and not hidden_name(e.name)]
    ordered = sorted(classes, key=lambda e: unicodedata.normalize("NFC", e.name))
    return [entry.name for entry in ordered].index(name.partition("/")[0])


def hidden_name(name: str) -> bool:
    return name.startswith((".", "__"))


def check_refusal(job: Path, store: Path) -> None:
    result = CliRunner().invoke(main, ["submit", str(job), "--db", str(store)])

    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr
    with open_store(file_url(store)) as opened:
        assert list(opened.studies()) == []


@pytest.fixture(scope="module")
def store() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as environment:
        environment.setenv("BITFRONT_CACHE", f"{folder}/cache")
        yield Path(folder) / "fuzzed.db"


@given(choices=st.data())
@QUICK
def test_a_folder_is_read_right_or_refused_without_a_study(choices: Choices, store: Path) -> None:
    try_folder(choices, store)


@pytest.mark.slow
@given(choices=st.data())
@LONG
def test_many_folders_are_read_right_or_refused_without_a_study(
    choices: Choices, store: Path
) -> None:
    try_folder(choices, store)

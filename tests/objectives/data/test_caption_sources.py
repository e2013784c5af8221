"""Captions of a person's own: JSON Lines, COCO's files, and what is wrong with them."""

import json
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from bitfront.errors import BitfrontError, InvalidSample, MissingData
from bitfront.spec import DataSpec, Samples
from bitfront.vlm import DualEncoder
from objectives.data import caption_sources
from objectives.data.caption_sources import ListedCaptions
from objectives.data.inspection import Inspector
from objectives.data.listing import Listing
from objectives.data.preview import preview_data
from objectives.data.retrieval import RetrievalTask, load_retrieval
from objectives.data.split_name import SplitName
from tests.support.llava_models import photo
from tests.support.scene_models import untrained_encoder

FEW = Samples(calibration=3, tuning=2, selection=4, test=3)
COUNT = 12
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def captions_of(number: int) -> list[str]:
    first, second = WORDS[number % 10], WORDS[number // 10]
    texts = (f"a {first} above a {second}", f"this scan shows a {first}", f"a good {second}")
    return list(texts[: 1 + number % 3])


def write_images(root: Path, count: int = COUNT) -> None:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        photo(number).save(root / "images" / f"{number}.png")


def write_lines(root: Path, lines: list[object] | None = None) -> Path:
    write_images(root)
    path = root / "captions.jsonl"
    known: list[object] = [
        {"image": f"images/{number}.png", "captions": captions_of(number)}
        for number in range(COUNT)
    ]
    path.write_text(
        "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines or known)
    )
    return path


def coco() -> dict[str, object]:
    images = [{"id": 100 + n, "file_name": f"{n}.png", "height": 8} for n in range(COUNT)]
    annotations = [
        {"id": number, "image_id": 100 + number, "caption": caption}
        for number in reversed(range(COUNT))
        for caption in captions_of(number)
    ]
    return {"info": {"year": 2014}, "images": images, "annotations": annotations}


def spec_of(path: Path, **changes: object) -> DataSpec:
    content = {"source": "captions", "path": str(path), "samples": FEW, "batch_size": 4}
    return DataSpec.model_validate({**content, **changes})


def found(source: ListedCaptions) -> dict[str, list[str]]:
    return {name: list(source.captions(index)) for index, name in enumerate(source.names)}


def task_of(spec: DataSpec) -> RetrievalTask:
    model = untrained_encoder()
    assert isinstance(model, DualEncoder)
    return load_retrieval(spec, model)


def test_captions_of_one_image_on_several_lines_are_put_together(tmp_path: Path) -> None:
    lines: list[object] = [
        {"image": "a.png", "caption": "one"},
        {"image": "b.png", "captions": ["two", " ", "three "]},
        "",
        {"image": "a.png", "captions": ["four"], "caption": "five", "source": "web"},
    ]

    source = ListedCaptions(spec_of(write_lines(tmp_path, lines)))

    assert found(source) == {"a.png": ["one", "five", "four"], "b.png": ["two", "three"]}
    assert source.count == 5


@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_as_coco_has_it_is_read(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "annotations" / "captions_val2014.json"
    path.parent.mkdir()
    path.write_text(json.dumps(coco(), indent=indent))
    write_images(tmp_path)

    source = ListedCaptions(spec_of(path, images=str(tmp_path / "images")))

    assert found(source) == {f"{n}.png": captions_of(n) for n in range(COUNT)}
    assert source.content(0) == (tmp_path / "images" / source.names[0]).read_bytes()


WRONG: dict[str, tuple[list[object], str]] = {
    "no caption": ([{"image": "a.png"}], r"line 1 of .* is not a caption: the line: .*no caption"),
    "empty captions": ([{"image": "a.png", "captions": [""]}], "it has no caption"),
    "no image": ([{"caption": "one"}], r"line 1 of .* is not a caption: image: Field required"),
    "broken JSON": (
        [{"image": "a.png", "caption": "one"}, '{"image": "a.png"'],
        r'line 2 of .* Invalid JSON.*write \{"image": "cat\.jpg", "captions"',
    ),
}


@pytest.mark.parametrize(("lines", "message"), WRONG.values(), ids=WRONG)
def test_a_line_that_is_no_caption_is_named(
    tmp_path: Path, lines: list[object], message: str
) -> None:
    with pytest.raises(InvalidSample, match=message):
        ListedCaptions(spec_of(write_lines(tmp_path, lines)))


def kind_of(path: Path) -> str:
    """What a file is read as, by the name in its refusal."""
    with pytest.raises(InvalidSample) as refusal:
        ListedCaptions(spec_of(path))
    return "lines" if "is not a caption" in str(refusal.value) else "COCO"


@pytest.mark.parametrize("part", [1, 2, 12, 13, 14, 1 << 16])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{"x": 1}\n', "lines"),
        ('{"x": 1}  \t \n{', "lines"),
        ('{"x": 1}' + " " * 40, "lines"),
        ('{"annot ations": 1}\n', "lines"),
        ('{"annotations": 1}\n', "COCO"),
        ('{"info": "' + "x" * 30 + '", "annotations": 1}', "COCO"),
        ('{\n"x": 1}', "COCO"),
        ('{"x": [1', "COCO"),
        ('\n{"x": 1}', "COCO"),
    ],
)
def test_a_file_is_known_by_its_first_line_in_parts_of_any_length(
    tmp_path: Path, content: str, kind: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content)
    monkeypatch.setattr(caption_sources, "_PART", part)

    assert kind_of(path) == kind


def test_a_line_that_is_the_whole_file_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    images = [{"id": n, "file_name": f"{n}.jpg", "coco_url": "x" * 200} for n in range(20_000)]
    path.write_text(json.dumps({"images": images, "annotations": []}))
    assert path.stat().st_size > 4 << 20

    tracemalloc.start()
    is_coco = caption_sources._is_coco(Listing(spec_of(path), "caption"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert is_coco
    assert most < 1 << 20


def test_a_coco_file_with_a_caption_of_no_image_is_refused(tmp_path: Path) -> None:
    content = coco()
    content["annotations"] = [{"image_id": 7, "caption": "one"}]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))

    with pytest.raises(InvalidSample, match="a caption of the image 7, which is not among"):
        ListedCaptions(spec_of(path))


@pytest.mark.parametrize("content", ['{"annotations": 5}', "{\n", "[1, 2"])
def test_a_file_of_another_kind_is_refused_with_what_is_read(tmp_path: Path, content: str) -> None:
    path = tmp_path / "coco.json"
    path.write_text(content)

    with pytest.raises(InvalidSample, match=r"no captions as COCO has them: .*JSON Lines such as"):
        ListedCaptions(spec_of(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere.jsonl"}, "the file 'nowhere.jsonl' does not exist: set data.path"),
        ({"images": "nowhere"}, "the folder 'nowhere' does not exist: set data.images"),
    ],
)
def test_a_file_or_folder_that_is_not_there_is_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    spec = spec_of(write_lines(tmp_path)).model_copy(update=changes)

    with pytest.raises(MissingData, match=message):
        ListedCaptions(spec)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd"])
def test_an_image_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    lines: list[object] = [{"image": name, "caption": "one"}]
    source = ListedCaptions(spec_of(write_lines(tmp_path, lines)))

    with pytest.raises(InvalidSample, match="has an image outside of"):
        source.sample(0)


def test_no_image_is_in_two_splits_and_each_keeps_its_captions(tmp_path: Path) -> None:
    task = task_of(spec_of(write_lines(tmp_path)))

    known = [tuple(own) for name in SplitName for own in task.split(name).captions]
    assert sorted(known) == sorted(tuple(captions_of(number)) for number in range(COUNT))
    for name in SplitName:
        split = task.split(name)
        assert len(split) == getattr(FEW, name.value)
        assert split.owners.tolist() == [
            place for place, own in enumerate(split.captions) for _ in own
        ]
        assert len(split.tokens) == len(split.owners)


def test_copies_of_an_image_are_not_in_two_splits(tmp_path: Path) -> None:
    path = write_lines(tmp_path)
    first = (tmp_path / "images" / "0.png").read_bytes()
    for number in range(COUNT):
        (tmp_path / "images" / f"{number}.png").write_bytes(first)

    with pytest.raises(MissingData, match="copies of images in another split"):
        task_of(spec_of(path))


BROKEN = {
    "empty": (b"", "is empty"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "truncated": (None, "cannot be read"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_an_unreadable_image_is_named_or_left_out(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = write_lines(tmp_path)
    image = tmp_path / "images" / "3.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2] if content is None else content)

    with pytest.raises(InvalidSample, match=message):
        task_of(spec_of(path))
    fewer = FEW.model_copy(update={"test": 2})
    task = task_of(spec_of(path, skip_unreadable=True, samples=fewer))
    assert len(task.split(SplitName.TEST)) == 2


def test_a_picture_that_lies_on_its_side_is_seen_upright(tmp_path: Path) -> None:
    path = write_lines(tmp_path)
    upright = task_of(spec_of(path))
    for number in range(COUNT):
        picture = Image.open(tmp_path / "images" / f"{number}.png").convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = picture.transpose(Image.Transpose.ROTATE_90)
        turned.save(tmp_path / "images" / f"{number}.png", exif=exif)

    again = task_of(spec_of(path))

    pixels = [task.split(SplitName.TEST).read(0, 3) for task in (upright, again)]
    assert pixels[0].equal(pixels[1])


def test_the_identity_follows_captions_images_and_how_they_are_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path)
    first = task_of(spec_of(path)).identity

    assert task_of(spec_of(path)).identity == first
    assert task_of(spec_of(path, background="black")).identity != first
    lines = path.read_text()
    path.write_text(lines.replace("a zero above a zero", "a zero above a one"))
    assert task_of(spec_of(path)).identity != first
    path.write_text(lines)
    photo(99).save(tmp_path / "images" / "3.png")
    assert task_of(spec_of(path)).identity != first


def test_a_tokenizer_that_tells_no_captions_apart_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = untrained_encoder()
    monkeypatch.setattr(
        model, "tokenize", lambda texts: untrained_encoder().tokenize(["a"] * len(texts))
    )

    with pytest.raises(BitfrontError, match="have the same tokens, and so have all of the split"):
        load_retrieval(spec_of(write_lines(tmp_path)), model)


def test_a_preview_counts_images_and_captions(tmp_path: Path) -> None:
    preview = preview_data(spec_of(write_lines(tmp_path)), Inspector())

    count = sum(len(captions_of(number)) for number in range(COUNT))
    assert preview.notes == (
        f"caption file {tmp_path / 'captions.jsonl'}: {COUNT} images with {count} captions",
    )


def test_a_preview_says_where_bundled_captions_are_fewer() -> None:
    asked = {"source": "reference", "task": "retrieval"}

    (note,) = preview_data(DataSpec.model_validate(asked), None).notes
    fewer = dict.fromkeys(Samples.model_fields, 200)

    assert "200 images a split at most" in note
    assert preview_data(DataSpec.model_validate({**asked, "samples": fewer}), None).notes == ()

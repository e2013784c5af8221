"""Webdataset shards, against tarfile's own reading of what open_clip and CLIP_benchmark write."""

import io
import json
import random
import tarfile
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from bitfront.errors import BitfrontError, InvalidSample, MissingData
from bitfront.job import load_job
from bitfront.spec import DataSpec
from objectives.data.inspection import Inspector
from objectives.data.preview import preview_data
from objectives.data.shards import ShardCaptions, ShardLabels, list_shards
from objectives.data.split_name import SplitName
from objectives.data.splits import split_samples

SAMPLES = {"calibration": 2, "tuning": 2, "selection": 4, "test": 4}


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = random.Random(seed).randbytes(3 * 16)
    Image.frombytes("RGB", (4, 4), pixels).save(file, "PNG")
    return file.getvalue()


def shard(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def sample(number: int, **members: str) -> dict[str, bytes]:
    texts = {f"s{number:04d}.{suffix}": text.encode() for suffix, text in members.items()}
    return {f"s{number:04d}.png": picture(number), **texts}


def write(root: Path, shards: list[dict[str, bytes]]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number, members in enumerate(shards):
        (root / f"{number}.tar").write_bytes(shard(members))
    return root


def spec_of(path: Path | str, **settings: object) -> DataSpec:
    known = {"source": "webdataset", "path": str(path), "samples": SAMPLES}
    return DataSpec.model_validate({**known, **settings})


def labelled(root: Path, count: int = 12) -> Path:
    """As CLIP_benchmark has it: `test/0.tar`, classes by number, names above."""
    samples = [sample(number, cls=str(number % 3)) for number in range(count)]
    halves = samples[: count // 2], samples[count // 2 :]
    merged = [{name: x for own in half for name, x in own.items()} for half in halves]
    folder = write(root / "test", merged)
    (folder / "nshards.txt").write_text("2")
    (root / "classnames.txt").write_text("cat\ndog\nt-shirt\n")
    return folder


def test_labels_names_and_images_are_those_of_the_shards(tmp_path: Path) -> None:
    source = ShardLabels(spec_of(labelled(tmp_path)))

    assert source.classes == ("cat", "dog", "t-shirt")
    assert list(source.labels) == [number % 3 for number in range(12)]
    assert source.names[7] == "1.tar/s0007"
    for index in range(12):
        with tarfile.open(tmp_path / "test" / f"{index // 6}.tar") as tar:
            member = tar.extractfile(f"s{index:04d}.png")
            assert member is not None
            assert source.content(index) == member.read()
    assert source.summary == "12 samples in 2 shards, of 3 classes"


def test_given_classes_replace_those_beside_the_shards(tmp_path: Path) -> None:
    folder = labelled(tmp_path)

    assert ShardLabels(spec_of(folder, classes=["a", "b", "c"])).classes == ("a", "b", "c")
    with pytest.raises(InvalidSample, match=r"a label of .* is 2, but there are 2 classes"):
        ShardLabels(spec_of(folder, classes=["a", "b"]))


def test_classes_may_be_named_in_the_samples(tmp_path: Path) -> None:
    write(tmp_path, [{**sample(0, cls="wolf"), **sample(1, cls="bear"), **sample(2, cls="wolf")}])

    source = ShardLabels(spec_of(tmp_path))

    assert source.classes == ("bear", "wolf")
    assert list(source.labels) == [1, 0, 1]


def test_captions_are_lines_of_a_text_or_in_json(tmp_path: Path) -> None:
    other = sample(2, json=json.dumps({"captions": ["d", "e"], "width": 4}))
    members = {**sample(0, txt="a\nb\n"), **sample(1, json='{"caption": "c"}'), **other}
    write(tmp_path, [members])

    source = ShardCaptions(spec_of(tmp_path))

    assert [source.captions(index) for index in range(3)] == [("a", "b"), ("c",), ("d", "e")]
    assert source.count == 5


def test_shards_are_named_by_folder_file_pattern_and_address(tmp_path: Path) -> None:
    folder = labelled(tmp_path)
    memory = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        memory.pipe_file(f"/shards/{path.name}", path.read_bytes())
    memory.pipe_file("/shards/classnames.txt", (tmp_path / "classnames.txt").read_bytes())

    try:
        by_folder = ShardLabels(spec_of(folder))
        remote = ShardLabels(spec_of("memory://shards"))
        assert list_shards(str(folder / "{0..1}.tar")) == list_shards(str(folder))
        assert list_shards("s3://b/{008..010}.tar") == [
            f"s3://b/0{n}.tar" for n in ("08", "09", "10")
        ]
        assert len(ShardLabels(spec_of(folder / "1.tar")).names) == 6
        assert remote.names == by_folder.names
        assert remote.classes == by_folder.classes
        assert [remote.content(n) for n in range(12)] == [by_folder.content(n) for n in range(12)]
    finally:
        memory.rm("/shards", recursive=True)


def test_splits_are_drawn_from_shards_and_remembered_part_by_part(tmp_path: Path) -> None:
    folder = labelled(tmp_path)
    spec = spec_of(folder)
    source = ShardLabels(spec)
    inspector = Inspector(tmp_path / "memory.db", workers=1)

    found = split_samples(dict.fromkeys(SplitName, source), spec, inspector)

    taken = [index for indices in found.indices.values() for index in indices]
    assert sorted(taken) == list(range(12))
    keys = {source.content(index) for index in taken}
    assert len(keys) == 12
    again = split_samples(dict.fromkeys(SplitName, source), spec, inspector)
    assert again.indices == found.indices


def test_a_copy_of_an_image_in_another_shard_comes_into_one_split_only(tmp_path: Path) -> None:
    copies = {f"copy{number}.png": picture(number % 13) for number in range(26)}
    classes = {f"copy{number}.cls": b"01"[number % 2 : number % 2 + 1] for number in range(26)}
    members = {name: {**copies, **classes}[name] for name in sorted({**copies, **classes})}
    spec = spec_of(write(tmp_path, [members]), classes=["a", "b"])
    source = ShardLabels(spec)

    found = split_samples(dict.fromkeys(SplitName, source), spec, Inspector(workers=1)).indices

    contents = [{source.content(index) for index in indices} for indices in found.values()]
    assert sum(map(len, contents)) == len(set().union(*contents))


def cut(content: bytes, place: int) -> bytes:
    return content[:place]


WHOLE = shard({**sample(0, cls="0"), **sample(1, cls="1"), **sample(2, cls="0")})


@pytest.mark.parametrize("place", [*range(0, len(WHOLE) - 10240, 97), 512, 1024, 4096])
def test_a_shard_that_ends_in_the_middle_is_refused_in_a_sentence(
    place: int, tmp_path: Path
) -> None:
    end = WHOLE.rstrip(b"\0").rfind(b"0")
    (tmp_path / "0.tar").write_bytes(WHOLE[: min(place, end)])

    with pytest.raises(InvalidSample, match=r"0\.tar") as refused:
        ShardLabels(spec_of(tmp_path, classes=["a", "b"]))
    assert "\n" not in str(refused.value)


def test_a_shard_that_grew_shorter_since_is_refused_when_it_is_read(tmp_path: Path) -> None:
    source = ShardLabels(spec_of(labelled(tmp_path)))
    (tmp_path / "test" / "1.tar").write_bytes(b"")

    with pytest.raises(InvalidSample, match="ends in the middle of a sample"):
        source.content(11)


BAD: dict[str, tuple[dict[str, bytes], type, str]] = {
    "no image": ({"a.cls": b"0"}, ShardLabels, "has no image: add one, such as a.jpg"),
    "no class": (sample(0, txt="a cat"), ShardLabels, "has no class: add a member .cls"),
    "no caption": (sample(0, cls="0"), ShardCaptions, "has no caption: add a member .txt"),
    "json that is none": (sample(0, json="{"), ShardCaptions, "its .json is none"),
    "text that is none": (
        {"a.png": picture(0), "a.txt": b"\xff\xfe\x00"},
        ShardCaptions,
        "is not UTF-8 text",
    ),
    "nothing": ({}, ShardLabels, "have no samples"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_sample_is_one_sentence_with_its_place(
    case: str, tmp_path: Path
) -> None:
    members, kind, sentence = BAD[case]
    write(tmp_path, [members])

    with pytest.raises(BitfrontError, match=sentence) as refused:
        kind(spec_of(tmp_path, classes=["a", "b"]))
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_an_image_that_does_not_decode_is_named_with_key_and_shard(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number in range(12):
        members |= sample(number, cls=str(number % 2))
    members["s0003.png"] = b"no picture"
    spec = spec_of(write(tmp_path, [members]), classes=["a", "b"])
    source = ShardLabels(spec)

    with pytest.raises(InvalidSample, match=r"the sample 's0003' of .*0\.tar cannot be read"):
        split_samples(dict.fromkeys(SplitName, source), spec, Inspector(workers=1))


def test_what_is_not_there_is_said_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"has no shards: set data\.path to a folder with"):
        list_shards(str(tmp_path))
    with pytest.raises(MissingData, match=r"the shard .*9\.tar does not exist"):
        ShardLabels(spec_of(tmp_path / "9.tar"))
    with pytest.raises(MissingData, match="cannot be opened: Protocol not known"):
        ShardLabels(spec_of("nowhere://x"))


def test_a_job_names_shards_from_its_own_folder_and_a_preview_counts_them(tmp_path: Path) -> None:
    labelled(tmp_path)
    job = tmp_path / "job.yaml"
    data = "{source: webdataset, path: 'test/{0..1}.tar', samples: {test: 4}}"
    job.write_text(f"study: s\nmodel: {{source: reference}}\ndata: {data}\n")

    spec = load_job(job)

    assert spec.data.path == str(tmp_path / "test" / "{0..1}.tar")
    notes = preview_data(spec.data, None).notes
    assert notes[0] == "12 samples in 2 shards, of 3 classes"


def test_more_shards_than_a_data_set_has_are_a_mistake() -> None:
    with pytest.raises(MissingData, match=r"names 10,000,000,000 shards"):
        list_shards("train/{0..99999}/{0..99999}.tar")

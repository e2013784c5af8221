"""Shards as the package webdataset reads them, which open_clip and CLIP_benchmark use."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
import webdataset
from PIL import Image
from webdataset.autodecode import imagehandler
from webdataset.tariterators import group_by_keys, tar_file_expander

from bitfront.spec import DataSpec
from objectives.data.images import decode_image
from objectives.data.inspection import Inspector
from objectives.data.shards import ShardCaptions, ShardLabels
from objectives.data.split_name import SplitName
from objectives.data.splits import split_samples
from tests.support.buckets import served_bucket

COUNT, EACH = 24, 10
CLASSES = ["cat", "dog", "t-shirt"]


def encoded(number: int, form: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards that the package itself wrote; some names need more than a plain header."""
    root = tmp_path_factory.mktemp("shards")
    with webdataset.ShardWriter(str(root / "%03d.tar"), maxcount=EACH, verbose=0) as writer:
        for number in range(COUNT):
            suffix, form = (("png", "PNG"), ("jpg", "JPEG"))[number % 2]
            key = f"{'long name ' * 12 if number % 7 == 3 else 'part'}/{number:06d}"
            writer.write(
                {
                    "__key__": key,
                    suffix: encoded(number, form),
                    "cls": str(number % 3).encode(),
                    "txt": f"picture {number}\nthe same, ä\n".encode(),
                    "json": json.dumps({"caption": f"picture {number}"}).encode(),
                }
            )
    return root


def read_by_package(folder: Path) -> Iterator[dict[str, Any]]:
    """The samples of all shards as the package's own stages give them, from files of ours.

    Those that it opens itself it closes when they are collected, of which pytest complains.
    """
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:
            source = {"url": str(path), "stream": stream}
            yield from group_by_keys(tar_file_expander([source]))


def spec_of(path: object, **settings: object) -> DataSpec:
    return DataSpec.model_validate(
        {"source": "webdataset", "path": str(path), "classes": CLASSES, **settings}
    )


def test_samples_are_those_of_the_package_in_its_order(folder: Path) -> None:
    pattern = str(folder / "{000..002}.tar")
    theirs = list(read_by_package(folder))
    labels, captions = ShardLabels(spec_of(pattern)), ShardCaptions(spec_of(pattern))

    assert len(labels.names) == len(theirs) == COUNT
    for index, sample in enumerate(theirs):
        assert labels.names[index] == f"{Path(sample['__url__']).name}/{sample['__key__']}"
        assert labels.content(index) == sample.get("png", sample.get("jpg"))
        assert labels.labels[index] == int(sample["cls"])
        assert list(captions.captions(index)) == sample["txt"].decode().splitlines()


def test_pixels_are_those_that_the_package_decodes(folder: Path) -> None:
    decode = imagehandler("pilrgb")
    source = ShardLabels(spec_of(folder))

    for index, sample in enumerate(read_by_package(folder)):
        suffix = "png" if "png" in sample else "jpg"
        own = decode_image(source.content(index), source.where(index))
        assert np.array_equal(np.asarray(own), np.asarray(decode(suffix, sample[suffix])))


def test_shards_in_a_bucket_give_the_same_splits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = {name.value: 4 for name in SplitName}
    local = ShardLabels(spec_of(folder))
    with served_bucket("pictures", monkeypatch):
        files = s3fs.S3FileSystem()
        for path in sorted(folder.glob("*.tar")):
            files.pipe_file(f"pictures/train/{path.name}", path.read_bytes())
        spec = spec_of("s3://pictures/train", samples=samples)
        remote = ShardLabels(spec)
        found = split_samples(dict.fromkeys(SplitName, remote), spec, Inspector(workers=1))

        assert remote.names == local.names
        assert remote.labels == local.labels
        assert remote.content(17) == local.content(17)
    known = split_samples(
        dict.fromkeys(SplitName, local), spec_of(folder, samples=samples), Inspector(workers=1)
    )
    assert found.indices == known.indices

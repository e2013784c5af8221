"""The same pictures give the same task from a folder, a table, shards and a dataset."""

import csv
import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from bitfront.spec import DataSpec
from objectives.data.classification import load_classification
from objectives.data.retrieval import load_retrieval
from objectives.data.split_name import SplitName
from tests.support.scene_models import untrained_encoder

CLASSES = ("a three", "an eight")
COUNT = 16
SAMPLES = {"calibration": 3, "tuning": 3, "selection": 4, "test": 6}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All forms of the same pictures, each with a class and a caption."""
    root = tmp_path_factory.mktemp("same")
    draw = np.random.default_rng(0)
    rows, cells = [], []
    with tarfile.open(root / "0.tar", "w") as tar:
        for number in range(COUNT):
            name, label = f"{number}.png", number % 2
            picture = Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8))
            file = io.BytesIO()
            picture.save(file, "PNG")
            folder = root / "folder" / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(file.getvalue())
            caption = f"{CLASSES[label]} above {CLASSES[1 - label]}"
            rows.append((f"{CLASSES[label]}/{name}", CLASSES[label], caption))
            cells.append(({"bytes": file.getvalue(), "path": None}, label))
            members = {"png": file.getvalue(), "cls": b"%d" % label, "txt": caption.encode()}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    with (root / "folder" / "table.csv").open("w", newline="") as file_of_rows:
        csv.writer(file_of_rows).writerows([("image", "label", "caption"), *rows])
    lines = [json.dumps({"image": image, "caption": caption}) for image, _, caption in rows]
    (root / "folder" / "captions.jsonl").write_text("\n".join(lines))
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    columns = {"image": [cell for cell, _ in cells], "label": [label for _, label in cells]}
    saved = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    saved.save_to_disk(str(root / "dataset"))
    return root


PATHS = {
    "image_folder": "folder",
    "table": "folder/table.csv",
    "webdataset": "0.tar",
    "datasets": "dataset",
    "captions": "folder/captions.jsonl",
}


def spec_of(root: Path, source: str, **settings: object) -> DataSpec:
    known = {"source": source, "path": str(root / PATHS[source]), "samples": SAMPLES}
    return DataSpec.model_validate({**known, **settings})


def test_classes_and_pixels_are_the_same_from_every_source(root: Path) -> None:
    found = {}
    for source in ("image_folder", "table", "webdataset", "datasets"):
        task = load_classification(spec_of(root, source, templates=["{}"]), untrained_encoder())
        assert task.classes == CLASSES
        samples = set()
        for name in SplitName:
            split = task.split(name)
            pixels = split.read(0, len(split))
            samples |= {
                (image.numpy().tobytes(), int(label))
                for image, label in zip(pixels, split.labels, strict=True)
            }
        found[source] = samples

    assert len(found["image_folder"]) == COUNT
    assert all(samples == found["image_folder"] for samples in found.values())


def test_captions_and_pixels_are_the_same_from_every_source(root: Path) -> None:
    found = {}
    for source in ("captions", "table", "webdataset"):
        task = load_retrieval(spec_of(root, source, task="retrieval"), untrained_encoder())
        samples = set()
        for name in SplitName:
            split = task.split(name)
            pixels = split.read(0, len(split))
            samples |= {
                (image.numpy().tobytes(), tuple(own))
                for image, own in zip(pixels, split.captions, strict=True)
            }
        found[source] = samples

    assert len(found["captions"]) == COUNT
    assert all(samples == found["captions"] for samples in found.values())

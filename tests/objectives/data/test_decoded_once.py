"""A worker decodes each image once, from looking at the samples to the last trial."""

import errno
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from bitfront.spec import DataSpec
from bitfront.vlm import GenerativeModel, LayeredModel
from objectives.data import byte_file, decoded, images, pixels, questions
from objectives.data.byte_file import ByteFile
from objectives.data.choices import ChoiceTask
from objectives.data.inspection import Inspector
from objectives.data.kept import Kept
from objectives.data.sample import Sample
from objectives.data.split_name import SplitName
from objectives.evaluation.families.registry import load_family
from tests.support.llava_models import Build, load_llava, save_llava
from tests.support.scene_models import untrained_encoder

SAMPLES = {"calibration": 3, "tuning": 2, "selection": 4, "test": 4}
COUNT = sum(SAMPLES.values())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as files and as rows, with captions and questions about them."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    captions, asked, cells = [], [], []
    for number in range(COUNT):
        path = root / ("three", "eight")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
        name = str(path.relative_to(root))
        captions.append(json.dumps({"image": name, "caption": ("a three", "an eight")[number % 2]}))
        choice = {"options": ["yes", "no"], "answer": number % 2}
        answers = {"answers": [("yes", "no")[number % 2]]}
        asked.append(
            json.dumps({"image": name, "question": "is there a three ?", **choice, **answers})
        )
        cells.append({"bytes": path.read_bytes(), "path": None})
    (root / "captions.jsonl").write_text("\n".join(captions))
    (root / "questions.jsonl").write_text("\n".join(asked))
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["three", "eight"])}
    columns = {"image": cells, "label": [number % 2 for number in range(COUNT)]}
    saved = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    saved.save_to_disk(str(root / "dataset"))
    return root


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image is decoded."""
    counts: Counter[str] = Counter()
    real = images.decode_image

    def counted(content: bytes, where: str, background: str = "white") -> Image.Image:
        counts[hashlib.sha256(content).hexdigest()] += 1
        return real(content, where, background)

    monkeypatch.setattr(decoded, "decode_image", counted)
    return counts


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> GenerativeModel:
    path = tmp_path_factory.mktemp("llava")
    save_llava(path, Build(is_tied=True))
    return load_llava(path)


def spec_of(root: Path, source: str, path: str, **settings: object) -> DataSpec:
    known = {"source": source, "path": str(root / path), "samples": SAMPLES, "batch_size": 2}
    return DataSpec.model_validate({**known, **settings})


def use(spec: DataSpec, model: LayeredModel) -> list[torch.Tensor]:
    """Looks at the samples and runs every split twice, as calibration, cells and trials do.

    Gives what came out, the same for both times.
    """
    task = load_family(spec, model, Inspector(workers=1)).task
    found: list[torch.Tensor] = []
    for name in SplitName:
        streams = list(task.streams(name))
        if isinstance(task, ChoiceTask):
            streams.append(task.option_stream(name))
        with torch.no_grad():
            first, second = (
                [stream.run(batch) for stream in streams for batch in range(len(stream.sizes))]
                for _ in range(2)
            )
        assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
        found += first
    return found


CASES: dict[str, tuple[str, str, dict[str, object]]] = {
    "classes of rows": ("datasets", "dataset", {}),
    "retrieval": ("captions", "captions.jsonl", {}),
    "answers": ("questions", "questions.jsonl", {"answer_tokens": 4}),
    "choice": ("questions", "questions.jsonl", {"task": "choice"}),
    "pictures alone": ("images", ".", {"answer_tokens": 4}),
}


@pytest.mark.parametrize("held_nbytes", [512 << 20, 20_000, 0])
@pytest.mark.parametrize("case", CASES)
def test_each_image_is_decoded_once_whatever_memory_has_room_for(
    case: str,
    held_nbytes: int,
    root: Path,
    llava: GenerativeModel,
    counts: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, path, settings = CASES[case]
    spec = spec_of(root, source, path, **settings)
    is_dual = source in ("datasets", "captions")
    model = untrained_encoder() if is_dual else llava
    expected = use(spec, model)
    counts.clear()
    monkeypatch.setattr(pixels, "HELD_NBYTES", held_nbytes)
    monkeypatch.setattr(questions, "HELD_NBYTES", held_nbytes)

    found = use(spec, model)

    assert set(counts.values()) == {1}
    assert len(counts) == COUNT
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_without_room_images_are_decoded_again_and_give_the_same(
    root: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(root, "captions", "captions.jsonl")
    expected = use(spec, untrained_encoder())
    counts.clear()
    monkeypatch.setattr(pixels, "HELD_NBYTES", 0)
    monkeypatch.setattr(byte_file, "FILE_NBYTES", 0)
    monkeypatch.setattr(ByteFile.__init__, "__defaults__", (None, 0))

    found = use(spec, untrained_encoder())

    assert set(counts.values()) == {3}  # by the inspection, and at each use
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16, torch.int64])
def test_what_memory_has_no_room_for_comes_back_from_the_file(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    store = Kept(ByteFile(tmp_path, limit_nbytes=3 * 24 * dtype.itemsize), 24 * dtype.itemsize)
    tensors = [torch.arange(n, n + 24).reshape(2, 3, 4).to(dtype) for n in range(5)]

    for number, tensor in enumerate(tensors):
        store.put(number, tensor)

    for number in range(4):
        found = store.get(number)
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, tensors[number])
    assert store.get(4) is None
    assert store.get("another") is None
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_a_disk_that_is_full_keeps_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Kept(ByteFile(), 0)
    store.put("before", torch.ones(3))
    monkeypatch.setattr(os, "pwrite", full)

    store.put("after", torch.ones(3))

    assert store.get("after") is None
    before = store.get("before")
    assert before is not None
    assert torch.equal(before, torch.ones(3))


def test_rows_are_remembered_by_their_content(root: Path, tmp_path: Path) -> None:
    content = next(root.rglob("*.png")).read_bytes()
    sample = Sample(content, "row 0")
    inspector = Inspector(tmp_path / "inspected.db", workers=1)
    (first,) = inspector.inspect([sample])

    class Never:
        def open(self, *_: object) -> Image.Image:
            raise AssertionError("it was decoded again")

    again = Inspector(tmp_path / "inspected.db", workers=1)
    again.images = Never()  # type: ignore[assignment]

    assert again.inspect([sample]) == [first]

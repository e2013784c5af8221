import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from bitfront.errors import BitfrontError, InvalidModel, InvalidSample, MissingData, SpecError
from bitfront.reference.scenes import CLASSES, TEMPLATES, split_scans
from bitfront.spec import DataSource, DataSpec, Samples, SplitPaths
from bitfront.vlm import DualEncoder, load_model
from objectives.data.classification import load_classification
from objectives.data.inspection import Inspector
from objectives.data.preview import preview_data
from objectives.data.split_name import SplitName
from tests.support.clip_models import folder_spec as saved_spec
from tests.support.clip_models import save_transformers
from tests.support.scene_models import all_pixels, untrained_encoder

FEW = Samples(calibration=4, tuning=3, selection=5, test=6)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return untrained_encoder()


def write_folder(root: Path, counts: dict[str, int]) -> Path:
    """Images that all differ, `counts` of them in each class folder."""
    shade = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            shade += 1
            Image.new("RGB", (20, 30), (shade, 2 * shade, 10)).save(root / name / f"{index}.png")
    return root


def folder_spec(root: Path, *, samples: Samples = FEW, seed: int = 0) -> DataSpec:
    return DataSpec(
        source=DataSource.IMAGE_FOLDER,
        path=str(root),
        samples=samples,
        seed=seed,
        templates=("a {}", "a picture of a {}"),
        batch_size=4,
    )


def test_reference_splits_have_the_wanted_samples_and_share_no_scan(model: DualEncoder) -> None:
    task = load_classification(DataSpec(source=DataSource.REFERENCE, samples=FEW), model)

    assert task.classes == CLASSES
    assert task.templates == TEMPLATES
    assert [len(task.split(name)) for name in SplitName] == [4, 3, 5, 6]
    assert task.tokens.shape == (len(TEMPLATES), len(CLASSES), model.context_length)
    scans = [set(split_scans(name.value).tolist()) for name in SplitName]
    assert len(set.union(*scans)) == sum(map(len, scans))


def test_reference_takes_the_templates_that_a_job_names(model: DualEncoder) -> None:
    spec = DataSpec(source=DataSource.REFERENCE, samples=FEW, templates=("this is {}",))

    task = load_classification(spec, model)

    assert task.templates == ("this is {}",)
    assert torch.equal(task.captions[:1], model.tokenize([f"this is {CLASSES[0]}"]))


def test_classes_with_the_same_tokens_are_named(tmp_path: Path) -> None:
    save_transformers("clip", tmp_path / "model")
    of_ten_words = load_model(saved_spec(tmp_path / "model"))
    assert isinstance(of_ten_words, DualEncoder)
    spec = folder_spec(write_folder(tmp_path / "data", {"dogs": 10, "hyena": 10, "zebra": 10}))

    with pytest.raises(InvalidModel, match="'hyena' and 'zebra' have the same tokens"):
        load_classification(spec, of_ten_words)


def test_captions_go_template_by_template(tmp_path: Path, model: DualEncoder) -> None:
    spec = folder_spec(write_folder(tmp_path, {"seven": 10, "three": 10}))

    task = load_classification(spec, model)

    texts = ["a seven", "a three", "a picture of a seven", "a picture of a three"]
    assert torch.equal(task.captions, model.tokenize(texts))
    stream = task.caption_stream()
    assert (stream.sizes, stream.key) == ((4,), "captions")


def test_folder_splits_are_disjoint_and_depend_on_the_seed(
    tmp_path: Path, model: DualEncoder
) -> None:
    root = write_folder(tmp_path, {"seven": 10, "three": 8})

    one, again, other = (
        load_classification(folder_spec(root, seed=seed), model) for seed in (0, 0, 1)
    )

    images = torch.cat([all_pixels(one, name) for name in SplitName]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 18
    assert one.identity == again.identity
    assert torch.equal(all_pixels(one, SplitName.TEST), all_pixels(again, SplitName.TEST))
    assert one.identity != other.identity


def test_a_folder_image_comes_as_the_model_takes_it_with_its_label(
    tmp_path: Path, model: DualEncoder
) -> None:
    root = write_folder(tmp_path, {"seven": 9, "three_above": 9})

    task = load_classification(folder_spec(root), model)

    assert task.classes == ("seven", "three above")
    files = {
        model.preprocess(Image.open(file)).numpy().tobytes(): label
        for label, name in enumerate(("seven", "three_above"))
        for file in (root / name).iterdir()
    }
    for name in SplitName:
        expected = [files[image.numpy().tobytes()] for image in all_pixels(task, name)]
        assert task.split(name).labels.tolist() == expected


def test_adding_an_image_leaves_the_order_of_the_others(tmp_path: Path, model: DualEncoder) -> None:
    root = write_folder(tmp_path, {"seven": 9, "three": 9})
    before = all_pixels(load_classification(folder_spec(root), model), SplitName.CALIBRATION)
    Image.new("RGB", (20, 30), (200, 0, 0)).save(root / "three" / "new.png")

    after = all_pixels(load_classification(folder_spec(root), model), SplitName.CALIBRATION)

    assert sum(any(torch.equal(image, old) for old in before) for image in after) >= 3


def test_identity_follows_content_not_place(tmp_path: Path, model: DualEncoder) -> None:
    here, there = (write_folder(tmp_path / name, {"a": 9, "of": 9}) for name in ("here", "there"))
    first, second = (
        load_classification(folder_spec(root), model).split(SplitName.TEST).identity
        for root in (here, there)
    )
    for number, file in enumerate(there.rglob("*.png")):
        Image.new("RGB", (20, 30), (1, 2, number)).save(file)

    changed = load_classification(folder_spec(there), model)

    assert first == second
    assert changed.split(SplitName.TEST).identity != first


def test_identity_follows_the_captions(tmp_path: Path, model: DualEncoder) -> None:
    root = write_folder(tmp_path, {"seven": 9, "three": 9})
    spec = folder_spec(root)

    one = load_classification(spec, model)
    other = load_classification(spec.model_copy(update={"templates": ("the {}",)}), model)

    assert one.split(SplitName.TEST).identity != other.split(SplitName.TEST).identity


def test_the_last_batch_is_short(tmp_path: Path, model: DualEncoder) -> None:
    task = load_classification(folder_spec(write_folder(tmp_path, {"seven": 9, "three": 9})), model)

    assert task.images(SplitName.TEST).sizes == (4, 2)


def test_an_unreadable_image_is_named(tmp_path: Path, model: DualEncoder) -> None:
    root = write_folder(tmp_path, {"seven": 1, "three": 17})
    (root / "seven" / "0.png").write_bytes(b"no image")

    with pytest.raises(InvalidSample, match=r"seven/0\.png"):
        load_classification(folder_spec(root), model)


def saved_dataset(root: Path, *, labels: datasets.Features | None = None) -> Path:
    """18 images, all different, of two classes."""
    features = labels or datasets.ClassLabel(names=["seven", "three"])
    content = {
        "image": [Image.new("RGB", (20, 30), (10 * i, 0, 0)) for i in range(18)],
        "label": [i % 2 for i in range(18)],
    }
    kinds = datasets.Features({"image": datasets.Image(), "label": features})
    datasets.Dataset.from_dict(content, features=kinds).save_to_disk(root)
    return root


def dataset_spec(root: Path, **changes: object) -> DataSpec:
    content = {"source": "datasets", "path": str(root), "samples": FEW, "templates": ("a {}",)}
    return DataSpec.model_validate({**content, **changes})


def test_a_saved_dataset_gives_disjoint_splits_with_its_labels(
    tmp_path: Path, model: DualEncoder
) -> None:
    task = load_classification(dataset_spec(saved_dataset(tmp_path / "set")), model)

    assert task.classes == ("seven", "three")
    expected = {
        model.preprocess(Image.new("RGB", (20, 30), (10 * i, 0, 0))).numpy().tobytes(): i % 2
        for i in range(18)
    }
    seen = {
        image.numpy().tobytes(): label
        for name in SplitName
        for image, label in zip(
            all_pixels(task, name), task.split(name).labels.tolist(), strict=True
        )
    }
    assert seen == expected


def test_texts_may_be_the_labels_of_a_dataset(tmp_path: Path, model: DualEncoder) -> None:
    images = [Image.new("RGB", (20, 30), (10 * i, 0, 0)) for i in range(18)]
    content = {"image": images, "label": ["three", "seven"] * 9}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(content, features=kinds).save_to_disk(tmp_path / "set")

    task = load_classification(dataset_spec(tmp_path / "set"), model)

    assert task.classes == ("seven", "three")


Prepare = Callable[[Path], DataSpec]

MISTAKES: dict[str, tuple[Prepare, type[BitfrontError], str]] = {
    "no folder": (
        lambda root: folder_spec(root / "none"),
        MissingData,
        "the folder .* does not exist",
    ),
    "no classes": (
        lambda root: folder_spec(write_folder(root, {"only": 20})),
        MissingData,
        "at least 2 classes",
    ),
    "an empty class": (
        lambda root: folder_spec(write_folder(root, {"seven": 20, "three": 0})),
        MissingData,
        "three has no images",
    ),
    "too few": (
        lambda root: folder_spec(write_folder(root, {"seven": 5, "three": 5})),
        MissingData,
        r"has 10 samples, but the splits ask for 18 \(calibration 4, tuning 3",
    ),
    "no dataset": (
        lambda root: dataset_spec(write_folder(root, {"seven": 1})),
        MissingData,
        "no dataset that was saved",
    ),
    "no column": (
        lambda root: dataset_spec(saved_dataset(root / "set"), label_column="kind"),
        SpecError,
        "no column 'kind'; its columns are image, label",
    ),
    "numbers for classes": (
        lambda root: dataset_spec(saved_dataset(root / "set", labels=datasets.Value("int64"))),
        SpecError,
        "no captions",
    ),
    "a label for an image": (
        lambda root: dataset_spec(saved_dataset(root / "set"), image_column="label"),
        SpecError,
        "has no images",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_data_is_refused_with_the_way_out(
    mistake: str, tmp_path: Path, model: DualEncoder
) -> None:
    prepare, kind, message = MISTAKES[mistake]

    with pytest.raises(kind, match=message):
        load_classification(prepare(tmp_path), model)


def test_an_unlabelled_row_is_refused(tmp_path: Path, model: DualEncoder) -> None:
    content = {"image": [Image.new("RGB", (4, 4))] * 18, "label": [0, 1] * 8 + [-1, 0]}
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["seven", "three"])}
    )
    datasets.Dataset.from_dict(content, features=kinds).save_to_disk(tmp_path / "set")

    with pytest.raises(InvalidSample, match=r"row 16 of .* has the label -1"):
        load_classification(dataset_spec(tmp_path / "set"), model)


def test_several_splits_ask_for_one(tmp_path: Path, model: DualEncoder) -> None:
    part = datasets.Dataset.from_dict({"label": [0]})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "set")

    with pytest.raises(MissingData, match=r"several splits \(train, test\)"):
        load_classification(dataset_spec(tmp_path / "set"), model)


def test_a_missing_package_names_the_extra(
    tmp_path: Path, model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(MissingData, match=r"pip install bitfront\[datasets\]"):
        load_classification(dataset_spec(tmp_path), model)


def test_a_split_may_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    counts = {"one": 8, "two": 8}
    all_of_them = write_folder(tmp_path / "all", counts)
    test = write_folder(tmp_path / "test", {"one": 3, "two": 2})
    other = write_folder(tmp_path / "other", {"one": 3, "six": 2})
    for number, path in enumerate(sorted(test.rglob("*.png"))):
        Image.new("RGB", (9, 9), (number, 7, 7)).save(path)  # no copies of the others
    samples = Samples(calibration=2, tuning=2, selection=2, test=5)
    spec = folder_spec(all_of_them, samples=samples)
    named = spec.model_copy(update={"splits": SplitPaths(test=str(test))})

    task = load_classification(named, untrained_encoder())

    assert task.split(SplitName.TEST).labels.sort().values.tolist() == [0, 0, 0, 1, 1]
    strange = spec.model_copy(update={"splits": SplitPaths(test=str(other))})
    with pytest.raises(SpecError, match=r"data\.splits: .* which are not the same"):
        load_classification(strange, untrained_encoder())
    with pytest.raises(SpecError, match=r"data\.splits: .* which are not the same"):
        preview_data(strange, Inspector())
    first, second = preview_data(named, Inspector()).notes[:2]
    assert first == f"image folder {all_of_them}: 16 images in 2 classes"
    assert second == f"image folder {test}: 5 images in 2 classes"

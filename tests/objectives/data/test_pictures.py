"""Pictures without labels: what is listed, what they may show, and what is written about them."""

from pathlib import Path

import pytest
import torch

from bitfront.errors import InvalidModel, MissingData, SpecError
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.spec import DataSpec, QuantizerSpec, Samples
from bitfront.vlm import GenerativeModel, PlanSwitch
from objectives.data.classification import load_classification
from objectives.data.inspection import Inspector
from objectives.data.pictures import PictureSource
from objectives.data.preview import preview_data
from objectives.data.split_name import SplitName
from objectives.data.written import load_written
from objectives.profiling.calibration import calibrate
from tests.support.llava_models import Build, load_llava, photo, save_llava
from tests.support.scene_models import untrained_encoder

FEW = Samples(calibration=3, tuning=2, selection=4, test=3)
COUNT = 12
CLASSES = ["a one", "a two", "a three"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GenerativeModel:
    path = tmp_path_factory.mktemp("llava")
    save_llava(path, Build(is_tied=True))
    return load_llava(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "older").mkdir(parents=True)
    for number in range(COUNT):
        photo(number).save(root / ("older" if number % 3 == 0 else "") / f"{number}.png")
    (root / "notes.txt").write_text("hello")
    (root / ".hidden.png").write_bytes(b"")
    return root


def spec_of(folder: Path, **changes: object) -> DataSpec:
    content = {"source": "images", "path": str(folder), "samples": FEW, "batch_size": 2}
    return DataSpec.model_validate({**content, **changes})


def test_all_images_are_listed_and_what_is_left_out_is_counted(folder: Path) -> None:
    source = PictureSource(spec_of(folder))

    assert sorted(source.names) == sorted(
        f"older/{n}.png" if n % 3 == 0 else f"{n}.png" for n in range(COUNT)
    )
    assert source.summary == (
        "12 images; left out: 1 files that are not images, 1 hidden or system names"
    )


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"has no images: set data\.path to where they are"):
        PictureSource(spec_of(tmp_path))
    with pytest.raises(MissingData, match=r"the folder .* does not exist: set data\.path"):
        PictureSource(spec_of(tmp_path / "nowhere"))


@pytest.mark.parametrize("form", ["list", "mapping", "file"])
def test_classes_are_listed_since_no_folder_names_them(
    folder: Path, tmp_path: Path, form: str
) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(CLASSES))
    given = {"list": CLASSES, "mapping": dict(zip("abc", CLASSES, strict=True)), "file": str(file)}

    task = load_classification(spec_of(folder, classes=given[form]), untrained_encoder())

    assert list(task.classes) == CLASSES
    assert all(bool((task.split(name).labels == -1).all()) for name in SplitName)
    with pytest.raises(SpecError, match=r"data.classes: .* has no classes: list what its images"):
        load_classification(spec_of(folder), untrained_encoder())
    with pytest.raises(InvalidModel, match="have the same tokens"):
        load_classification(spec_of(folder, classes=["a one", "a one."]), untrained_encoder())
    with pytest.raises(SpecError, match=r"data\.classes: there is one class"):
        load_classification(spec_of(folder, classes=["a one"]), untrained_encoder())


def test_what_the_full_model_writes_is_right_whatever_plan_is_on(
    folder: Path, model: GenerativeModel
) -> None:
    spec = spec_of(folder, prompt="USER: <image>\nwhat is there? ASSISTANT:", answer_tokens=5)
    first, second = load_written(spec, model), load_written(spec, model)
    wanted = first.split(SplitName.TEST).answers
    layers = [layer.name for layer in model.layers]
    switch = PlanSwitch(
        model, QuantizerSpec.model_validate({"rounding": "nearest"}), calibrate(first, (1.0,))
    )
    switch.to(Plan.uniform(layers, Precision(2, 8)))

    found = second.split(SplitName.TEST).answers

    assert [tokens.tolist() for tokens in found] == [tokens.tolist() for tokens in wanted]
    assert all(1 <= len(tokens) <= 5 for tokens in found)
    split = first.split(SplitName.TEST)
    for number, places in enumerate(split.batches):
        logits = model.answer_logits(split.read(number))
        assert torch.equal(
            logits.argmax(-1).cpu(), torch.stack([wanted[place] for place in places.tolist()])
        )


def test_the_prompt_may_hold_the_whole_question(folder: Path, model: GenerativeModel) -> None:
    whole = load_written(spec_of(folder, prompt="<image> how many are there?"), model)
    open_ended = load_written(spec_of(folder, prompt="<image> {}"), model)

    assert whole.identity != open_ended.identity
    with pytest.raises(SpecError, match=r"data\.prompt has no <image>"):
        load_written(spec_of(folder, prompt="how many are there?"), model)


def test_a_preview_counts_pictures_and_shows_captions_where_classes_are_listed(
    folder: Path,
) -> None:
    (note,) = preview_data(spec_of(folder), Inspector()).notes
    _, captions = preview_data(spec_of(folder, classes=CLASSES), Inspector()).notes

    assert note.startswith(f"folder {folder}: 12 images; left out: ")
    assert (
        captions
        == "captions: 'a photo of a a one.', 'a photo of a a two.', 'a photo of a a three.'"
    )

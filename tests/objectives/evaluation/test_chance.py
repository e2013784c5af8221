"""Full precision near chance is a warning; classes that are alike are an error."""

from dataclasses import replace

import pytest

from bitfront.errors import InvalidModel
from bitfront.spec import DataSpec, ModelSpec
from bitfront.vlm import DualEncoder, load_model
from objectives.data.classification import ClassificationTask, load_classification
from objectives.evaluation.chance import chance_warnings, refuse_like_classes


@pytest.fixture(scope="module")
def task() -> ClassificationTask:
    model = load_model(ModelSpec.model_validate({"source": "reference"}))
    assert isinstance(model, DualEncoder)
    samples = {"calibration": 4, "tuning": 4, "selection": 100, "test": 4}
    spec = DataSpec.model_validate({"source": "reference", "samples": samples})
    return load_classification(spec, model)


def test_an_error_like_that_of_guessing_is_a_warning(task: ClassificationTask) -> None:
    chance = 1 - 1 / task.class_count

    assert chance_warnings(task, 0.1) == ()
    (warning,) = chance_warnings(task, chance)
    assert "guessing" in warning


def test_the_reference_tells_its_classes_apart(task: ClassificationTask) -> None:
    refuse_like_classes(task)


def test_classes_with_the_same_captions_are_refused(task: ClassificationTask) -> None:
    alike = (task.classes[0], task.classes[0])

    with pytest.raises(InvalidModel, match=task.classes[0]):
        refuse_like_classes(replace(task, classes=alike))

"""Classification's measures and templates, against scikit-learn and open_clip."""

import numpy as np
import open_clip
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from bitfront.plan import Configuration, Plan
from bitfront.reference.digit_clip import tokenize
from bitfront.spec import JobSpec
from bitfront.tasks import TaskMeasure
from bitfront.vlm import DualEncoder
from objectives.data.classification import ClassificationTask, load_classification
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.classification import ClassificationFamily
from objectives.execution.similarity import class_features
from objectives.profiling.calibration import calibrate
from tests.support.scene_models import scene_spec, untrained_clip, untrained_encoder

SPLIT = SplitName.SELECTION
TEMPLATES = ["a picture of {}", "this scan shows {}", "{}"]


def job(measure: TaskMeasure | None) -> JobSpec:
    """250 images of 200 classes: 50 classes have two, and 150 one."""
    samples = {"calibration": 8, "tuning": 4, "selection": 250, "test": 4}
    data = {"source": "reference", "samples": samples, "templates": TEMPLATES, "measure": measure}
    return scene_spec(data=data)


def evaluator(measure: TaskMeasure | None) -> Evaluator:
    spec = job(measure)
    model = untrained_encoder()
    family = ClassificationFamily(load_classification(spec.data, model))
    return Evaluator(spec, family, calibrate(family.task, (1.0,)))


def test_mean_per_class_accuracy_is_that_of_scikit_learn() -> None:
    loaded = evaluator(TaskMeasure.MEAN_PER_CLASS_ACCURACY)
    task = loaded.task
    assert isinstance(task, ClassificationTask)
    split = task.split(SPLIT)

    found = loaded.evaluate(Configuration(Plan(())))

    assert found.samples is not None
    wrong = ~found.samples.right
    labels = split.labels.numpy()
    # Any wrong class will do: what counts is whether an image is right.
    guessed = np.where(wrong, (labels + 1) % task.class_count, labels)
    balanced = balanced_accuracy_score(labels, guessed)
    assert found.values["error"] == pytest.approx(1 - balanced)
    assert found.values["error"] == pytest.approx(found.samples.errors.mean())
    assert found.values["error"] != pytest.approx(wrong.mean())


def test_without_a_measure_every_image_counts_alike() -> None:
    plain, named = (
        evaluator(m).evaluate(Configuration(Plan(()))) for m in (None, TaskMeasure.ACCURACY)
    )

    assert plain.samples == named.samples
    assert plain.values == named.values


def test_templates_are_an_ensemble_as_open_clip_has_it() -> None:
    spec = job(None)
    model = untrained_encoder()
    assert isinstance(model, DualEncoder)
    task = load_classification(spec.data, model)

    with torch.no_grad():
        captions = [model.encode_texts(part) for part in task.tokens]
        found = class_features(torch.cat(captions), len(task.templates))
        wanted = open_clip.build_zero_shot_classifier(
            untrained_clip().eval(),
            tokenize,
            list(task.classes),
            [lambda name, template=template: template.format(name) for template in TEMPLATES],
            num_classes_per_batch=50,
        )

    assert torch.allclose(found, wanted.T, atol=1e-6)

"""Agreement with full precision, without labels, against the models themselves."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.reference.digit_llava import build_llava
from bitfront.spec import JobSpec
from bitfront.tasks import TaskMeasure
from bitfront.vlm.loaders.reference import digit_llava_model
from objectives.data.classification import ClassificationTask, load_classification
from objectives.data.split_name import SplitName
from objectives.data.written import WrittenTask, load_written
from objectives.evaluation.agreement_scorers import disagreement
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.agreement import ClassAgreementFamily, TextAgreementFamily
from objectives.evaluation.families.registry import load_family
from objectives.evaluation.packed import write_packed
from objectives.evaluation.verification import verify
from objectives.execution.similarity import class_features, divergences_nats, logits
from objectives.profiling.calibration import calibrate
from tests.support.scene_models import untrained_encoder

SPLIT = SplitName.SELECTION
SAMPLES = {"calibration": 10, "tuning": 10, "selection": 24, "test": 2}


def job(name: str, **data: object) -> JobSpec:
    known = {"source": "reference", "task": "agreement", "samples": SAMPLES, "batch_size": 8}
    return JobSpec.model_validate(
        {
            "study": "agreement",
            "model": {"source": "reference", "name": name, "device": "cpu"},
            "data": {**known, **data},
            "quantizer": {"rounding": "nearest"},
        }
    )


def of_classes(measure: str | None = None) -> Evaluator:
    spec = job("digit-clip", measure=measure)
    family = ClassAgreementFamily(load_classification(spec.data, untrained_encoder()))
    return Evaluator(spec, family, calibrate(family.task, (1.0,)))


def of_texts(measure: str | None = None) -> Evaluator:
    spec = job("digit-llava", measure=measure, answer_tokens=4)
    family = TextAgreementFamily(load_written(spec.data, digit_llava_model(build_llava(seed=4))))
    return Evaluator(spec, family, calibrate(family.task, (1.0,)))


MAKERS = {"classes": of_classes, "texts": of_texts}


def plan_of(loaded: Evaluator, bits: int = 3) -> Plan:
    return Plan.uniform([layer.name for layer in loaded.model.layers], Precision(bits, 8))


def predictions(loaded: Evaluator, plan: Plan) -> Tensor:
    """The logits of every prediction of the split, and which sample each belongs to."""
    task = loaded.task
    loaded.switch.to(plan)
    with torch.no_grad():
        if isinstance(task, ClassificationTask):
            split = task.split(SPLIT)
            images = task.model.encode_images(split.read(0, len(split)))
            classes = class_features(task.model.encode_texts(task.captions), len(task.templates))
            return logits(images, classes, task.model.logit_scale)
        assert isinstance(task, WrittenTask)
        written = task.split(SPLIT)
        batches = [written.read(number) for number in range(len(written.batches))]
        return torch.cat([task.model.answer_logits(batch).flatten(0, 1) for batch in batches])


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("measure", [None, "divergence", "agreement"])
def test_the_error_is_of_predictions_that_full_precision_does_not_make(
    kind: str, measure: str | None
) -> None:
    loaded = MAKERS[kind](measure)
    plan = plan_of(loaded)

    found = loaded.evaluate(Configuration(plan), SPLIT)

    if kind == "texts":
        assert isinstance(loaded.task, WrittenTask)
        loaded.task.split(SPLIT).answers  # noqa: B018 - written while the model may have no plan on
    full, changed = predictions(loaded, Plan(())), predictions(loaded, plan)
    kl = divergences_nats(full, changed)
    same = (full.argmax(-1) == changed.argmax(-1)).double()
    wanted = 1 - same if measure == "agreement" else 1 - torch.exp(-kl)
    assert found.values["error"] == pytest.approx(float(wanted.mean()), rel=1e-3, abs=1e-6)
    assert found.metrics["agreement"] == pytest.approx(float(same.mean()))
    assert found.metrics["divergence"] == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found.samples is not None
    assert found.samples.errors.mean() == pytest.approx(found.values["error"], rel=1e-5)
    assert 0 < found.values["error"] < 1


@pytest.mark.parametrize("kind", MAKERS)
def test_full_precision_agrees_with_itself(kind: str) -> None:
    found = MAKERS[kind]().evaluate(Configuration(Plan(())), SPLIT)

    assert found.values["error"] == 0.0
    assert found.metrics["agreement"] == 1.0


@pytest.mark.parametrize("kind", MAKERS)
def test_a_recovery_learns_from_full_precision(kind: str) -> None:
    loaded = MAKERS[kind]()
    plan = plan_of(loaded)
    recovery = Recovery(context_length=2, reduction=2, steps=60)

    bare = loaded.evaluate(Configuration(plan), SplitName.TUNING).metrics["loss_nats"]
    found = loaded.evaluate(Configuration(plan, recovery), SplitName.TUNING).metrics

    assert found["loss_nats"] < bare


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("measure", ["divergence", "agreement"])
def test_an_artefact_agrees_as_was_measured(kind: str, measure: str, tmp_path: Path) -> None:
    spec = job("digit-clip" if kind == "classes" else "digit-llava", measure=measure)
    from bitfront.vlm import load_model

    family = load_family(spec.data, load_model(spec.model))
    loaded = Evaluator(spec, family, calibrate(family.task, (1.0,)))
    configuration = Configuration(plan_of(loaded, 4))
    measured = loaded.evaluate(configuration, SPLIT).values["error"]
    write_packed(loaded, configuration, tmp_path, {})

    found = verify(loaded, configuration, tmp_path, measured, "packed")

    found.check()
    assert found.error == pytest.approx(measured, abs=0.05)


def test_disagreement_lies_between_nothing_and_one() -> None:
    full = torch.tensor([[5.0, 0.0], [0.0, 0.0], [90.0, -90.0]])
    found = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-90.0, 90.0]])

    by_divergence = disagreement(full, found, TaskMeasure.DIVERGENCE)
    by_class = disagreement(full, found, TaskMeasure.AGREEMENT)

    assert by_divergence[0] == 0
    assert 0 < by_divergence[1] < 0.5
    assert by_divergence[2] == pytest.approx(1)
    assert by_class.tolist() == [0, 0, 1]

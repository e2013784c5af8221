"""Distillation where images and captions look for each other: both directions, in steps."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from bitfront.plan import Configuration, Distillation, Plan
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from objectives.data.retrieval import RetrievalTask
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.recovery.checkpointed_training import advance
from objectives.recovery.distil_training import DistilTraining


def job() -> JobSpec:
    samples = {"calibration": 16, "tuning": 36, "selection": 24, "test": 4}
    return JobSpec.model_validate(
        {
            "study": "distil",
            "model": {"source": "reference", "device": "cpu"},
            "data": {
                "source": "reference",
                "task": "retrieval",
                "samples": samples,
                "batch_size": 32,
            },
            "quantizer": {"rounding": "nearest", "scale_search": False},
            "space": {"recovery": {"distil": {"steps": [12]}}},
        }
    )


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator.from_spec(job())


def plan_of(evaluator: Evaluator, steps: int = 12) -> Plan:
    names = [layer.name for layer in evaluator.model.layers]
    plan = Plan.uniform(names, Precision.parse("w3a8"))
    return replace(plan, distil=Distillation(steps=steps))


def training_of(evaluator: Evaluator, plan: Plan, seed: int = 0) -> DistilTraining:
    return DistilTraining(evaluator.task, evaluator.switch, plan, seed)


def test_the_divergence_is_that_of_the_scorer(evaluator: Evaluator) -> None:
    plan = plan_of(evaluator)

    found = training_of(evaluator, plan).divergence()

    score = evaluator.scorer.figures(Configuration(plan.rounded), SplitName.TUNING)
    assert found == pytest.approx(score["divergence"], rel=1e-4)


def test_a_step_compares_its_images_with_all_captions_both_ways(evaluator: Evaluator) -> None:
    task, plan = evaluator.task, plan_of(evaluator)
    assert isinstance(task, RetrievalTask)
    training = training_of(evaluator, plan)
    images, captions = task.streams(SplitName.TUNING)

    def features(under: Plan) -> dict[str, torch.Tensor]:
        evaluator.switch.to(under)
        with torch.no_grad():
            return {
                stream.key: torch.cat([stream.run(n) for n in range(len(stream.sizes))])
                for stream in (images, captions)
            }

    full, quantized = features(Plan(())), features(plan.rounded)
    samples = torch.tensor([3, 7, 30])

    found = training._divergence_of(
        {**quantized, images.key: quantized[images.key][samples]}, samples
    )

    scale, losses = task.model.logit_scale, []
    cosines = []
    for outputs in (full, quantized):
        found_images = functional.normalize(outputs[images.key][samples], dim=-1)
        texts = functional.normalize(outputs[captions.key], dim=-1)
        cosines.append(scale * found_images @ texts.T)
    for teacher, student in (cosines, [part.T for part in cosines]):
        rows = [
            -(teacher[n].softmax(0) * student[n].log_softmax(0)).sum() for n in range(len(teacher))
        ]
        losses.append(torch.stack(rows).mean())
    assert float(found) == pytest.approx(float(sum(losses)) / 2, rel=1e-4)


def test_it_brings_recall_towards_full_precision_and_is_what_is_measured(
    evaluator: Evaluator,
) -> None:
    plan = plan_of(evaluator)
    before = evaluator.evaluate(Configuration(plan.rounded)).metrics

    after = evaluator.evaluate(Configuration(plan)).metrics

    assert after["divergence"] < 0.9 * before["divergence"]
    assert after["nbytes"] == before["nbytes"]


def test_a_training_put_back_goes_on_to_the_same_bits(evaluator: Evaluator) -> None:
    plan = plan_of(evaluator, 6)
    whole, first, second = (training_of(evaluator, plan, seed) for seed in (0, 0, 9))
    advance(whole, 6)
    advance(first, 4)

    second.load_state_dict(first.state_dict())
    advance(second, 6)

    wanted, found = whole.trained(), second.trained()
    assert wanted.vectors.keys() == found.vectors.keys() != set()
    assert all(torch.equal(found.vectors[name], one) for name, one in wanted.vectors.items())
    for name, layer in wanted.layers.items():
        codes, other = layer.codes, found.layers[name].codes
        assert codes is not None
        assert other is not None
        assert torch.equal(codes.scale, other.scale)

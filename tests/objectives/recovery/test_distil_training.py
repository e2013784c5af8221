"""Distillation: towards full precision, resumable to the bit, and kept only where it helps."""

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bitfront.plan import Configuration, Distillation, Plan
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from bitfront.vlm.plan_switch import TrainedPlan
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.execution.similarity import divergences_nats
from objectives.recovery.checkpointed_training import RecoveryCheckpoint, advance
from objectives.recovery.distil_training import DistilTraining
from objectives.recovery.distiller import Distiller

SAMPLES = {"calibration": 16, "tuning": 36, "selection": 24, "test": 16}
NAMES = ("digit-clip", "digit-llava")
SIX = Distillation(steps=6)


def job(name: str, **quantizer: str) -> JobSpec:
    return JobSpec.model_validate(
        {
            "study": "distil",
            "model": {"source": "reference", "name": name, "device": "cpu"},
            "data": {"source": "reference", "samples": SAMPLES, "batch_size": 32},
            "quantizer": {"rounding": "nearest", "scale_search": False, **quantizer},
            "search": {"checkpoint_s": 0},
        }
    )


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model at its task."""

    evaluator: Evaluator

    def plan(self, distil: Distillation = SIX, precision: str = "w3a8") -> Plan:
        names = [layer.name for layer in self.evaluator.model.layers]
        return replace(Plan.uniform(names, Precision.parse(precision)), distil=distil)

    def training(self, plan: Plan, seed: int = 0) -> DistilTraining:
        return DistilTraining(self.evaluator.task, self.evaluator.switch, plan, seed)

    def trained(self, plan: Plan) -> TrainedPlan:
        return whole(self, plan)


@cache
def whole(loaded: Loaded, plan: Plan) -> TrainedPlan:
    """What an undisturbed training gives."""
    training = loaded.training(plan)
    assert plan.distil is not None
    advance(training, plan.distil.steps)
    return training.trained()


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return Loaded(Evaluator.from_spec(job(request.param)))


@pytest.fixture(scope="module")
def clip() -> Loaded:
    return Loaded(Evaluator.from_spec(job("digit-clip")))


def assert_same(found: TrainedPlan, wanted: TrainedPlan) -> None:
    assert found.layers.keys() == wanted.layers.keys()
    assert found.vectors.keys() == wanted.vectors.keys()
    for name, own in wanted.layers.items():
        other = found.layers[name]
        assert (own.codes is None) is (other.codes is None)
        if own.codes is not None and other.codes is not None:
            assert torch.equal(own.codes.codes, other.codes.codes)
            assert torch.equal(own.codes.scale, other.codes.scale)
            if own.codes.zero is not None and other.codes.zero is not None:
                assert torch.equal(own.codes.zero, other.codes.zero)
        ranges = [None if one.quantize is None else one.quantize.range for one in (own, other)]
        assert ranges[0] == ranges[1]
    for name, values in wanted.vectors.items():
        assert torch.equal(values, found.vectors[name])


def divergence(loaded: Loaded, plan: Plan) -> float:
    """On the tuning split, with the plan on the model."""
    evaluator, outputs = loaded.evaluator, []
    for shown in (Plan(()), plan):
        evaluator.switch.to(shown)
        with torch.no_grad():
            streams = evaluator.task.streams(SplitName.TUNING)
            runs = {s.key: torch.cat([s.run(n) for n in range(len(s.sizes))]) for s in streams}
        outputs.append(evaluator.task.scores(runs))
    return float(divergences_nats(*outputs).mean())


@pytest.mark.parametrize("codes", [True, False])
def test_what_is_put_on_the_model_is_what_the_training_measured(
    loaded: Loaded, codes: bool
) -> None:
    plan = loaded.plan(replace(SIX, codes=codes))
    training = loaded.training(plan)
    before = divergence(loaded, plan.rounded)
    assert training.divergence() == pytest.approx(before, rel=1e-6)
    advance(training, 6)

    loaded.evaluator._distiller.keep(plan, training.trained())
    after = divergence(loaded, plan)

    assert after == pytest.approx(training.divergence(), rel=1e-6)
    assert after < 0.95 * before


def test_the_model_is_bare_after_a_step(loaded: Loaded) -> None:
    model = loaded.evaluator.model
    loaded.evaluator.switch.clear()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}

    loaded.training(loaded.plan()).step()

    after = model.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(module._forward_pre_hooks for module in model.module.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.module.parameters())


def test_everything_that_a_checkpoint_holds_is_trained(loaded: Loaded) -> None:
    plan = loaded.plan()
    training = loaded.training(plan)
    start = loaded.evaluator.switch.coded(plan.rounded)
    advance(training, 6)

    found = training.trained()

    for name, own in found.layers.items():
        before = start[name]
        assert own.codes is not None
        assert before.codes is not None
        assert torch.equal(own.codes.codes, before.codes.codes)
        assert not torch.equal(own.codes.scale, before.codes.scale)
        if own.quantize is not None and before.quantize is not None:
            assert own.quantize.range != before.quantize.range
    model = loaded.evaluator.model
    assert set(found.vectors) == set(model.vectors)
    unmoved = {
        name
        for name, values in found.vectors.items()
        if torch.equal(values, model.module.get_parameter(name).half())
    }
    assert all("post_layernorm" in name for name in unmoved)  # which LLaVA does not look at


@pytest.mark.parametrize("ended", [0, 1, 4, 6])
def test_a_training_put_back_anywhere_goes_on_to_the_same_bits(loaded: Loaded, ended: int) -> None:
    plan = loaded.plan(replace(SIX, codes=True))
    first = loaded.training(plan)
    advance(first, ended)

    second = loaded.training(plan, seed=9)
    second.load_state_dict(first.state_dict())
    advance(second, 6)

    assert_same(second.trained(), loaded.trained(plan))


def test_a_killed_training_goes_on_from_its_checkpoint(clip: Loaded, tmp_path: Path) -> None:
    path, plan = tmp_path / "distil", clip.plan()
    advance(clip.training(plan), 4, RecoveryCheckpoint(path, "this one", every_s=0))

    again = clip.training(plan)
    checkpoint = RecoveryCheckpoint(path, "this one", every_s=0)
    checkpoint.resume(again)
    assert again.steps == 4
    advance(again, 6, checkpoint)

    assert_same(again.trained(), clip.trained(plan))


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_what_does_not_help_is_not_kept(clip: Loaded, rate: float) -> None:
    """The rates are so high that everything is lost, in the second case to NaN."""
    plan = clip.plan(replace(SIX, learning_rate_multiplier=rate))

    found = clip.trained(plan)

    assert_same(found, TrainedPlan(clip.evaluator.switch.coded(plan.rounded), {}))


def test_only_the_share_of_the_layers_that_is_asked_for_is_trained(clip: Loaded) -> None:
    plan = clip.plan(replace(SIX, share=0.25))
    training = clip.training(plan)
    start = clip.evaluator.switch.coded(plan.rounded)
    advance(training, 6)

    found = training.trained().layers

    changed = set()
    for name, own in found.items():
        before = start[name].codes
        assert own.codes is not None
        assert before is not None
        if not torch.equal(own.codes.scale, before.scale):
            changed.add(name)
    assert changed == set(training.trained_layers)
    assert len(changed) == round(0.25 * len(found))


def test_a_larger_share_holds_the_layers_of_a_smaller_one(loaded: Loaded) -> None:
    shares = (0.01, 0.2, 0.5, 1.0)
    chosen = [
        set(loaded.training(loaded.plan(Distillation(share=s))).trained_layers) for s in shares
    ]

    assert [len(few - many) for few, many in pairwise(chosen)] == [0, 0, 0]
    assert len(chosen[0]) == 1
    assert len(chosen[-1]) == len(loaded.plan())


@pytest.mark.parametrize("precision", ["w16a8", "w4a16", "w2a4"])
@pytest.mark.parametrize(
    "quantizer", [{"activations": "dynamic"}, {"scheme": "symmetric"}, {"rounding": "descent"}]
)
def test_any_plan_and_quantizer_can_be_distilled(precision: str, quantizer: dict[str, str]) -> None:
    loaded = Loaded(Evaluator.from_spec(job("digit-clip", **quantizer)))
    plan = loaded.plan(replace(SIX, steps=2), precision)

    found = loaded.trained(plan)

    loaded.evaluator._distiller.keep(plan, found)
    assert divergence(loaded, plan) <= divergence(loaded, plan.rounded)


def test_the_labels_do_not_matter(clip: Loaded) -> None:
    task = clip.evaluator.task
    shuffled = replace(
        task,  # type: ignore[type-var]  # a dataclass, of whichever family
        splits={
            name: replace(split, labels=split.labels.flip(0))
            for name, split in task.splits.items()  # type: ignore[attr-defined]
        },
    )
    plan = clip.plan(replace(SIX, steps=2))
    training = DistilTraining(shuffled, clip.evaluator.switch, plan, 0)
    advance(training, 2)

    assert_same(training.trained(), clip.trained(plan))


def distiller(loaded: Loaded, folder: Path) -> Distiller:
    evaluator = loaded.evaluator
    return Distiller(
        evaluator.task,
        evaluator.switch,
        evaluator.spec.quantizer,
        0,
        evaluator._stopwatch,
        folder=folder,
        features="features",
    )


def test_a_finished_plan_is_found_again_by_another_process(loaded: Loaded, tmp_path: Path) -> None:
    plan = loaded.plan(replace(SIX, steps=2))
    first = distiller(loaded, tmp_path).trained(plan)

    found = distiller(loaded, tmp_path).known(plan)

    assert found is not None
    assert_same(found, first)
    assert distiller(loaded, tmp_path).known(replace(plan, distil=SIX)) is None


def test_a_damaged_file_is_told_of_and_the_plan_is_trained_again(
    clip: Loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = clip.plan(replace(SIX, steps=2))
    first = distiller(clip, tmp_path).trained(plan)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])

    again = distiller(clip, tmp_path).trained(plan)

    assert "a distilled plan is trained again" in caplog.text
    assert_same(again, first)


def test_plans_that_differ_in_their_distillation_only_do_not_share_features(clip: Loaded) -> None:
    plan = clip.plan()
    longer = replace(plan, distil=replace(SIX, steps=12))
    evaluator = clip.evaluator
    losses = {
        evaluator.evaluate(Configuration(one)).metrics["loss_nats"]
        for one in (plan.rounded, plan, longer)
    }

    again = Evaluator.from_spec(job("digit-clip")).evaluate(Configuration(longer))

    assert len(losses) == 3
    assert again.metrics["loss_nats"] in losses

"""Multiple choice, by likelihoods and letters, against the model itself."""

from pathlib import Path

import pytest
import torch

from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.reference.digit_llava import build_llava
from bitfront.spec import JobSpec
from bitfront.vlm.loaders.reference import digit_llava_model
from objectives.data.choices import ChoiceTask, load_choices
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.choice import ChoiceFamily
from objectives.evaluation.packed import write_packed
from objectives.evaluation.verification import verify
from objectives.execution.similarity import divergence_nats
from objectives.profiling.calibration import calibrate

SPLIT = SplitName.SELECTION


def job(**data: object) -> JobSpec:
    samples = {"calibration": 10, "tuning": 10, "selection": 24, "test": 2}
    known = {"source": "reference", "task": "choice", "samples": samples, "batch_size": 8}
    return JobSpec.model_validate(
        {
            "study": "choice",
            "model": {"source": "reference", "name": "digit-llava", "device": "cpu"},
            "data": {**known, **data},
            "quantizer": {"rounding": "nearest"},
        }
    )


def evaluator(**data: object) -> Evaluator:
    spec = job(**data)
    family = ChoiceFamily(load_choices(spec.data, digit_llava_model(build_llava(seed=4))))
    return Evaluator(spec, family, calibrate(family.task, (1.0,)))


@pytest.fixture(scope="module")
def loaded() -> Evaluator:
    return evaluator()


@pytest.fixture(scope="module")
def plan(loaded: Evaluator) -> Plan:
    return Plan.uniform([layer.name for layer in loaded.model.layers], Precision(3, 8))


def likelihoods(loaded: Evaluator, plan: Plan) -> list[torch.Tensor]:
    """The log-probability of each option of each question, one by one."""
    task = loaded.task
    assert isinstance(task, ChoiceTask)
    model = task.model
    loaded.switch.to(plan)
    split, found = task.options[SPLIT], []
    sums = {}
    for number, places in enumerate(split.batches):
        batch = split.read(number)
        for row, place in enumerate(places.tolist()):
            with torch.no_grad():
                logits = model.answer_logits(batch.pick(slice(row, row + 1)))[0]
            log_p = logits.double().log_softmax(-1)
            sums[place] = sum(
                float(log_p[at, token]) for at, token in enumerate(batch.answers[row].tolist())
            )
    start = 0
    for options, _ in task.choices[SPLIT]:
        found.append(torch.tensor([sums[start + place] for place in range(len(options))]))
        start += len(options)
    return found


def test_the_likeliest_option_is_chosen(loaded: Evaluator, plan: Plan) -> None:
    task = loaded.task
    assert isinstance(task, ChoiceTask)

    found = loaded.evaluate(Configuration(plan), SPLIT)

    changed, full = likelihoods(loaded, plan), likelihoods(loaded, Plan(()))
    rights = [right for _, right in task.choices[SPLIT]]
    wrong = [int(own.argmax()) != right for own, right in zip(changed, rights, strict=True)]
    assert found.samples is not None
    assert found.samples.errors.tolist() == wrong
    assert 0 < found.values["error"] < 1
    wanted = sum(
        divergence_nats(a[None], b[None]) for a, b in zip(full, changed, strict=True)
    ) / len(full)
    assert found.metrics["divergence"] == pytest.approx(wanted, rel=1e-3)
    loss = -sum(
        float(own.log_softmax(-1)[right]) for own, right in zip(changed, rights, strict=True)
    ) / len(rights)
    assert found.metrics["loss_nats"] == pytest.approx(loss, rel=1e-4)


def test_full_precision_diverges_from_nothing(loaded: Evaluator) -> None:
    assert loaded.evaluate(Configuration(Plan(())), SPLIT).metrics["divergence"] == 0.0


def test_what_the_model_writes_is_read_and_what_names_no_option_is_counted() -> None:
    loaded = evaluator(measure="letter")
    task = loaded.task
    assert isinstance(task, ChoiceTask)

    found = loaded.evaluate(Configuration(Plan(())), SPLIT)

    split, verdicts = task.split(SPLIT), {}
    for number, places in enumerate(split.batches):
        written = task.model.generate(split.read(number), task.answer_tokens)
        for place, tokens in zip(places.tolist(), written, strict=True):
            options, right = task.choices[SPLIT][place]
            text = task.model.decode(tokens) if task.model.has_ended(tokens) else ""
            named = options.index(text) if text in options else None
            verdicts[place] = None if named is None else named == right
    ordered = [verdicts[place] for place in range(len(split))]
    assert found.samples is not None
    assert found.samples.right.tolist() == [one is True for one in ordered]
    assert found.metrics["unparsed"] == ordered.count(None) / len(ordered)
    assert found.metrics["unparsed"] > 0


def test_the_trained_model_chooses_right_by_both() -> None:
    from bitfront.reference.digit_llava import load_llava

    for measure in ("likelihood", "letter"):
        spec = job(measure=measure)
        family = ChoiceFamily(load_choices(spec.data, digit_llava_model(load_llava())))
        found = Evaluator(spec, family, calibrate(family.task, (1.0,))).evaluate(
            Configuration(Plan(())), SPLIT
        )
        assert found.values["error"] < 0.15


@pytest.mark.parametrize("measure", ["likelihood", "letter"])
def test_a_recovery_is_trained_on_the_right_answers(measure: str, plan: Plan) -> None:
    loaded = evaluator(measure=measure)
    recovery = Recovery(context_length=2, reduction=2, steps=8)

    bare = loaded.evaluate(Configuration(plan), SPLIT).metrics["loss_nats"]
    recovered = loaded.evaluate(Configuration(plan, recovery), SPLIT).metrics

    assert recovered["loss_nats"] != bare
    assert recovered["error"] <= 1


def test_a_recovery_that_changes_nothing_chooses_as_the_plan_does(
    loaded: Evaluator, plan: Plan
) -> None:
    """Both ways to a likelihood, from the projector on and in one run, agree."""
    task = loaded.task
    assert isinstance(task, ChoiceTask)
    recovery = Recovery(context_length=0, reduction=2, blend=0.0, steps=1)

    bare = loaded.evaluate(Configuration(plan), SPLIT)
    again = loaded.evaluate(Configuration(plan, recovery), SPLIT)

    assert again.values["error"] == bare.values["error"]
    assert again.metrics["loss_nats"] == pytest.approx(bare.metrics["loss_nats"], rel=1e-3)


@pytest.mark.parametrize("measure", ["likelihood", "letter"])
def test_an_artefact_chooses_as_was_measured(measure: str, tmp_path: Path) -> None:
    loaded = evaluator(measure=measure)
    plan = Plan.uniform([layer.name for layer in loaded.model.layers], Precision(4, 8))
    measured = loaded.evaluate(Configuration(plan), SPLIT).values["error"]
    write_packed(loaded, Configuration(plan), tmp_path, {})

    found = verify(loaded, Configuration(plan), tmp_path, measured, "packed")

    found.check()
    assert found.error == pytest.approx(measured, abs=1 / 24 + 1e-9)
    assert found.samples == 24

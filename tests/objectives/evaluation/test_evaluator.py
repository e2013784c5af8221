import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitfront.attempt import IntermediateValue
from bitfront.errors import InvalidMetric, SpecError
from bitfront.layers import Tower
from bitfront.objective import Objective
from bitfront.plan import Configuration, Distillation, Plan, Recovery, TeacherText
from bitfront.precision import FULL, Precision
from bitfront.quant.packing import packed_weight, unpacked_weight
from bitfront.spec import JobSpec, Rounding
from bitfront.trial import Evaluation
from bitfront.vlm import DualEncoder, LayeredModel, PlanSwitch
from objectives.cost.costs import bit_operations, bits_per_weight, configuration_nbytes
from objectives.data.augmentation import Augmentation
from objectives.data.classification import ClassificationTask as Task
from objectives.data.split_name import SplitName
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.classification import ClassificationFamily
from objectives.profiling.calibration import Ranges, calibrate
from objectives.profiling.moments import measure_moments
from objectives.recovery.checkpointed_training import RecoveryCheckpoint, advance
from objectives.recovery.class_training import ClassData, ClassRecovered, ClassTraining
from tests.support.scene_models import all_pixels, scene_spec, scene_task, untrained_encoder

ADAPTER = Recovery(context_length=0, reduction=4, steps=3)
PROMPT = Recovery(context_length=2, reduction=0, steps=2)


@pytest.fixture(scope="module")
def spec() -> JobSpec:
    changes = {"objectives": ["error", "nbytes", "bit_operations"]}
    data = scene_spec().data.model_dump() | {"templates": ["a picture of {}", "{}"]}
    return scene_spec(data=data, **changes)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return untrained_encoder()


@pytest.fixture(scope="module")
def task(spec: JobSpec, model: DualEncoder) -> Task:
    return scene_task(spec, model)


@pytest.fixture(scope="module")
def ranges(model: DualEncoder, task: Task) -> Ranges:
    return calibrate(task, (1.0,))


def fresh(
    spec: JobSpec,
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
    *,
    cache_nbytes: int = 1 << 30,
    features: Path | None = None,
) -> Evaluator:
    """An evaluator with a model of its own, for a model has one switch."""
    family = ClassificationFamily(replace(task, model=copy.deepcopy(model)))
    return Evaluator(spec, family, ranges, cache_nbytes=cache_nbytes, features=features)


@pytest.fixture
def evaluator(spec: JobSpec, model: DualEncoder, task: Task, ranges: Ranges) -> Evaluator:
    return fresh(spec, model, task, ranges)


def uniform(model: LayeredModel, bits: int) -> Plan:
    return Plan.uniform([layer.name for layer in model.layers], Precision(bits, 8))


def redrawn(model: DualEncoder, plan: Plan, towers: tuple[Tower, ...], seed: int) -> Plan:
    rng = random.Random(seed)
    changed = {
        layer.name: Precision(rng.choice((2, 3, 6)), 8)
        for layer in model.layers
        if layer.tower in towers
    }
    return Plan.of({**dict(plan), **changed})


def sequence(model: DualEncoder) -> list[Configuration]:
    """Changes in one layer, one tower, both towers and the recovery, and returns to each."""
    base = uniform(model, 4)
    one_layer = Plan.of({**dict(base), model.layers[5].name: Precision(2, 8)})
    text = redrawn(model, base, (Tower.TEXT,), seed=1)
    both = redrawn(model, base, (Tower.VISION, Tower.TEXT), seed=2)
    found = [Configuration(plan) for plan in (base, one_layer, text, both, base, Plan(()))]
    found += [Configuration(base, ADAPTER), Configuration(text, PROMPT), Configuration(base)]
    return [*found, *found[1:3]]


def figures(evaluation: Evaluation) -> dict[str, float]:
    """Everything measured, apart from times and cache hits."""
    assert all(evaluation.metrics[name] == value for name, value in evaluation.values.items())
    return {
        name: value
        for name, value in evaluation.metrics.items()
        if not name.startswith(("seconds.", "hits."))
    }


def test_results_are_the_same_to_the_last_bit_with_and_without_caches(
    spec: JobSpec,
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
    evaluator: Evaluator,
) -> None:
    small = fresh(spec, model, task, ranges, cache_nbytes=2_000_000)
    alone: dict[str, dict[str, float]] = {}

    for configuration in sequence(model):
        if configuration.digest not in alone:
            without = fresh(spec, model, task, ranges, cache_nbytes=0)
            alone[configuration.digest] = figures(without.evaluate(configuration))
        for caching in (evaluator, small):
            assert figures(caching.evaluate(configuration)) == alone[configuration.digest]


def test_a_race_shows_the_samples_of_an_evaluation_and_changes_no_bit(
    spec: JobSpec, model: DualEncoder, ranges: Ranges
) -> None:
    data = spec.data.model_copy(update={"batch_size": 2})
    small = spec.model_copy(update={"data": data})
    racing, alone = (
        fresh(small, model, scene_task(small, model), ranges, cache_nbytes=nbytes)
        for nbytes in (1 << 30, 0)
    )

    for configuration in sequence(model):
        reached = list(racing.race(configuration))
        found, expected = racing.evaluate(configuration), alone.evaluate(configuration)

        assert figures(found) == figures(expected)
        assert found.samples == expected.samples
        assert expected.samples is not None
        counts = [len(one.places) for one in reached]
        assert counts == sorted(set(counts))
        assert all(count < len(expected.samples) for count in counts)
        for one in reached:
            shown = expected.samples.divergence[one.places.numpy()]
            assert one.divergence.double().numpy() == pytest.approx(shown, rel=1e-5, abs=1e-7)
        assert not reached or not configuration.trained_by
    assert list(racing.race(Configuration(uniform(model, 6)))), "a new plan is raced"


def test_error_and_loss_are_those_of_zero_shot_classification(
    spec: JobSpec,
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
    evaluator: Evaluator,
) -> None:
    plan = uniform(model, 3)

    metrics = evaluator.evaluate(Configuration(plan), SplitName.TEST).metrics

    other = copy.deepcopy(model)
    PlanSwitch(other, spec.quantizer, ranges).to(plan)
    pixels = all_pixels(task, SplitName.TEST)
    with torch.no_grad():
        images = other.encode_images(pixels).double().numpy()
        texts = [other.encode_texts(tokens).double().numpy() for tokens in task.tokens]
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    classes = np.mean([t / np.linalg.norm(t, axis=1, keepdims=True) for t in texts], axis=0)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    scores = model.logit_scale * images @ classes.T
    labels = task.split(SplitName.TEST).labels.numpy()
    likelihood = scores[np.arange(len(labels)), labels] - np.log(np.exp(scores).sum(axis=1))
    assert metrics["error"] == (scores.argmax(axis=1) != labels).mean()
    assert metrics["loss_nats"] == pytest.approx(-likelihood.mean(), rel=1e-4)


def test_full_precision_by_name_is_the_model_in_sixteen_bits(
    model: DualEncoder, task: Task, evaluator: Evaluator
) -> None:
    named = Plan.uniform([layer.name for layer in model.layers], FULL)

    one, other = (evaluator.evaluate(Configuration(p)).metrics for p in (named, Plan(())))

    assert one["loss_nats"] == pytest.approx(other["loss_nats"], rel=1e-3)
    assert one["nbytes"] == other["nbytes"]


def test_values_are_the_jobs_objectives_and_metrics_hold_the_costs(
    spec: JobSpec, model: DualEncoder, evaluator: Evaluator
) -> None:
    configuration = Configuration(uniform(model, 4), ADAPTER)

    evaluation = evaluator.evaluate(configuration)

    parts = configuration_nbytes(model, configuration, spec.quantizer)
    metrics = evaluation.metrics
    assert list(evaluation.values) == ["error", "nbytes", "bit_operations"]
    assert evaluation.values["nbytes"] == sum(parts.values())
    assert {f"nbytes.{part}": count for part, count in parts.items()}.items() <= metrics.items()
    assert evaluation.values["bit_operations"] == bit_operations(model, configuration)
    assert metrics["bits_per_weight"] == bits_per_weight(model, configuration)
    assert "latency_s" not in metrics


def test_costs_are_the_objectives_that_no_recovery_changes_in_training(
    spec: JobSpec, model: DualEncoder, task: Task, ranges: Ranges
) -> None:
    named = ("error", "nbytes", "bit_operations", "activation_nbytes")
    objectives = spec.model_copy(update={"objectives": tuple(map(Objective, named))})
    evaluator = fresh(objectives, model, task, ranges)
    configuration = Configuration(uniform(model, 4), ADAPTER)

    costs = evaluator.costs(configuration)

    assert list(costs) == ["nbytes", "bit_operations", "activation_nbytes"]
    values = dict(evaluator.evaluate(configuration).values)
    del values["error"]
    assert costs == values
    assert costs["activation_nbytes"] > 0


def test_a_change_in_one_tower_takes_the_others_features_from_the_cache(
    model: DualEncoder, evaluator: Evaluator
) -> None:
    base = uniform(model, 4)
    evaluator.evaluate(Configuration(base))

    text = evaluator.evaluate(Configuration(redrawn(model, base, (Tower.TEXT,), 3))).metrics
    vision = evaluator.evaluate(Configuration(redrawn(model, base, (Tower.VISION,), 4))).metrics

    assert (text["hits.selection_features"], text["hits.captions_features"]) == (1, 0)
    assert (vision["hits.selection_features"], vision["hits.captions_features"]) == (0, 1)


@pytest.mark.parametrize("recovery", [ADAPTER, PROMPT])
def test_a_recovery_is_trained_once_for_all_splits(
    recovery: Recovery, model: DualEncoder, evaluator: Evaluator
) -> None:
    configuration = Configuration(uniform(model, 3), recovery)

    selection = evaluator.evaluate(configuration)
    test = evaluator.evaluate(configuration, SplitName.TEST)

    assert (selection.metrics["hits.recovery"], test.metrics["hits.recovery"]) == (0, 1)
    assert "seconds.recovery" not in test.metrics


def test_a_recovery_changes_the_result_and_follows_the_seed(
    spec: JobSpec, model: DualEncoder, task: Task, ranges: Ranges
) -> None:
    configuration = Configuration(uniform(model, 3), PROMPT)
    other_seed = spec.model_copy(
        update={"search": spec.search.model_copy(update={"seed": spec.search.seed + 1})}
    )

    losses = [
        fresh(job, model, task, ranges).evaluate(chosen).metrics["loss_nats"]
        for job, chosen in (
            (spec, configuration),
            (spec, configuration),
            (other_seed, configuration),
            (spec, Configuration(configuration.plan)),
        )
    ]

    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("recovery", [ADAPTER, PROMPT])
def test_a_recovery_is_trained_under_its_plan_and_taught_by_full_precision(
    recovery: Recovery,
    spec: JobSpec,
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
    evaluator: Evaluator,
) -> None:
    plan = uniform(model, 2)

    loss = evaluator.evaluate(Configuration(plan, recovery)).metrics["loss_nats"]

    other = copy.deepcopy(model)
    teacher_images, teacher_classes = towers(other, task, SplitName.TUNING)
    PlanSwitch(other, spec.quantizer, ranges).to(plan)
    images, classes = towers(other, task, SplitName.TUNING)
    data = ClassData(
        image_features=images,
        labels=task.split(SplitName.TUNING).labels,
        teacher_image_features=teacher_images,
        teacher_text_features=teacher_classes,
        text_features=classes,
        names=other.class_names(task.classes),
        scale=model.logit_scale,
    )
    training = ClassTraining(other, recovery, spec.quantizer, data, spec.search.seed)
    advance(training, recovery.steps)
    recovered = ClassRecovered.load(
        training.stored(), recovery, spec.quantizer, other, data.names, classes
    )
    shown = recovered.adapt(towers(other, task, SplitName.SELECTION)[0])
    scores = model.logit_scale * functional.normalize(shown, dim=-1) @ recovered.text_features.T
    labels = task.split(SplitName.SELECTION).labels
    assert loss == pytest.approx(functional.cross_entropy(scores, labels).item(), rel=1e-3)


REHEARSED = Recovery(context_length=2, reduction=4, steps=8)
DISTILLED = Distillation(steps=8)


def distilled(model: DualEncoder, bits: int) -> Plan:
    return replace(uniform(model, bits), distil=DISTILLED)


TRAINED = (
    lambda model: Configuration(uniform(model, 3), REHEARSED),
    lambda model: Configuration(distilled(model, 3)),
    lambda model: Configuration(distilled(model, 3), REHEARSED),
)


def test_the_first_stage_is_the_plan_alone_and_costs_no_training(
    model: DualEncoder, evaluator: Evaluator, tmp_path: Path
) -> None:
    configuration = Configuration(uniform(model, 3), REHEARSED)

    first = next(evaluator.train(configuration, tmp_path / "recovery"))

    plain = evaluator.evaluate(Configuration(configuration.plan))
    assert first == IntermediateValue(0, plain.values["error"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("made", TRAINED)
def test_a_training_in_stages_ends_with_what_an_evaluation_measures(
    spec: JobSpec,
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
    made: Callable[[DualEncoder], Configuration],
    tmp_path: Path,
) -> None:
    configuration, evaluator = made(model), fresh(spec, model, task, ranges)
    whole = fresh(spec, model, task, ranges).evaluate(configuration)

    stages = list(evaluator.train(configuration, tmp_path / "recovery"))
    # Whoever looks at a stage may evaluate something else in between.
    trained = evaluator.evaluate(configuration)

    assert [stage.step for stage in stages] == list(configuration.rungs)
    assert figures(trained) == figures(whole)
    for kind in ("distil", "recovery"):
        assert trained.metrics.get(f"hits.{kind}", 1) == 1


@pytest.mark.parametrize("made", TRAINED)
@pytest.mark.parametrize("ended", [1, 3, 5, 7])
def test_a_training_resumes_from_its_checkpoint_to_the_same_bits(
    spec: JobSpec,
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
    made: Callable[[DualEncoder], Configuration],
    ended: int,
    tmp_path: Path,
) -> None:
    search = spec.search.model_copy(update={"checkpoint_s": 0})
    spec = spec.model_copy(update={"search": search})
    configuration = made(model)
    ended = min(ended, len(configuration.rungs))
    undisturbed = fresh(spec, model, task, ranges)
    all_stages = list(undisturbed.train(configuration, tmp_path / "undisturbed"))
    killed = fresh(spec, model, task, ranges, features=tmp_path / "kept").train(
        configuration, tmp_path / "recovery"
    )
    shown = [next(killed) for _ in range(ended)]
    del killed

    again = fresh(spec, model, task, ranges, features=tmp_path / "kept")
    rest = list(again.train(configuration, tmp_path / "recovery"))

    # What was shown before anything was saved is shown again.
    is_repeated = rest[:1] == shown[-1:]
    assert [*shown, *rest[int(is_repeated) :]] == all_stages
    assert figures(again.evaluate(configuration)) == figures(undisturbed.evaluate(configuration))


def test_a_checkpoint_of_another_configuration_is_left_alone(
    model: DualEncoder, evaluator: Evaluator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "recovery"
    evaluator.checkpoint(Configuration(uniform(model, 2), REHEARSED), path)
    other = Configuration(uniform(model, 3), REHEARSED)
    identity = evaluator.checkpoint(Configuration(uniform(model, 2), REHEARSED), path)
    training = evaluator.scorer.begin(other)
    training.step()
    RecoveryCheckpoint(path, "another", every_s=0).save_if_due(training)

    assert identity.exists
    list(evaluator.train(other, path))

    assert "trained from its start" in caplog.text


def test_features_that_memory_has_no_room_for_come_from_files(
    spec: JobSpec,
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configurations = sequence(model)
    expected = [figures(fresh(spec, model, task, ranges).evaluate(c)) for c in configurations]
    monkeypatch.setattr("objectives.evaluation.evaluator.MEMORY_NBYTES", 1)

    first, second = (
        Evaluator(
            spec,
            ClassificationFamily(replace(task, model=copy.deepcopy(model))),
            ranges,
            features=tmp_path,
        )
        for _ in range(2)
    )

    assert [figures(first.evaluate(c)) for c in configurations] == expected
    assert [figures(second.evaluate(c)) for c in configurations] == expected
    assert len(list(tmp_path.glob("*.safetensors"))) > 5
    images: list[int] = []
    with second.model.watch_inputs(lambda *_: images.append(1)):
        second.evaluate(configurations[0])
    assert images == []


def test_views_and_shots_choose_what_a_recovery_is_trained_on(
    spec: JobSpec, model: DualEncoder, task: Task, evaluator: Evaluator
) -> None:
    assert isinstance(evaluator.scorer, ClassificationScorer)
    labels = task.split(SplitName.TUNING).labels.tolist()
    few = replace(ADAPTER, shots=1, views=2)

    data = evaluator.scorer._data(uniform(model, 3), few)
    whole = evaluator.scorer._data(uniform(model, 3), ADAPTER)

    chosen = [n for n, label in enumerate(labels) if label not in labels[:n]]
    assert data.labels.tolist() == [labels[n] for n in chosen] * 3
    count = len(chosen)
    assert torch.equal(data.image_features[:count], whole.image_features[chosen])
    assert torch.equal(data.teacher_image_features[:count], whole.teacher_image_features[chosen])
    views = torch.split(data.image_features, count)
    assert not torch.allclose(views[1], views[0], atol=1e-3)
    assert not torch.allclose(views[2], views[1], atol=1e-3)
    evaluator.switch.to(uniform(model, 3))
    pixels = all_pixels(task, SplitName.TUNING)
    augmented = Augmentation(spec.data.seed, horizontal_flip=False).view(pixels, 2, 0)
    with torch.no_grad():
        features = evaluator.model.encode_images(augmented)  # type: ignore[attr-defined]
    torch.testing.assert_close(views[2], features[chosen], rtol=1e-4, atol=1e-4)


def test_a_teacher_with_a_prompt_learns_it_in_full_precision(
    spec: JobSpec, model: DualEncoder, task: Task, ranges: Ranges, evaluator: Evaluator
) -> None:
    assert isinstance(evaluator.scorer, ClassificationScorer)
    taught = replace(ADAPTER, teacher=TeacherText.PROMPT, steps=5)

    found = evaluator.scorer._data(uniform(model, 3), taught).teacher_text_features

    other = copy.deepcopy(model)
    images, classes = towers(other, task, SplitName.TUNING)
    data = ClassData(
        image_features=images,
        labels=task.split(SplitName.TUNING).labels,
        teacher_image_features=images,
        teacher_text_features=classes,
        text_features=classes,
        names=other.class_names(task.classes),
        scale=model.logit_scale,
    )
    coop = Recovery(context_length=8, reduction=0, distillation=0.0, steps=5)
    training = ClassTraining(other, coop, spec.quantizer, data, spec.search.seed)
    advance(training, 5)
    learnt = ClassRecovered.load(
        training.stored(), coop, spec.quantizer, other, data.names, classes
    )
    torch.testing.assert_close(found, learnt.text_features, rtol=1e-3, atol=1e-4)
    plain = evaluator.scorer._data(uniform(model, 3), ADAPTER).teacher_text_features
    assert not torch.allclose(found, plain, atol=1e-2)


def towers(model: DualEncoder, task: Task, split: SplitName) -> tuple[Tensor, Tensor]:
    """Image features, and the classes' mean features, under the plan that is on the model."""
    with torch.no_grad():
        images = model.encode_images(all_pixels(task, split))
        texts = [functional.normalize(model.encode_texts(t), dim=-1) for t in task.tokens]
    return images, functional.normalize(torch.stack(texts).mean(dim=0), dim=-1)


def test_a_latency_is_measured_where_the_job_asks_for_it(
    spec: JobSpec, model: DualEncoder, task: Task, ranges: Ranges
) -> None:
    wanted = spec.model_copy(update={"objectives": (*spec.objectives, Objective.LATENCY_S)})

    evaluation = fresh(wanted, model, task, ranges).evaluate(Configuration(Plan(())))

    assert 0 < evaluation.values["latency_s"] < 10


@pytest.mark.parametrize(
    "asked",
    [
        {"objectives": ["error", "activation_nbytes"]},
        {"constraints": {"max_activation_nbytes": "1MB"}},
    ],
)
def test_the_memory_of_activations_is_measured_where_the_job_asks_for_it(
    spec: JobSpec, model: DualEncoder, task: Task, ranges: Ranges, asked: dict[str, object]
) -> None:
    job = JobSpec.model_validate({**spec.model_dump(mode="json"), **asked})
    evaluator = fresh(job, model, task, ranges)
    narrow, wide = (
        Configuration(Plan.uniform([layer.name for layer in model.layers], Precision(4, bits)))
        for bits in (4, 8)
    )

    small, large = (evaluator.evaluate(configuration) for configuration in (narrow, wide))
    tested = evaluator.evaluate(wide, SplitName.TEST)

    name = "activation_nbytes"
    assert 0 < small.metrics[name] < large.metrics[name]
    assert tested.metrics[name] == large.metrics[name]
    assert (name in small.values) == ("objectives" in asked)


def test_features_that_are_not_finite_are_refused(
    spec: JobSpec, model: DualEncoder, task: Task, ranges: Ranges
) -> None:
    broken = fresh(spec, model, task, ranges)
    broken.model.put_weight(
        "visual.proj", torch.full_like(broken.model.weight("visual.proj"), torch.nan)
    )

    with pytest.raises(InvalidMetric, match="error came out as nan"):
        broken.evaluate(Configuration(Plan(())))


def test_an_unknown_layer_is_refused(evaluator: Evaluator) -> None:
    with pytest.raises(SpecError, match="no layer 'nowhere'"):
        evaluator.evaluate(Configuration(Plan.of({"nowhere": Precision(4, 8)})))


def test_a_job_becomes_an_evaluator_of_the_trained_reference() -> None:
    samples = {"calibration": 16, "tuning": 16, "selection": 200, "test": 16}
    spec = scene_spec(
        data={"source": "reference", "samples": samples}, space={"clips": [0.99], "groups": [0]}
    )

    evaluator = Evaluator.from_spec(spec)
    full = evaluator.evaluate(Configuration(Plan(())))
    two_bits = evaluator.evaluate(Configuration(uniform(evaluator.model, 2)))

    assert full.values["error"] < 0.25
    assert two_bits.values["error"] > full.values["error"] + 0.1
    assert all(set(clips) == {0.99, 1.0} for clips in evaluator.ranges.values())


def test_descent_keeps_at_two_bits_what_nearest_codes_lose() -> None:
    samples = {"calibration": 128, "tuning": 16, "selection": 300, "test": 16}
    errors, sizes = [], []
    for rounding in (Rounding.NEAREST, Rounding.GPTQ, Rounding.DESCENT):
        spec = scene_spec(
            data={"source": "reference", "samples": samples},
            quantizer={"rounding": rounding, "target": "own"},
        )
        evaluator = Evaluator.from_spec(spec)
        found = evaluator.evaluate(Configuration(uniform(evaluator.model, 2)))
        errors.append(found.values["error"])
        sizes.append(found.values["nbytes"])

    nearest, gptq, descent = errors
    assert descent < gptq < nearest
    assert descent < nearest / 2
    assert len(set(sizes)) == 1


def test_a_packed_weight_is_the_one_that_a_trial_measured() -> None:
    spec = scene_spec(
        data={"source": "reference", "samples": {"calibration": 32, "selection": 16}},
        quantizer={"rounding": "descent", "target": "own"},
    )
    evaluator = Evaluator.from_spec(spec)
    moments, precision = measure_moments(evaluator.task), Precision(3, 8, group=16)
    names = [layer.name for layer in evaluator.model.layers]
    evaluator.switch.to(Plan.uniform(names, precision))

    for layer in evaluator.model.layers:
        original = evaluator.model.weight(layer.name)
        put_on = evaluator.model.modules(layer.name)[0].get_parameter("weight")
        moment = moments.get(layer.name)
        tensors = packed_weight(original, precision, spec.quantizer, moment)
        read_back = unpacked_weight(tensors, layer.rows, layer.columns, precision, spec.quantizer)
        assert torch.equal(read_back, put_on.flatten(1))


def test_the_divergence_is_that_from_full_precision_by_hand(
    evaluator: Evaluator, model: DualEncoder, task: Task
) -> None:
    plan = uniform(model, 3)

    evaluation = evaluator.evaluate(Configuration(plan))

    encoder = evaluator.model
    assert isinstance(encoder, DualEncoder)

    def log_p(plan: Plan) -> Tensor:
        evaluator.switch.to(plan)
        with torch.no_grad():
            images = encoder.encode_images(all_pixels(task, SplitName.SELECTION))
            texts = [encoder.encode_texts(part) for part in task.tokens]
        units = torch.stack([functional.normalize(part, dim=-1) for part in texts]).mean(dim=0)
        cosine = functional.normalize(images, dim=-1) @ functional.normalize(units, dim=-1).T
        scores: Tensor = encoder.logit_scale * cosine
        return scores.double().log_softmax(dim=-1)

    full, changed = log_p(Plan(())), log_p(plan)
    wanted = (full.exp() * (full - changed)).sum(dim=-1)
    samples, metrics = evaluation.samples, evaluation.metrics
    assert samples is not None
    assert samples.divergence == pytest.approx(wanted.numpy(), rel=2e-2, abs=1e-7)
    assert metrics["divergence"] == pytest.approx(samples.divergence.mean(), rel=1e-5)
    assert metrics["error"] == pytest.approx(1 - samples.right.mean())
    spread = samples.divergence.std(ddof=1) / len(samples) ** 0.5
    assert metrics["divergence_se"] == pytest.approx(spread)
    share = metrics["error"]
    assert metrics["error_se"] == pytest.approx((share * (1 - share) / len(samples)) ** 0.5)


def test_full_precision_diverges_from_nothing(evaluator: Evaluator, model: DualEncoder) -> None:
    in_16_bits = Plan.uniform([layer.name for layer in model.layers], FULL)

    assert evaluator.evaluate(Configuration(Plan(()))).metrics["divergence"] == 0.0
    assert evaluator.evaluate(Configuration(in_16_bits)).metrics["divergence"] < 1e-5

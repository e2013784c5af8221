import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bitfront.errors import InvalidModel, SpecError
from bitfront.layers import Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import InputRange, LearnedBounds, input_grid, input_levels
from bitfront.reference.digit_llava import build_llava, load_llava
from bitfront.spec import DataSpec, QuantizerSpec, VisionSpec
from bitfront.vlm import GenerativeModel, PlanSwitch
from bitfront.vlm.loaders.reference import digit_llava_model
from objectives.data.questions import QuestionTask, load_questions
from objectives.data.split_name import SplitName
from objectives.profiling.calibration import Ranges, calibrate
from objectives.profiling.entropy import TEMPERATURE, Chain, entropy_nats, soft_assignment
from objectives.profiling.vision import (
    LARGEST_FACTOR,
    SMALLEST_FACTOR,
    TrainedBounds,
    VisionEpoch,
    optimise_vision,
)
from objectives.profiling.vision_losses import (
    ENTROPY_VALUES,
    LossParts,
    Sample,
    VisionLoss,
    soft_entropy,
)

SPEC = VisionSpec(samples=5, epochs=2, batch_size=2, rate=0.02)
QUANTIZER = QuantizerSpec(scale_search=False)


def questions(model: GenerativeModel, count: int) -> QuestionTask:
    samples = {"calibration": count, "tuning": 1, "selection": 1, "test": 1}
    return load_questions(
        DataSpec.model_validate({"source": "reference", "samples": samples}), model
    )


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return digit_llava_model(build_llava(seed=5))


@pytest.fixture(scope="module")
def task(model: GenerativeModel) -> QuestionTask:
    return questions(model, 6)


@pytest.fixture(scope="module")
def ranges(model: GenerativeModel, task: QuestionTask) -> Ranges:
    return calibrate(task, (1.0, 0.99))


@pytest.fixture(scope="module")
def loss(model: GenerativeModel, ranges: Ranges) -> VisionLoss:
    return VisionLoss(model, ranges, SPEC)


@pytest.fixture(scope="module")
def samples(task: QuestionTask, loss: VisionLoss) -> list[Sample]:
    split = task.split(SplitName.CALIBRATION)
    return [loss.sample(split.read(number)) for number in range(len(split.batches))]


@pytest.fixture(scope="module")
def trained() -> tuple[GenerativeModel, QuestionTask, Ranges]:
    model = digit_llava_model(load_llava())
    task = questions(model, 24)
    return model, task, calibrate(task, (1.0,))


@pytest.fixture
def bounds(model: GenerativeModel, ranges: Ranges) -> TrainedBounds:
    return TrainedBounds(model, ranges, SPEC.activation_bits)


@contextmanager
def quantized(model: GenerativeModel, ranges: Ranges, bounds: TrainedBounds) -> Iterator[None]:
    with bounds.on(model, QUANTIZER, ranges, SPEC.weight_bits):
        yield


def vision_plan(model: GenerativeModel, precision: Precision) -> Plan:
    layers = [layer.name for layer in model.layers if layer.tower is Tower.VISION]
    return Plan.uniform(layers, precision)


def inputs_of(model: GenerativeModel, sample: Sample) -> tuple[dict[str, Tensor], Tensor]:
    """Every layer's input, and the logits."""
    seen: dict[str, Tensor] = {}
    with model.watch_inputs(seen.__setitem__):
        logits = model.answer_logits(sample.batch)
    return seen, logits


def measured_entropies(
    model: GenerativeModel, loss: VisionLoss, sample: Sample, quota: int
) -> list[float]:
    """Of the groups' inputs under whatever is on the model, as the partition measures it."""
    chain = Chain(loss.groups, TEMPERATURE)
    with torch.no_grad(), model.watch_inputs(lambda name, x: chain.add(name, x, quota)):
        model.answer_logits(sample.batch)
    found = {entropy.layer: entropy.entropy for entropy in chain.entropies()}
    return [found[group.lead.name] for group in loss.groups]


def test_entropy_of_values_is_that_of_their_mean_assignment() -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    levels = input_levels(InputRange(-1.0, 2.0), 4)

    found = float(soft_entropy(values, levels))

    nats = entropy_nats(soft_assignment(values, levels).double().mean(dim=0))
    assert found == pytest.approx(nats / math.log(16), rel=1e-5)


def test_entropy_has_the_gradient_of_its_finite_differences() -> None:
    values = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    levels = torch.linspace(-2, 2, 8, dtype=torch.float64)

    assert torch.autograd.gradcheck(soft_entropy, (values.requires_grad_(), levels))


def test_entropy_has_a_gradient_where_most_levels_are_far_away() -> None:
    values = torch.tensor([0.0, 0.4], requires_grad=True)

    (gradient,) = torch.autograd.grad(soft_entropy(values, torch.arange(256) - 0.0), values)

    assert gradient.isfinite().all()
    assert gradient[1] > 0


def test_input_groups_have_the_entropies_that_the_partition_measures(
    model: GenerativeModel, loss: VisionLoss, samples: list[Sample]
) -> None:
    for sample in samples:
        expected = measured_entropies(model, loss, sample, ENTROPY_VALUES)

        found = loss.parts(sample).entropies

        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_input_groups_are_the_inputs_after_the_vision_tower_each_once(
    model: GenerativeModel, loss: VisionLoss
) -> None:
    sources = [layer.source for layer in model.layers if layer.tower is not Tower.VISION]

    assert [group.lead.source for group in loss.groups] == list(dict.fromkeys(sources))


def test_full_precision_has_no_errors(loss: VisionLoss, samples: list[Sample]) -> None:
    parts = loss.parts(samples[0])

    assert float(parts.tower_error) == float(parts.output_error) == 0


def test_errors_are_those_under_the_plan_of_the_same_precision(
    model: GenerativeModel,
    ranges: Ranges,
    loss: VisionLoss,
    samples: list[Sample],
    bounds: TrainedBounds,
) -> None:
    entry = next(layer.name for layer in model.layers if layer.tower is Tower.PROJECTOR)
    exact, exact_logits = inputs_of(model, samples[0])
    switch = PlanSwitch(model, QUANTIZER, ranges)
    switch.to(vision_plan(model, Precision(SPEC.weight_bits, SPEC.activation_bits)))
    rounded, logits = inputs_of(model, samples[0])
    switch.clear()

    with quantized(model, ranges, bounds), torch.no_grad():
        parts = loss.parts(samples[0])

    for found, changed, given in (
        (parts.tower_error, rounded[entry], exact[entry]),
        (parts.output_error, logits, exact_logits),
    ):
        first, second = changed.detach().double().numpy(), given.detach().double().numpy()
        expected = np.linalg.norm(first - second) / np.linalg.norm(second)
        assert float(found) == pytest.approx(expected, rel=1e-4)
    answers = samples[0].batch.answers
    chosen = logits.log_softmax(dim=-1).gather(-1, answers[..., None])
    assert float(parts.language) == pytest.approx(-float(chosen.mean()), rel=1e-5)


def test_influences_are_the_norms_that_plain_autograd_finds(
    model: GenerativeModel,
    ranges: Ranges,
    loss: VisionLoss,
    samples: list[Sample],
    bounds: TrainedBounds,
) -> None:
    squares = np.zeros(len(loss.groups))
    with quantized(model, ranges, bounds):
        found = loss.influences(samples, bounds.factors)
        for sample in samples:
            seen, logits = inputs_of(model, sample)
            error = (logits - sample.logits).square().sum()
            gradients = torch.autograd.grad(error, [seen[group.lead.name] for group in loss.groups])
            squares += [float(gradient.double().square().sum()) for gradient in gradients]

    assert not found.requires_grad
    assert float(found.mean()) == pytest.approx(1)
    norms = np.sqrt(squares)
    np.testing.assert_allclose(found.numpy(), norms / norms.mean(), rtol=1e-4)


def test_influences_are_equal_where_nothing_is_lost(
    model: GenerativeModel, ranges: Ranges, loss: VisionLoss, samples: list[Sample]
) -> None:
    bounds = TrainedBounds(model, ranges, SPEC.activation_bits)
    with quantized(model, ranges, bounds):
        lossless = loss.sample(samples[0].batch)

        assert loss.influences([lossless], bounds.factors).tolist() == [1] * len(loss.groups)


def test_total_adds_entropies_and_errors_with_their_weights(loss: VisionLoss) -> None:
    def total(language: float, entropy: float, tower: float, output: float) -> float:
        entropies = torch.full((len(loss.groups),), entropy)
        parts = LossParts(
            torch.tensor(language), entropies, torch.tensor(tower), torch.tensor(output)
        )
        return float(loss.total(parts, torch.ones(len(loss.groups)), 0.25))

    assert total(1.0, 0.0, 0.0, 0.0) == 1
    assert total(0.0, 1.0, 0.0, 0.0) == pytest.approx(0.25 * len(loss.groups))
    assert total(0.0, 0.0, 1.0, 0.0) == pytest.approx(SPEC.error_weight)
    assert total(0.0, 0.0, 0.0, 1.0) == pytest.approx(SPEC.error_weight * SPEC.output_weight)


def test_bounds_have_the_gradients_of_lsq_plus(
    model: GenerativeModel, ranges: Ranges, bounds: TrainedBounds
) -> None:
    generator = torch.Generator().manual_seed(2)
    known = ranges[bounds.layers[1]][1.0]
    inputs = 2 * known.high * torch.randn(200, generator=generator)
    incoming = torch.randn(200, generator=generator)

    given = (incoming * bounds.quantize(1, inputs)).sum()
    (found,) = torch.autograd.grad(given, bounds.factors)

    scale, zero = input_grid(torch.tensor(known.low), torch.tensor(known.high), 4)
    expected = np.zeros(2)
    for x, g in zip(inputs.tolist(), incoming.tolist(), strict=True):
        multiple = round(x / float(scale))
        if multiple < -float(zero):
            expected[0] += g * known.low
        elif multiple > 15 - float(zero):
            expected[1] += g * known.high
        else:
            share = (multiple - x / float(scale)) / 15
            expected += g * share * np.array([-known.low, known.high])
    np.testing.assert_allclose(found[1].numpy(), expected, rtol=1e-4)
    assert not found[[0, *range(2, len(found))]].any()


def test_every_bound_has_a_gradient(
    model: GenerativeModel,
    ranges: Ranges,
    loss: VisionLoss,
    samples: list[Sample],
    bounds: TrainedBounds,
) -> None:
    with quantized(model, ranges, bounds):
        parts = loss.parts(samples[0])
        total = loss.total(parts, torch.ones(len(loss.groups)), 0.1)
        (gradient,) = torch.autograd.grad(total, bounds.factors)

    assert bounds.layers == [layer.name for layer in model.layers if layer.tower is Tower.VISION]
    for layer, (low, high) in zip(bounds.layers, gradient.tolist(), strict=True):
        known = ranges[layer][1.0]
        assert (low != 0) == (known.low < 0)
        assert (high != 0) == (known.high > 0)


def test_learned_bounds_give_the_bits_that_they_were_trained_with(
    model: GenerativeModel, ranges: Ranges, samples: list[Sample], bounds: TrainedBounds
) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        bounds.factors.uniform_(0.3, 1.5, generator=generator)
        with quantized(model, ranges, bounds):
            expected = model.answer_logits(samples[0].batch)
    switch = PlanSwitch(model, QUANTIZER, ranges, bounds=bounds.learned())
    switch.to(vision_plan(model, Precision(SPEC.weight_bits, SPEC.activation_bits)))

    found = model.answer_logits(samples[0].batch)
    switch.clear()

    assert torch.equal(found, expected)


def test_the_first_epoch_reports_the_loss_of_the_formula(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges
) -> None:
    still = SPEC.model_copy(update={"rate": 1e-12, "epochs": 1, "entropy_share": 0.3})
    epochs: list[VisionEpoch] = []

    optimise_vision(model, task, ranges, QUANTIZER, still, 0, on_epoch=epochs.append)

    (epoch,) = epochs
    error = epoch.tower_error + still.output_weight * epoch.output_error
    expected = (1 + 0.3) * epoch.language_nats + still.error_weight * error
    assert epoch.loss == pytest.approx(expected, rel=1e-4)


@dataclass(frozen=True)
class Cut:
    """A trained model whose vision tower clips much and rounds little: the errors are smooth."""

    model: GenerativeModel
    loss: VisionLoss
    sample: Sample
    bounds: TrainedBounds


@pytest.fixture
def cut(trained: tuple[GenerativeModel, QuestionTask, Ranges]) -> Iterator[Cut]:
    model, task, ranges = trained
    spec = VisionSpec(activation_bits=8)
    loss = VisionLoss(model, ranges, spec)
    sample = loss.sample(task.split(SplitName.CALIBRATION).read(0))
    bounds = TrainedBounds(model, ranges, spec.activation_bits)
    with torch.no_grad():
        bounds.factors.fill_(0.6)
    with bounds.on(model, QUANTIZER, ranges, spec.weight_bits):
        yield Cut(model, loss, sample, bounds)


@pytest.mark.parametrize("part", ["tower_error", "output_error"])
def test_gradients_of_clipping_are_those_of_finite_differences(part: str, cut: Cut) -> None:
    def value() -> Tensor:
        found: Tensor = getattr(cut.loss.parts(cut.sample), part)
        return found

    (gradient,) = torch.autograd.grad(value(), cut.bounds.factors)

    with torch.no_grad():
        cut.bounds.factors.fill_(0.65)
        above = float(value())
        cut.bounds.factors.fill_(0.55)
        below = float(value())
    assert float(gradient.sum()) == pytest.approx((above - below) / 0.1, rel=0.15)


@pytest.mark.parametrize("sign", [1, -1])
def test_steps_down_the_entropy_term_lower_the_entropies(sign: int, cut: Cut) -> None:
    ones, nothing = torch.ones(len(cut.loss.groups)), torch.tensor(0.0)
    before = measured_entropies(cut.model, cut.loss, cut.sample, ENTROPY_VALUES)

    for _ in range(5):
        entropies = cut.loss.parts(cut.sample).entropies
        alone = LossParts(nothing, entropies, nothing, nothing)
        total = sign * cut.loss.total(alone, ones, entropy_weight=1.0)
        (gradient,) = torch.autograd.grad(total, cut.bounds.factors)
        with torch.no_grad():
            cut.bounds.factors -= 0.02 * gradient.sign()

    after = measured_entropies(cut.model, cut.loss, cut.sample, ENTROPY_VALUES)
    assert sign * np.mean(after) < sign * np.mean(before) - 1e-3


def test_a_trained_model_loses_less_from_epoch_to_epoch(
    trained: tuple[GenerativeModel, QuestionTask, Ranges],
) -> None:
    model, task, ranges = trained
    spec = VisionSpec(samples=24, epochs=4, rate=0.03, entropy_share=0.1)
    epochs: list[VisionEpoch] = []

    learned = optimise_vision(model, task, ranges, QUANTIZER, spec, 0, on_epoch=epochs.append)

    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    assert epochs[-1].loss < 0.98 * epochs[0].loss
    assert epochs[-1].tower_error < 0.95 * epochs[0].tower_error
    assert all(set(scales) == {spec.activation_bits} for scales in learned.values())
    factors = factors_of(learned)
    assert (factors != 1).mean() > 0.9
    assert factors.min() >= SMALLEST_FACTOR
    assert factors.max() <= LARGEST_FACTOR


def test_factors_stay_in_their_range(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges
) -> None:
    fast = SPEC.model_copy(update={"rate": 5.0})

    factors = factors_of(optimise_vision(model, task, ranges, QUANTIZER, fast, 0))

    assert factors.min() >= SMALLEST_FACTOR
    assert factors.max() == LARGEST_FACTOR


def factors_of(learned: LearnedBounds) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    ends = [(s.low, s.high) for scales in learned.values() for s in scales.values()]
    return np.array(ends).flatten()


def test_the_seed_decides_and_nothing_else(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges
) -> None:
    first = optimise_vision(model, task, ranges, QUANTIZER, SPEC, 0)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(99)
        again = optimise_vision(model, task, ranges, QUANTIZER, SPEC, 0)
    other = optimise_vision(model, task, ranges, QUANTIZER, SPEC, 1)

    assert first == again
    assert first != other


def test_only_the_first_samples_are_trained_on(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges, loss: VisionLoss
) -> None:
    split = task.split(SplitName.CALIBRATION)
    few = SPEC.model_copy(update={"samples": 3, "batch_size": 1, "rate": 1e-12, "epochs": 1})
    epochs: list[VisionEpoch] = []

    optimise_vision(model, task, ranges, QUANTIZER, few, 0, on_epoch=epochs.append)

    bounds = TrainedBounds(model, ranges, SPEC.activation_bits)
    found = []
    for number, places in enumerate(split.batches):
        for row in (places < 3).nonzero().flatten():
            sample = loss.sample(split.read(number).pick(row[None]))
            with quantized(model, ranges, bounds), torch.no_grad():
                parts = loss.parts(sample)
            found.append((float(parts.language), float(parts.entropies.mean())))
    assert len(found) == 3
    expected = np.mean(found, axis=0)
    assert [epochs[0].language_nats, epochs[0].entropy] == pytest.approx(expected, rel=1e-5)


class Stopped(Exception):
    """What an interruption looks like."""


def stopping(after: int, seen: list[VisionEpoch]) -> Callable[[VisionEpoch], None]:
    def note(epoch: VisionEpoch) -> None:
        seen.append(epoch)
        if epoch.epoch == after:
            raise Stopped

    return note


@pytest.mark.parametrize("stopped", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    stopped: int, model: GenerativeModel, task: QuestionTask, ranges: Ranges, tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    through: list[VisionEpoch] = []
    expected = optimise_vision(
        model, task, ranges, QUANTIZER, SPEC, 0, checkpoint=whole, on_epoch=through.append
    )
    begun: list[VisionEpoch] = []
    stop = stopping(stopped, begun)
    with pytest.raises(Stopped):
        optimise_vision(model, task, ranges, QUANTIZER, SPEC, 0, checkpoint=part, on_epoch=stop)

    rest: list[VisionEpoch] = []
    found = optimise_vision(
        model, task, ranges, QUANTIZER, SPEC, 0, checkpoint=part, on_epoch=rest.append
    )

    assert found == expected
    assert begun + rest == through
    assert part.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.iterdir()) == [part, whole]


@pytest.fixture(scope="module")
def checkpoint(
    model: GenerativeModel,
    task: QuestionTask,
    ranges: Ranges,
    tmp_path_factory: pytest.TempPathFactory,
) -> bytes:
    path = tmp_path_factory.mktemp("vision") / "checkpoint"
    optimise_vision(model, task, ranges, QUANTIZER, SPEC, 0, checkpoint=path)
    return path.read_bytes()


def damaged(content: bytes) -> dict[str, bytes]:
    """Files that are not a checkpoint of ours any more."""
    flipped = bytearray(content)
    flipped[-5] ^= 1
    header_size = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:header_size])
    ((key, text),) = header["__metadata__"].items()
    changed = json.loads(text) | {"epochs": 1}
    header["__metadata__"] = {key: json.dumps(changed)}
    edited = json.dumps(header).encode()
    return {
        "empty": b"",
        "truncated": content[:-1],
        "cut in the header": content[:20],
        "flipped": bytes(flipped),
        "edited": len(edited).to_bytes(8, "little") + edited + content[header_size:],
        "text": b"not a checkpoint at all",
    }


@pytest.mark.parametrize(
    "how", ["empty", "truncated", "cut in the header", "flipped", "edited", "text"]
)
def test_a_damaged_checkpoint_is_refused_and_left_alone(
    how: str,
    checkpoint: bytes,
    model: GenerativeModel,
    task: QuestionTask,
    ranges: Ranges,
    tmp_path: Path,
) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(damaged(checkpoint)[how])

    with pytest.raises(InvalidModel, match=r"checkpoint.*damaged"):
        optimise_vision(model, task, ranges, QUANTIZER, SPEC, 0, checkpoint=path)

    assert path.read_bytes() == damaged(checkpoint)[how]


def test_a_file_of_other_tensors_is_refused(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"factors": torch.ones(2)}, path)

    with pytest.raises(InvalidModel, match="not a checkpoint"):
        optimise_vision(model, task, ranges, QUANTIZER, SPEC, 0, checkpoint=path)


def test_a_checkpoint_of_something_else_is_refused(
    checkpoint: bytes, model: GenerativeModel, task: QuestionTask, ranges: Ranges, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(checkpoint)
    longer = SPEC.model_copy(update={"epochs": 3})
    others: list[tuple[GenerativeModel, QuestionTask, VisionSpec, int]] = [
        (model, task, SPEC, 1),
        (model, task, longer, 0),
        (model, questions(model, 7), SPEC, 0),
        (digit_llava_model(build_llava(seed=6)), task, SPEC, 0),
    ]

    for foreign, data, spec, seed in others:
        with pytest.raises(InvalidModel, match="another model, other samples or other settings"):
            optimise_vision(foreign, data, ranges, QUANTIZER, spec, seed, checkpoint=path)
    assert path.read_bytes() == checkpoint


def hooks_of(model: GenerativeModel) -> list[tuple[int, ...]]:
    return [
        (*module._forward_pre_hooks, *module._forward_hooks) for module in model.module.modules()
    ]


def test_the_model_is_left_as_it_was_whatever_happens(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges, samples: list[Sample]
) -> None:
    before = model.answer_logits(samples[0].batch)
    hooks = hooks_of(model)

    optimise_vision(model, task, ranges, QUANTIZER, SPEC, 0)
    with pytest.raises(Stopped):
        optimise_vision(model, task, ranges, QUANTIZER, SPEC, 0, on_epoch=stopping(1, []))

    assert torch.equal(model.answer_logits(samples[0].batch), before)
    assert hooks_of(model) == hooks
    for parameter in model.module.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_a_loss_that_is_not_finite_is_an_error(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges
) -> None:
    huge = SPEC.model_copy(update={"error_weight": 1e39})

    with pytest.raises(InvalidModel, match="loss of visual-encoder optimisation came out as"):
        optimise_vision(model, task, ranges, QUANTIZER, huge, 0)


def test_inputs_without_static_codes_are_refused(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges
) -> None:
    wide = SPEC.model_copy(update={"activation_bits": 16})
    dynamic = QuantizerSpec(activations="dynamic")

    with pytest.raises(SpecError, match="activation_bits are 16"):
        optimise_vision(model, task, ranges, QUANTIZER, wide, 0)
    with pytest.raises(SpecError, match="activations is dynamic"):
        optimise_vision(model, task, ranges, dynamic, SPEC, 0)


def test_a_layer_that_was_not_calibrated_is_refused(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges
) -> None:
    missing = next(layer.name for layer in model.layers if layer.tower is Tower.LANGUAGE)
    fewer = {layer: known for layer, known in ranges.items() if layer != missing}

    with pytest.raises(SpecError, match=f"input range of {missing} is not known"):
        optimise_vision(model, task, fewer, QUANTIZER, SPEC, 0)


def test_questions_without_images_are_refused(
    model: GenerativeModel, ranges: Ranges, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    line = json.dumps({"question": "Is there a three?", "answers": ["yes"]})
    path.write_text("\n".join([line] * 8))
    samples = {"calibration": 2, "tuning": 2, "selection": 2, "test": 2}
    data = {"source": "questions", "path": str(path), "prompt": "<image> {}", "samples": samples}
    text_only = load_questions(DataSpec.model_validate(data), model)

    with pytest.raises(SpecError, match="none of the first 5 calibration questions has one"):
        optimise_vision(model, text_only, ranges, QUANTIZER, SPEC, 0)

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bitfront.errors import InvalidModel, SpecError
from bitfront.plan import ClassPosition, Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.quant.weights import fake_quantize_weight
from bitfront.reference.scenes import CLASSES
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder, PlanSwitch
from bitfront.vlm.models.captions import ClassNames
from objectives.evaluation.evaluator import Evaluator
from objectives.recovery.adapter import LINEARS, Adapter, AdapterShape, StoredAdapter
from objectives.recovery.checkpointed_training import RecoveryCheckpoint, advance
from objectives.recovery.class_training import (
    CLASSES_A_STEP,
    ClassData,
    ClassRecovered,
    ClassTraining,
)
from objectives.recovery.distillation import p4q_loss, teacher_cross_entropy
from objectives.recovery.training import SAMPLES_A_STEP
from tests.support.scene_models import scene_spec, untrained_encoder

STATIC = QuantizerSpec()
DYNAMIC = QuantizerSpec(activations="dynamic")
BOTH = Recovery(context_length=2, reduction=4, adapter_bits=4, steps=4)
PROMPT = replace(BOTH, reduction=0)
ADAPTER = replace(BOTH, context_length=0)
TUNED = Recovery(context_length=0, distillation=4.0, steps=60)


@dataclass(frozen=True)
class Quantized:
    """An untrained model with a plan of 3-bit weights and 8-bit inputs on it, and its data."""

    model: DualEncoder
    data: ClassData


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    model = untrained_encoder()
    names = [layer.name for layer in model.layers]
    PlanSwitch(model, DYNAMIC, {}).to(Plan.uniform(names, Precision(3, 8)))
    generator = torch.Generator().manual_seed(0)
    classes = model.class_names(CLASSES[:12])
    images = torch.randn(40, model.feature_width, generator=generator)
    teacher_text = torch.randn(12, model.feature_width, generator=generator)
    with torch.no_grad():
        text = model.encode_texts(classes.tokens)
    data = ClassData(
        image_features=images,
        labels=torch.randint(12, (40,), generator=generator),
        teacher_image_features=images + 0.3 * torch.randn(images.shape, generator=generator),
        teacher_text_features=functional.normalize(teacher_text, dim=-1),
        text_features=text,
        names=classes,
        scale=20.0,
    )
    return Quantized(model, data)


def _training(
    quantized: Quantized, recovery: Recovery, quantizer: QuantizerSpec = STATIC, seed: int = 0
) -> ClassTraining:
    return ClassTraining(quantized.model, recovery, quantizer, quantized.data, seed)


def _stored(
    quantized: Quantized, recovery: Recovery, quantizer: QuantizerSpec = STATIC, seed: int = 0
) -> dict[str, Tensor]:
    training = _training(quantized, recovery, quantizer, seed)
    advance(training, recovery.steps)
    return training.stored()


def _loaded(
    quantized: Quantized,
    stored: dict[str, Tensor],
    recovery: Recovery,
    quantizer: QuantizerSpec = STATIC,
) -> ClassRecovered:
    data = quantized.data
    return ClassRecovered.load(
        stored, recovery, quantizer, quantized.model, data.names, data.text_features
    )


def _recovered(quantized: Quantized, recovery: Recovery) -> ClassRecovered:
    return _loaded(quantized, _stored(quantized, recovery), recovery)


@pytest.mark.parametrize("recovery", [PROMPT, ADAPTER])
def test_the_first_step_is_as_long_as_the_learning_rate_says(
    quantized: Quantized, recovery: Recovery
) -> None:
    lengths = []
    for multiplier in (1.0, 0.25):
        scaled = replace(recovery, learning_rate_multiplier=multiplier)
        training = _training(quantized, scaled, seed=3)
        module = training.context or training.adapter
        assert module is not None
        first = [parameter.detach().clone() for parameter in module.parameters()]
        training.step()
        moved = zip(module.parameters(), first, strict=True)
        lengths.append(max(float((p.detach() - q).abs().max()) for p, q in moved))

    assert lengths[1] == pytest.approx(0.25 * lengths[0], rel=1e-3)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


class _ProductInputs(TorchFunctionMode):
    """Keeps what is multiplied with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_function__(  # type: ignore[no-untyped-def]  # torch's own has no types either
        self, func, types, args=(), kwargs=None
    ):
        if func is functional.linear:
            self.inputs.append(args[0])
        return func(*args, **(kwargs or {}))


def _levels(adapter: StoredAdapter, images: Tensor) -> list[Tensor]:
    """The distinct values that reach each product of the adapter."""
    with torch.no_grad(), _ProductInputs() as seen:
        adapter(images)
    return [inputs.unique() for inputs in seen.inputs]


# The published defect: distillation with its arguments the wrong way round.


def test_the_teachers_probabilities_are_the_target() -> None:
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=_generator())
    p, q = teacher.softmax(-1), student.log_softmax(-1)

    loss = teacher_cross_entropy(student, teacher)

    entropy = -(p * p.log()).sum(-1).mean()
    divergence = functional.kl_div(q, p, reduction="batchmean")
    torch.testing.assert_close(loss, entropy + divergence)
    assert not torch.isclose(loss, teacher_cross_entropy(teacher, student))


def test_distillation_pulls_the_student_to_the_teacher() -> None:
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=_generator())
    student.requires_grad_()
    teacher.requires_grad_()

    gradient, to_teacher = torch.autograd.grad(
        teacher_cross_entropy(student, teacher), [student, teacher], allow_unused=True
    )

    torch.testing.assert_close(gradient, (student.softmax(-1) - teacher.softmax(-1)) / 6)
    assert to_teacher is None


def test_the_loss_adds_the_weighted_teacher_to_the_labels() -> None:
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=_generator())
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    alone = functional.cross_entropy(student, labels)

    torch.testing.assert_close(p4q_loss(student, teacher, labels, 0.0), alone)
    torch.testing.assert_close(
        p4q_loss(student, teacher, labels, 2.5),
        alone + 2.5 * functional.cross_entropy(student, teacher.softmax(-1)),
    )


# The published defect: a context that is neither trained nor saved.


def test_the_context_is_trained_and_stored(quantized: Quantized) -> None:
    training = _training(quantized, replace(PROMPT, steps=3))
    assert training.context is not None
    first = training.context.context.detach().clone()

    for _ in range(3):
        training.step()

    stored = training.stored()["context"]
    assert dict(training.context.named_parameters())["context"].requires_grad
    assert stored.dtype == torch.float16
    assert torch.equal(stored, training.context.context.detach().half())
    assert ((stored.float() - first).abs() > 1e-3).float().mean() > 0.9


def test_text_features_are_those_of_the_stored_context(quantized: Quantized) -> None:
    stored = _stored(quantized, PROMPT)

    recovered = _loaded(quantized, stored, PROMPT)

    with torch.no_grad():
        features = quantized.model.encode_prompts(quantized.data.names, stored["context"].float())
    assert torch.equal(recovered.text_features, functional.normalize(features, dim=-1))


def test_the_context_starts_as_known_words(quantized: Quantized) -> None:
    prompt = _training(quantized, replace(PROMPT, context_length=6)).context
    assert prompt is not None

    words = quantized.model.embed_words("a photo of a")[[0, 1, 2, 3, 0, 1]]

    noise = prompt.context.detach() - words
    assert 0.01 < noise.std() < 0.03
    assert noise.mean().abs() < 0.01


# The published defect: rounding without a straight-through gradient.


@pytest.mark.parametrize("quantizer", [STATIC, DYNAMIC])
def test_gradients_reach_every_trained_tensor_through_quantized_inputs(
    quantized: Quantized, quantizer: QuantizerSpec
) -> None:
    training = _training(quantized, BOTH, quantizer)
    assert training.context is not None
    assert training.adapter is not None
    training.adapter.quantize(quantized.data.image_features)
    parameters = [*training.context.parameters(), *training.adapter.parameters()]

    gradients = torch.autograd.grad(training.loss(torch.arange(40)), parameters)

    assert len(gradients) == 5
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert (gradient != 0).float().mean() > 0.5


# The published defect: an adapter with 8 bits whatever it is told.


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_the_adapter_has_the_bits_it_is_told(quantized: Quantized, bits: int, scheme: str) -> None:
    quantizer = QuantizerSpec.model_validate({"scheme": scheme})
    state = _stored(quantized, replace(ADAPTER, adapter_bits=bits), quantizer)
    width = quantized.model.feature_width
    hidden = width // 4

    for linear in LINEARS:
        assert state[f"adapter.{linear}.codes"].nbytes == width * hidden * bits // 8

    shape = AdapterShape.of(replace(ADAPTER, adapter_bits=bits), width, quantizer)
    images = torch.randn(2000, width, generator=_generator())
    levels = _levels(StoredAdapter(state, shape), images)
    assert len(levels) == 2
    for values in levels:
        assert 2 ** (bits - 1) < len(values) <= 2**bits


def test_dynamic_inputs_get_the_adapters_bits_too(quantized: Quantized) -> None:
    shape = AdapterShape.of(ADAPTER, quantized.model.feature_width, DYNAMIC)
    adapter = StoredAdapter(_stored(quantized, ADAPTER, DYNAMIC), shape)

    for image in quantized.data.image_features[:5]:
        levels = _levels(adapter, image[None])
        assert all(len(values) <= 16 for values in levels)


def test_sixteen_bits_leave_the_adapter_as_trained(quantized: Quantized) -> None:
    training = _training(quantized, replace(ADAPTER, adapter_bits=16))
    for _ in range(4):
        training.step()
    assert training.adapter is not None
    images = quantized.data.image_features
    width = quantized.model.feature_width
    shape = AdapterShape.of(replace(ADAPTER, adapter_bits=16), width, STATIC)

    stored = StoredAdapter(training.stored(), shape)

    with torch.no_grad():
        torch.testing.assert_close(stored(images), training.adapter(images), atol=2e-3, rtol=0)
    assert not any("input" in name for name in training.stored())


# What is measured is what is stored.


@pytest.mark.parametrize("quantizer", [STATIC, DYNAMIC])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_adapter_in_training_computes_with_the_packed_weights(
    quantized: Quantized, quantizer: QuantizerSpec, bits: int
) -> None:
    recovery = replace(ADAPTER, adapter_bits=bits)
    shape = AdapterShape.of(recovery, quantized.model.feature_width, quantizer)
    adapter = Adapter(shape, _generator())
    images = quantized.data.image_features

    adapter.quantize(images)

    with torch.no_grad():
        assert torch.equal(adapter(images), StoredAdapter(adapter.stored(), shape)(images))
    expected = fake_quantize_weight(adapter.down.weight.detach(), Precision(bits, bits), quantizer)
    assert not torch.equal(expected, adapter.down.weight)


def test_the_adapter_is_quantized_from_the_middle_of_training_on(quantized: Quantized) -> None:
    training = _training(quantized, replace(ADAPTER, steps=6))
    assert training.adapter is not None

    quantizes = []
    for _ in range(6):
        training.step()
        quantizes.append("adapter.up.input_scale" in training.stored())

    assert quantizes == [False, False, False, True, True, True]


@pytest.mark.parametrize("recovery", [BOTH, PROMPT, ADAPTER])
def test_a_stored_recovery_gives_the_same_bits_back(
    quantized: Quantized, recovery: Recovery, tmp_path: Path
) -> None:
    stored = _stored(quantized, recovery)
    recovered = _loaded(quantized, stored, recovery)
    save_file(stored, tmp_path / "recovery.safetensors")

    again = load_file(tmp_path / "recovery.safetensors")
    loaded = _loaded(quantized, again, recovery)

    images = quantized.data.image_features
    assert torch.equal(loaded.text_features, recovered.text_features)
    assert torch.equal(loaded.adapt(images), recovered.adapt(images))


@pytest.mark.parametrize("name", ["context", "adapter.up.bias", "adapter.down.codes"])
def test_a_state_that_lacks_a_tensor_is_refused(quantized: Quantized, name: str) -> None:
    state = _stored(quantized, BOTH)
    del state[name]

    with pytest.raises(InvalidModel, match=name.rpartition(".")[2]):
        _loaded(quantized, state, BOTH)


# A training that was ended goes on to the same bits.


@pytest.mark.parametrize("recovery", [BOTH, PROMPT, ADAPTER, replace(PROMPT, class_specific=True)])
@pytest.mark.parametrize("quantizer", [STATIC, DYNAMIC])
@pytest.mark.parametrize("ended", range(7))
def test_a_training_put_back_anywhere_goes_on_to_the_same_bits(
    quantized: Quantized, recovery: Recovery, quantizer: QuantizerSpec, ended: int
) -> None:
    recovery = replace(recovery, steps=6)
    whole = _stored(quantized, recovery, quantizer)
    first = _training(quantized, recovery, quantizer)
    advance(first, ended)

    second = _training(quantized, recovery, quantizer, seed=9)
    second.load_state_dict(first.state_dict())
    advance(second, 6)

    assert second.steps == 6
    assert all(torch.equal(second.stored()[name], whole[name]) for name in whole)


def test_a_killed_training_goes_on_from_its_checkpoint(
    quantized: Quantized, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "recovery.safetensors"
    recovery = replace(BOTH, steps=8)
    whole = _stored(quantized, recovery)
    first = _training(quantized, recovery)
    advance(first, 5, RecoveryCheckpoint(path, "this one", every_s=0))
    del first

    second = _training(quantized, recovery)
    checkpoint = RecoveryCheckpoint(path, "this one", every_s=0)
    checkpoint.resume(second)

    assert second.steps == 5
    advance(second, 8, checkpoint)
    assert all(torch.equal(second.stored()[name], whole[name]) for name in whole)
    assert caplog.text == ""
    checkpoint.remove()
    assert not path.exists()


@pytest.mark.parametrize("damage", ["truncated", "changed", "another training", "other settings"])
def test_a_useless_checkpoint_is_told_of_and_training_starts_anew(
    quantized: Quantized, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = tmp_path / "recovery.safetensors"
    recovery = replace(BOTH, steps=4)
    identity = "another" if damage == "another training" else "this one"
    saved = replace(recovery, reduction=2) if damage == "other settings" else recovery
    advance(_training(quantized, saved), 3, RecoveryCheckpoint(path, identity, every_s=0))
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-7])
    if damage == "changed":
        path.write_bytes(content[:-900] + bytes([content[-900] ^ 1]) + content[-899:])

    training = _training(quantized, recovery)
    RecoveryCheckpoint(path, "this one", every_s=0).resume(training)
    advance(training, 4)

    assert "trained from its start" in caplog.text
    whole = _stored(quantized, recovery)
    assert all(torch.equal(training.stored()[name], whole[name]) for name in whole)


def test_checkpoints_are_written_at_the_interval_only(quantized: Quantized, tmp_path: Path) -> None:
    path = tmp_path / "recovery.safetensors"

    advance(_training(quantized, BOTH), 4, RecoveryCheckpoint(path, "this one", every_s=1000))

    assert not path.exists()


# Determinism, and what a recovery leaves alone.


@pytest.mark.parametrize("recovery", [BOTH, PROMPT, ADAPTER])
def test_the_seed_decides_every_bit(quantized: Quantized, recovery: Recovery) -> None:
    first = _stored(quantized, recovery)
    torch.rand(7)
    again = _stored(quantized, recovery)
    other = _stored(quantized, recovery, seed=1)

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_recovery_leaves_model_generator_and_gradient_mode_alone(quantized: Quantized) -> None:
    model = quantized.model.module
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seed = torch.get_rng_state()

    with torch.no_grad():
        _stored(quantized, BOTH)
        assert not torch.is_grad_enabled()

    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for parameter in model.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_features_of_inference_mode_are_welcome(quantized: Quantized) -> None:
    with torch.inference_mode():
        images = quantized.data.image_features.clone()
        data = replace(quantized.data, image_features=images)
        inside = _stored(Quantized(quantized.model, data), BOTH)

    outside = _stored(quantized, BOTH)

    assert all(torch.equal(inside[name], outside[name]) for name in outside)


# Settings.


def test_without_an_adapter_images_stay_as_they_are(quantized: Quantized) -> None:
    images = quantized.data.image_features

    assert _recovered(quantized, PROMPT).adapt(images) is images


def test_without_a_prompt_no_caption_is_encoded(quantized: Quantized) -> None:
    encoded: list[str] = []

    with quantized.model.watch_inputs(lambda layer, _: encoded.append(layer)):
        recovered = _recovered(quantized, ADAPTER)

    text = functional.normalize(quantized.data.text_features, dim=-1)
    assert encoded == []
    assert torch.equal(recovered.text_features, text)


def test_a_step_encodes_few_of_many_classes(
    quantized: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = quantized.model.class_names(CLASSES)
    text = torch.randn(len(CLASSES), quantized.model.feature_width, generator=_generator())
    labels = torch.arange(40) * 5
    data = replace(
        quantized.data, labels=labels, names=names, text_features=text, teacher_text_features=text
    )
    training = ClassTraining(quantized.model, PROMPT, STATIC, data, seed=0)
    encoded: list[int] = []
    encode = quantized.model.encode_prompts

    def watched(names: ClassNames, context: Tensor, position: ClassPosition) -> Tensor:
        encoded.append(len(names))
        return encode(names, context, position)

    monkeypatch.setattr(quantized.model, "encode_prompts", watched)
    training.step()

    assert len(CLASSES) > CLASSES_A_STEP
    assert encoded == [CLASSES_A_STEP]


def test_samples_sit_out_where_there_is_no_room_for_their_classes(quantized: Quantized) -> None:
    count = 100
    assert CLASSES_A_STEP < count <= SAMPLES_A_STEP
    width = quantized.model.feature_width
    images = torch.randn(count, width, generator=_generator())
    text = torch.randn(len(CLASSES), width, generator=_generator())
    data = ClassData(
        image_features=images,
        labels=torch.arange(count),
        teacher_image_features=images,
        teacher_text_features=text,
        text_features=text,
        names=quantized.model.class_names(CLASSES),
        scale=20.0,
    )
    training = ClassTraining(quantized.model, PROMPT, STATIC, data, seed=0)

    assert math.isfinite(training.step())


@pytest.mark.parametrize("blend", [0.0, 1.0])
def test_the_blend_goes_from_the_feature_to_the_adapter(quantized: Quantized, blend: float) -> None:
    recovered = _recovered(quantized, replace(ADAPTER, blend=blend))
    images = quantized.data.image_features

    adapted = functional.normalize(recovered.adapt(images), dim=-1)

    same = torch.allclose(adapted, functional.normalize(images, dim=-1), atol=1e-6)
    assert adapted.isfinite().all()
    assert same == (blend == 0.0)


def test_the_length_of_the_features_does_not_matter(quantized: Quantized) -> None:
    longer = replace(quantized.data, image_features=4 * quantized.data.image_features)

    scaled = _stored(Quantized(quantized.model, longer), ADAPTER)

    plain = _stored(quantized, ADAPTER)
    assert all(torch.equal(scaled[name], plain[name]) for name in plain)


def test_a_single_step_is_enough(quantized: Quantized) -> None:
    recovered = _recovered(quantized, replace(BOTH, steps=1))

    assert recovered.adapt(quantized.data.image_features).isfinite().all()


def test_a_context_that_does_not_fit_is_refused(quantized: Quantized) -> None:
    with pytest.raises(SpecError, match="do not fit"):
        _recovered(quantized, replace(PROMPT, context_length=25))


@pytest.mark.parametrize("position", list(ClassPosition))
@pytest.mark.parametrize("class_specific", [False, True])
def test_a_prompt_of_any_form_is_trained_stored_and_read_back(
    quantized: Quantized, position: ClassPosition, class_specific: bool
) -> None:
    recovery = replace(PROMPT, class_position=position, class_specific=class_specific)

    stored = _stored(quantized, recovery)
    recovered = _loaded(quantized, stored, recovery)

    count, width = len(quantized.data.names), quantized.model.text_width
    assert stored["context"].shape == ((count, 2, width) if class_specific else (2, width))
    with torch.no_grad():
        features = quantized.model.encode_prompts(
            quantized.data.names, stored["context"].float(), position
        )
    expected = functional.normalize(features, dim=-1)
    torch.testing.assert_close(recovered.text_features, expected, rtol=0, atol=1e-6)


def test_contexts_of_their_own_move_apart(quantized: Quantized) -> None:
    stored = _stored(quantized, replace(PROMPT, class_specific=True, steps=10))

    spread = stored["context"].float().std(dim=0).mean()
    assert spread > 0.03  # the noise at first is 0.02


def test_the_teachers_cross_entropy_falls(quantized: Quantized) -> None:
    training = _training(quantized, replace(BOTH, distillation=4.0, steps=60))
    data = quantized.data
    teacher = 20 * functional.normalize(data.teacher_image_features, dim=-1)
    teacher = teacher @ data.teacher_text_features.T

    def entropy() -> float:
        recovered = _loaded(quantized, training.stored(), BOTH)
        image = functional.normalize(recovered.adapt(data.image_features), dim=-1)
        student = 20 * image @ recovered.text_features.T
        return float(teacher_cross_entropy(student, teacher))

    before = entropy()
    advance(training, 60)

    assert entropy() < 0.9 * before


def test_the_loss_falls(quantized: Quantized) -> None:
    training = _training(quantized, replace(BOTH, steps=60))

    losses = [training.step() for _ in range(60)]

    assert losses[-1] < 0.9 * losses[0]


# On the trained reference: trained on the tuning split, judged on the selection split.


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    data = {
        "source": "reference",
        "samples": {"calibration": 64, "tuning": 2048, "selection": 1024, "test": 8},
        "batch_size": 128,
    }
    return Evaluator.from_spec(scene_spec(data=data))


def _figures(
    evaluator: Evaluator, bits: int | None, recovery: Recovery | None = None
) -> tuple[float, float]:
    """Error and loss on the selection split; no bits stand for full precision."""
    plan = Plan(())
    if bits is not None:
        plan = Plan.uniform([layer.name for layer in evaluator.model.layers], Precision(bits, 8))
    figures = evaluator.evaluate(Configuration(plan, recovery)).metrics
    return figures["error"], figures["loss_nats"]


def test_an_adapter_wins_back_a_quarter_of_what_two_bits_lost(evaluator: Evaluator) -> None:
    full, _ = _figures(evaluator, None)
    plain, _ = _figures(evaluator, 2)

    recovered, _ = _figures(evaluator, 2, replace(TUNED, reduction=2, adapter_bits=4, steps=100))

    assert plain - full > 0.1
    assert plain - recovered > 0.25 * (plain - full)


def test_an_adapter_wins_back_loss_at_three_bits(evaluator: Evaluator) -> None:
    _, full = _figures(evaluator, None)
    _, plain = _figures(evaluator, 3)

    _, recovered = _figures(evaluator, 3, TUNED)

    assert plain - recovered > 0.15 * (plain - full) > 0


def test_a_prompt_alone_wins_back_loss_at_two_bits(evaluator: Evaluator) -> None:
    error, loss = _figures(evaluator, 2)

    prompted_error, prompted_loss = _figures(
        evaluator, 2, replace(TUNED, context_length=4, reduction=0, steps=25)
    )

    assert prompted_loss < loss - 0.02
    assert prompted_error < error

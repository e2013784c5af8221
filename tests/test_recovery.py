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
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.quant.weights import fake_quantize_weight
from bitfront.reference.scenes import CLASSES
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder, PlanSwitch
from objectives.adapter import LINEARS, Adapter, AdapterShape, StoredAdapter
from objectives.distillation import p4q_loss, teacher_cross_entropy
from objectives.evaluation import Evaluator
from objectives.recovery import Recovered, RecoveryData, recover
from objectives.training import CLASSES_A_STEP, IMAGE_BATCH, Training
from tests.scene_models import scene_spec, untrained_encoder

STATIC = QuantizerSpec()
DYNAMIC = QuantizerSpec(activations="dynamic")
BOTH = Recovery(context_length=2, reduction=4, adapter_bits=4, steps=4)
PROMPT = replace(BOTH, reduction=0)
ADAPTER = replace(BOTH, context_length=0)


@dataclass(frozen=True)
class Quantized:
    """An untrained model with a plan of 3-bit weights and 8-bit inputs on it, and its data."""

    model: DualEncoder
    data: RecoveryData


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    model = untrained_encoder()
    names = [layer.name for layer in model.layers]
    PlanSwitch(model, DYNAMIC, {}).to(Plan.uniform(names, Precision(3, 8)))
    generator = torch.Generator().manual_seed(0)
    tokens = model.tokenize(CLASSES[:12])
    images = torch.randn(40, model.feature_width, generator=generator)
    teacher_text = torch.randn(12, model.feature_width, generator=generator)
    with torch.no_grad():
        text = model.encode_texts(tokens)
    data = RecoveryData(
        image_features=images,
        labels=torch.randint(12, (40,), generator=generator),
        teacher_image_features=images + 0.3 * torch.randn(images.shape, generator=generator),
        teacher_text_features=functional.normalize(teacher_text, dim=-1),
        text_features=text,
        tokens=tokens,
        scale=20.0,
    )
    return Quantized(model, data)


def _training(
    quantized: Quantized, recovery: Recovery, quantizer: QuantizerSpec = STATIC
) -> Training:
    return Training(quantized.model, recovery, quantizer, quantized.data, seed=0)


def _recovered(
    quantized: Quantized, recovery: Recovery, quantizer: QuantizerSpec = STATIC, seed: int = 0
) -> Recovered:
    return recover(quantized.model, recovery, quantizer, quantized.data, seed)


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
    assert training.prompt is not None
    first = training.prompt.context.detach().clone()

    for _ in range(3):
        training.step()

    stored = training.state()["context"]
    assert dict(training.prompt.named_parameters())["context"].requires_grad
    assert stored.dtype == torch.float16
    assert torch.equal(stored, training.prompt.context.detach().half())
    assert ((stored.float() - first).abs() > 1e-3).float().mean() > 0.9


def test_text_features_are_those_of_the_stored_context(quantized: Quantized) -> None:
    recovered = _recovered(quantized, PROMPT)

    context = recovered.state()["context"].float()
    with torch.no_grad():
        features = quantized.model.encode_texts(quantized.data.tokens, context=context)

    assert torch.equal(recovered.text_features(), functional.normalize(features, dim=-1))


def test_the_context_starts_as_known_words(quantized: Quantized) -> None:
    prompt = _training(quantized, replace(PROMPT, context_length=6)).prompt
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
    assert training.prompt is not None
    assert training.adapter is not None
    training.adapter.quantize(quantized.data.image_features)
    parameters = [*training.prompt.parameters(), *training.adapter.parameters()]

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
    state = _recovered(quantized, replace(ADAPTER, adapter_bits=bits), quantizer).state()
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
    adapter = StoredAdapter(_recovered(quantized, ADAPTER, DYNAMIC).state(), shape)

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

    stored = StoredAdapter(training.state(), shape)

    with torch.no_grad():
        torch.testing.assert_close(stored(images), training.adapter(images), atol=2e-3, rtol=0)
    assert not any("input" in name for name in training.state())


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
        quantizes.append("adapter.up.input_scale" in training.state())

    assert quantizes == [False, False, False, True, True, True]


@pytest.mark.parametrize("recovery", [BOTH, PROMPT, ADAPTER])
def test_a_stored_recovery_gives_the_same_bits_back(
    quantized: Quantized, recovery: Recovery, tmp_path: Path
) -> None:
    recovered = _recovered(quantized, recovery)
    save_file(recovered.state(), tmp_path / "recovery.safetensors")

    state = load_file(tmp_path / "recovery.safetensors")
    loaded = Recovered.load(state, recovery, STATIC, quantized.model, quantized.data)

    images = quantized.data.image_features
    assert torch.equal(loaded.text_features(), recovered.text_features())
    assert torch.equal(loaded.adapt(images), recovered.adapt(images))
    assert loaded.state().keys() == recovered.state().keys()


@pytest.mark.parametrize("name", ["context", "adapter.up.bias", "adapter.down.codes"])
def test_a_state_that_lacks_a_tensor_is_refused(quantized: Quantized, name: str) -> None:
    state = _recovered(quantized, BOTH).state()
    del state[name]

    with pytest.raises(InvalidModel, match=name.rpartition(".")[2]):
        Recovered.load(state, BOTH, STATIC, quantized.model, quantized.data)


# Determinism, and what a recovery leaves alone.


@pytest.mark.parametrize("recovery", [BOTH, PROMPT, ADAPTER])
def test_the_seed_decides_every_bit(quantized: Quantized, recovery: Recovery) -> None:
    first = _recovered(quantized, recovery).state()
    torch.rand(7)
    again = _recovered(quantized, recovery).state()
    other = _recovered(quantized, recovery, seed=1).state()

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_recovery_leaves_model_generator_and_gradient_mode_alone(quantized: Quantized) -> None:
    model = quantized.model.module
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seed = torch.get_rng_state()

    with torch.no_grad():
        _recovered(quantized, BOTH)
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
        inside = recover(quantized.model, BOTH, STATIC, data, 0).state()

    outside = _recovered(quantized, BOTH).state()

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
    assert torch.equal(recovered.text_features(), text)


def test_a_step_encodes_few_of_many_classes(quantized: Quantized) -> None:
    tokens = quantized.model.tokenize(CLASSES)
    text = torch.randn(len(CLASSES), quantized.model.feature_width, generator=_generator())
    labels = torch.arange(40) * 5
    data = replace(
        quantized.data, labels=labels, tokens=tokens, text_features=text, teacher_text_features=text
    )
    training = Training(quantized.model, PROMPT, STATIC, data, seed=0)
    captions: list[int] = []

    with quantized.model.watch_inputs(lambda _, inputs: captions.append(len(inputs))):
        training.step()

    assert len(CLASSES) > CLASSES_A_STEP
    assert set(captions) == {CLASSES_A_STEP}


def test_samples_sit_out_where_there_is_no_room_for_their_classes(quantized: Quantized) -> None:
    count = 100
    assert CLASSES_A_STEP < count <= IMAGE_BATCH
    width = quantized.model.feature_width
    images = torch.randn(count, width, generator=_generator())
    text = torch.randn(len(CLASSES), width, generator=_generator())
    data = RecoveryData(
        image_features=images,
        labels=torch.arange(count),
        teacher_image_features=images,
        teacher_text_features=text,
        text_features=text,
        tokens=quantized.model.tokenize(CLASSES),
        scale=20.0,
    )
    training = Training(quantized.model, PROMPT, STATIC, data, seed=0)

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

    scaled = recover(quantized.model, ADAPTER, STATIC, longer, 0).state()

    plain = _recovered(quantized, ADAPTER).state()
    assert all(torch.equal(scaled[name], plain[name]) for name in plain)


def test_a_single_step_is_enough(quantized: Quantized) -> None:
    recovered = _recovered(quantized, replace(BOTH, steps=1))

    assert recovered.adapt(quantized.data.image_features).isfinite().all()


def test_a_context_that_does_not_fit_is_refused(quantized: Quantized) -> None:
    with pytest.raises(SpecError, match="do not fit"):
        _recovered(quantized, replace(PROMPT, context_length=25))


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

    recovered, _ = _figures(evaluator, 2, Recovery(0, 2, 4, 0.2, 4.0, 100))

    assert plain - full > 0.1
    assert plain - recovered > 0.25 * (plain - full)


def test_an_adapter_wins_back_loss_at_three_bits(evaluator: Evaluator) -> None:
    _, full = _figures(evaluator, None)
    _, plain = _figures(evaluator, 3)

    _, recovered = _figures(evaluator, 3, Recovery(0, 4, 8, 0.2, 4.0, 60))

    assert plain - recovered > 0.15 * (plain - full) > 0


def test_a_prompt_alone_wins_back_loss_at_two_bits(evaluator: Evaluator) -> None:
    error, loss = _figures(evaluator, 2)

    prompted_error, prompted_loss = _figures(evaluator, 2, Recovery(4, 0, 8, 0.2, 4.0, 25))

    assert prompted_loss < loss - 0.02
    assert prompted_error < error

"""Contexts at the start of a prompt, and image features that are given instead of computed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bitfront.errors import SpecError
from bitfront.layers import Tower
from bitfront.plan import Plan
from bitfront.precision import Precision
from bitfront.quant.weights import fake_quantize_weight
from bitfront.reference import digit_llava
from bitfront.spec import REFERENCE_LLAVA, QuantizerSpec
from bitfront.vlm import GenerativeModel, PlanSwitch, QuestionBatch
from bitfront.vlm.loaders.reference import load_reference
from tests.support.llava_models import (
    BUILDS,
    DYNAMIC,
    END,
    STATIC,
    WORDS,
    Build,
    built,
    every_layer,
    photo,
    questions,
    ranges_of,
    without_image,
)

IMAGE = WORDS.index("<image>")
WORDS_OF_CONTEXT = "how many red"
EMBEDDING = "model.language_model.embed_tokens.weight"
LOW_BITS = Precision(4, 4)


def scattered(model: GenerativeModel, count: int = 3, *, width: int = 30) -> QuestionBatch:
    """Questions of other words each, whose images stand at different places."""
    batch = questions(model, count, width=width)
    prompts = []
    for row, prompt in enumerate(batch.prompts.tolist()):
        start, *words = [token for token in prompt if token != IMAGE]
        images = [IMAGE] * prompt.count(IMAGE)
        turned = words[row:] + words[:row]
        prompts.append([start, *turned[:row], *images, *turned[row:]])
    return replace(batch, prompts=torch.tensor(prompts))


def with_words(batch: QuestionBatch, words: list[int]) -> QuestionBatch:
    """The questions with words written where a context goes: after the first token."""
    prompts = [[first, *words, *rest] for first, *rest in batch.prompts.tolist()]
    return replace(batch, prompts=torch.tensor(prompts))


def embedded(model: GenerativeModel, words: list[int]) -> Tensor:
    """The words' embeddings in full precision, to stand for a context."""
    return model.module.get_parameter(EMBEDDING).detach()[words].clone()


@torch.no_grad()
def stock_logits(model: GenerativeModel, batch: QuestionBatch) -> Tensor:
    """What transformers' own forward gives at the answers' tokens."""
    given = {"pixel_values": batch.pixels, "image_sizes": batch.sizes}
    found = model.module(
        input_ids=torch.cat([batch.prompts, batch.answers[:, :-1]], dim=1),
        **{name: value for name, value in given.items() if value is not None},
        logits_to_keep=batch.answers.shape[1],
        use_cache=False,
    )
    logits: Tensor = found.logits
    return logits


def random_context(model: GenerativeModel, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, model.text_width, generator=generator)


def features_of(model: GenerativeModel, batch: QuestionBatch) -> Tensor:
    with torch.no_grad():
        features = model.image_features(batch)
    assert features is not None
    return features


def random_features(model: GenerativeModel, batch: QuestionBatch, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(features_of(model, batch).shape, generator=generator)


def codes(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def traces(model: GenerativeModel) -> int:
    """Hooks on the model's modules and forwards that are not their class's."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module))
        for module in model.module.modules()
    )


@torch.no_grad()
@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("precision", [None, LOW_BITS], ids=str)
@pytest.mark.parametrize("has_image", [True, False])
def test_a_context_of_embedded_words_is_the_prompt_with_these_words(
    build: Build, precision: Precision | None, has_image: bool
) -> None:
    model = built(build)
    batch = scattered(model)
    batch = batch if has_image else without_image(model, batch)
    context = embedded(model, codes(WORDS_OF_CONTEXT))
    written = with_words(batch, codes(WORDS_OF_CONTEXT))
    if precision is not None:  # the words must be those of the context: not rounded
        names = [layer.name for layer in model.layers if layer.name != EMBEDDING]
        PlanSwitch(model, DYNAMIC, {}).to(Plan.uniform(names, precision))

    logits = model.answer_logits(batch, context=context)

    assert context.shape == (3, model.text_width)
    assert torch.equal(logits, stock_logits(model, written))
    assert not torch.allclose(logits, model.answer_logits(batch), atol=1e-2)


def asked(model: GenerativeModel, *questions: str, seed: int | None = 0) -> QuestionBatch:
    """Questions to the reference, about one image or none."""
    image = None if seed is None else photo(seed)
    prompts = [model.prepare(question, image) for question in questions]
    pixels = [prompt.pixels for prompt in prompts if prompt.pixels is not None]
    return QuestionBatch(
        torch.stack([prompt.tokens for prompt in prompts]),
        model.encode_answer("yes")[None].expand(len(prompts), -1),
        torch.stack(pixels) if pixels else None,
        None,
    )


def reference() -> GenerativeModel:
    model = load_reference(REFERENCE_LLAVA, torch.device("cpu"))
    assert isinstance(model, GenerativeModel)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("plain", "written"),
    [
        (
            ("<image> is there a three", "there is <image> a three"),
            ("how many <image> is there a three", "how many there is <image> a three"),
        ),
        (("is there a three",), ("how many is there a three",)),
    ],
    ids=["images", "no images"],
)
def test_words_of_the_reference_can_be_embedded_too(
    plain: tuple[str, ...], written: tuple[str, ...]
) -> None:
    model = reference()
    seed = 0 if "<image>" in plain[0] else None
    context = embedded(model, [digit_llava.VOCABULARY.index(word) for word in ("how", "many")])

    logits = model.answer_logits(asked(model, *plain, seed=seed), context=context)
    answers = model.generate(asked(model, *plain, seed=seed), 4, context=context)

    spelt = asked(model, *written, seed=seed)
    assert torch.equal(logits, stock_logits(model, spelt))
    assert answers == model.generate(spelt, 4)


def what_the_decoder_reads(model: GenerativeModel, run: Callable[[], object]) -> list[Tensor]:
    """The inputs of the decoder's first layer, call by call."""
    seen: list[Tensor] = []
    layer = model.module.get_submodule("model.language_model.layers.0")
    hook = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        run()
    hook.remove()
    return seen


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("has_image", [True, False])
def test_a_quantized_embedding_rounds_the_tokens_but_not_the_context(
    build: Build, has_image: bool
) -> None:
    model = built(build)
    batch = scattered(model)
    batch = batch if has_image else without_image(model, batch)
    weight = model.weight(EMBEDDING).clone()
    context = random_context(model, 5)
    PlanSwitch(model, DYNAMIC, {}).to(Plan.of({EMBEDDING: Precision(2)}))

    (read,) = what_the_decoder_reads(model, lambda: model.answer_logits(batch, context=context))

    rounded = fake_quantize_weight(weight, Precision(2), DYNAMIC)
    assert not torch.allclose(rounded, weight, atol=1e-2)
    for row, prompt in zip(read, batch.prompts.tolist(), strict=True):
        after = 1 + len(context)
        assert torch.equal(row[1:after], context)
        is_word = torch.tensor(prompt[1:]) != IMAGE
        words = torch.tensor(prompt[1:])[is_word]
        assert torch.equal(row[after : after + len(is_word)][is_word], rounded[words])


def test_a_context_is_read_once_and_no_image_is_read_again() -> None:
    model = built(Build(kind="llava_next"))
    batch = questions(model, 2)
    context = random_context(model, 5)
    features = features_of(model, batch)

    reads = what_the_decoder_reads(
        model, lambda: model.generate(batch, 4, features=features, context=context)
    )

    assert [read.shape[1] for read in reads] == [batch.prompts.shape[1] + 5, 1, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("quantizer", [None, STATIC, DYNAMIC], ids=str)
@pytest.mark.parametrize("width", [30, 48])
def test_features_that_are_given_change_no_bit(
    build: Build, quantizer: QuantizerSpec | None, width: int
) -> None:
    model = built(build)
    batch = scattered(model, width=width)
    if quantizer is not None:
        switch = PlanSwitch(model, quantizer, ranges_of(model, [batch]))
        switch.to(every_layer(model, LOW_BITS))
    context = random_context(model, 3)

    features = features_of(model, batch)

    logits = stock_logits(model, batch)
    assert torch.equal(model.answer_logits(batch), logits)
    assert torch.equal(model.answer_logits(batch, features=features), logits)
    both = model.answer_logits(batch, features=features, context=context)
    assert torch.equal(both, model.answer_logits(batch, context=context))
    assert not torch.equal(both, logits)
    assert model.generate(batch, 6, features=features) == model.generate(batch, 6)
    without_pixels = replace(batch, pixels=None)
    assert torch.equal(model.answer_logits(without_pixels, features=features), logits)


@torch.no_grad()
@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("width", [30, 48])
def test_features_take_the_place_of_the_projectors_output(build: Build, width: int) -> None:
    model = built(build)
    batch = scattered(model, width=width)
    features = random_features(model, batch)

    logits = model.answer_logits(batch, features=features)

    projector = model.module.get_submodule("model.multi_modal_projector")
    hook = projector.register_forward_hook(lambda _module, _args, _output: features)
    assert torch.equal(logits, stock_logits(model, batch))
    hook.remove()
    assert not torch.allclose(logits, stock_logits(model, batch), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("width", [30, 48])
def test_image_features_are_the_projectors_output_row_after_row(build: Build, width: int) -> None:
    model = built(build)
    batch = questions(model, 3, width=width)
    assert batch.pixels is not None
    tiles = 1 if build.kind == "llava" else batch.pixels.shape[1]

    features = features_of(model, batch)

    assert features.shape == (3 * tiles, model.tile_tokens, model.feature_width)
    for row in range(3):
        alone = features_of(model, batch.pick(slice(row, row + 1)))
        torch.testing.assert_close(features[row * tiles : (row + 1) * tiles], alone)
    assert model.image_features(without_image(model, batch)) is None


class Calls:
    """Which layers and which parts of the model run."""

    def __init__(self, model: GenerativeModel, run: Callable[[], object]) -> None:
        self.layers: set[str] = set()
        self.parts: set[str] = set()
        inner = model.module.get_submodule("model")
        hooks = [
            part.register_forward_pre_hook(lambda _module, _args, name=name: self.parts.add(name))
            for name, part in inner.named_children()
        ]
        with torch.no_grad(), model.watch_inputs(lambda name, _: self.layers.add(name)):
            run()
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_vision_tower_and_projector_run_for_features_and_the_decoder_for_answers(
    build: Build,
) -> None:
    model = built(build)
    batch = questions(model, 2)
    features = features_of(model, batch)

    seeing = Calls(model, lambda: model.image_features(batch))
    answering = Calls(model, lambda: model.answer_logits(batch, features=features))
    writing = Calls(model, lambda: model.generate(batch, 3, features=features))

    towers = {layer.name: layer.tower for layer in model.layers}
    assert {towers[name] for name in seeing.layers} == {Tower.VISION, Tower.PROJECTOR}
    assert {towers[name] for name in answering.layers} == {Tower.LANGUAGE}
    assert answering.layers == writing.layers
    assert seeing.parts == {"vision_tower", "multi_modal_projector"}
    assert answering.parts == writing.parts == {"language_model"}


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("quantizer", [STATIC, DYNAMIC], ids=lambda q: q.activations)
@pytest.mark.parametrize("has_image", [True, False])
def test_gradients_reach_every_vector_under_a_plan(
    build: Build, quantizer: QuantizerSpec, has_image: bool
) -> None:
    model = built(build)
    batch = scattered(model)
    features = features_of(model, batch).requires_grad_()
    context = random_context(model, 4).requires_grad_()
    PlanSwitch(model, quantizer, ranges_of(model, [batch])).to(every_layer(model, LOW_BITS))
    leaves = [context, features] if has_image else [context]

    logits = (
        model.answer_logits(batch, features=features, context=context)
        if has_image
        else model.answer_logits(without_image(model, batch), context=context)
    )
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
    gradients = torch.autograd.grad(loss, leaves)

    for gradient in gradients:
        assert (gradient.abs().amax(dim=-1) > 0).all()
    assert all(parameter.grad is None for parameter in model.module.parameters())


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_gradients_reach_the_pixels_through_the_features(build: Build) -> None:
    model = built(build)
    batch = scattered(model)
    assert batch.pixels is not None
    pixels = batch.pixels.clone().requires_grad_()
    batch = replace(batch, pixels=pixels)

    (whole,) = torch.autograd.grad(model.answer_logits(batch).square().sum(), pixels)
    features = model.image_features(batch)
    logits = model.answer_logits(batch, features=features)
    (parts,) = torch.autograd.grad(logits.square().sum(), pixels)

    assert (whole.flatten(1).abs().amax(dim=1) > 0).all()
    assert torch.equal(parts, whole)


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_gradients_are_those_of_finite_differences(build: Build) -> None:
    model = built(build)
    batch = scattered(model)
    points = [features_of(model, batch), random_context(model, 4)]
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(point.shape, generator=generator) for point in points]
    weights = torch.randn(3, 4, len(WORDS), generator=generator)

    def value(features: Tensor, context: Tensor) -> Tensor:
        return (weights * model.answer_logits(batch, features=features, context=context)).mean()

    gradients = torch.autograd.grad(value(*(p.requires_grad_() for p in points)), points)

    step = 1e-2
    for place, (gradient, direction) in enumerate(zip(gradients, directions, strict=True)):
        ends = []
        for sign in (1, -1):
            moved = [point.detach().clone() for point in points]
            moved[place] += sign * step * direction
            ends.append(float(value(moved[0], moved[1]).detach()))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-2)


@torch.no_grad()
def decode_with_context(
    model: GenerativeModel, batch: QuestionBatch, limit: int, context: Tensor
) -> list[list[int]]:
    """Greedy decoding, row by row and vector by vector, without any state."""
    inner = model.module.get_submodule("model")
    embedding = model.module.get_submodule("model.language_model.embed_tokens")
    answers = []
    for row in range(len(batch)):
        one = batch.pick(slice(row, row + 1))
        images = iter(torch.empty(0))
        if one.pixels is not None:
            given = [one.pixels] if one.sizes is None else [one.pixels, one.sizes]
            images = iter(torch.cat(inner.get_image_features(*given).pooler_output))  # type: ignore[operator]  # torch knows modules only
        prompt = one.prompts[0].tolist()
        line = [
            next(images) if token == IMAGE else embedding(torch.tensor(token)) for token in prompt
        ]
        line = [line[0], *context, *line[1:]]
        tokens: list[int] = []
        while len(tokens) < limit and END not in tokens:
            found = model.module(inputs_embeds=torch.stack(line)[None], use_cache=False)
            tokens.append(int(found.logits[0, -1].argmax()))
            line.append(embedding(torch.tensor(tokens[-1])))
        answers.append(tokens)
    return answers


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("precision", [None, Precision(4, 8), Precision(8, 4)], ids=str)
@pytest.mark.parametrize("has_image", [True, False])
def test_greedy_decoding_with_a_context_is_that_of_a_plain_loop(
    build: Build, precision: Precision | None, has_image: bool
) -> None:
    model = built(build, seed=2)
    batch = scattered(model, 4, width=48)
    ranges = ranges_of(model, [batch])
    batch = batch if has_image else without_image(model, batch)
    if precision is not None:
        PlanSwitch(model, STATIC, ranges).to(every_layer(model, precision))
    context = random_context(model, 4)

    with torch.no_grad():
        features = model.image_features(batch)
    written = model.generate(batch, 7, features=features, context=context)

    assert written == decode_with_context(model, batch, 7, context)
    assert written == model.generate(batch, 7, context=context)
    assert written != model.generate(batch, 7)


def test_given_features_decide_what_is_written() -> None:
    model = built(Build(), seed=2)
    batch = questions(model, 4)
    others = questions(model, 8).pick(slice(4, 8))

    written = model.generate(batch, 7, features=features_of(model, others))

    assert written == model.generate(others, 7)
    assert written != model.generate(batch, 7)


def test_an_empty_context_changes_nothing() -> None:
    model = built(Build())
    batch = questions(model, 2)
    empty = torch.zeros(0, model.text_width)

    assert torch.equal(model.answer_logits(batch, context=empty), model.answer_logits(batch))
    assert model.generate(batch, 4, context=empty) == model.generate(batch, 4)


def test_vectors_of_another_precision_take_the_models() -> None:
    model = built(Build(decoder="mistral"))
    batch = questions(model, 2)
    features, context = features_of(model, batch), random_context(model, 3)
    model.module.to(torch.bfloat16)

    logits = model.answer_logits(batch, features=features, context=context)

    assert logits.dtype == torch.bfloat16
    narrow = {"features": features.bfloat16(), "context": context.bfloat16()}
    assert torch.equal(logits, model.answer_logits(batch, **narrow))


@pytest.mark.parametrize("shape", [(2, 31), (32,), (1, 2, 32), (0, 31)])
def test_a_context_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = built(Build())
    batch = questions(model, 2)

    with pytest.raises(SpecError, match=r"prompt vectors must be \(count, 32\), got"):
        model.answer_logits(batch, context=torch.ones(shape))
    with pytest.raises(SpecError, match=r"prompt vectors must be \(count, 32\), got"):
        model.generate(batch, 2, context=torch.ones(shape))


@pytest.mark.parametrize("build", [Build(), Build(kind="llava_next")], ids=str)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 9, 31), r"image features must be \(tiles, 9, 32\), got \(2, 9, 31\)"),
        ((2, 8, 32), r"image features must be \(tiles, 9, 32\)"),
        ((9, 32), r"image features must be \(tiles, 9, 32\)"),
        ((3, 9, 32), r"image features (are of 3 tiles|fill 27 places, but the prompts have 18)"),
        ((0, 9, 32), r"image features (are of 0 tiles|fill 0 places, but the prompts have 18)"),
    ],
)
def test_features_of_another_shape_are_refused(
    build: Build, shape: tuple[int, ...], message: str
) -> None:
    model = built(build)
    batch = questions(model, 2)

    with pytest.raises(SpecError, match=message):
        model.answer_logits(batch, features=torch.ones(shape))
    with pytest.raises(SpecError, match=message):
        model.generate(batch, 2, features=torch.ones(shape))


@pytest.mark.parametrize("build", [Build(), Build(kind="llava_next")], ids=str)
def test_features_for_questions_without_an_image_are_refused(build: Build) -> None:
    model = built(build)
    batch = questions(model, 2)

    with pytest.raises(SpecError, match=r"image features (are of|fill)"):
        model.answer_logits(without_image(model, batch), features=features_of(model, batch))


def test_images_that_do_not_fill_their_places_are_refused() -> None:
    model = built(Build())
    batch = questions(model, 2)
    fewer = replace(batch, prompts=batch.prompts[:, batch.prompts[0].tolist().index(IMAGE) + 1 :])

    with pytest.raises(SpecError, match="fill 18 places, but the prompts have 16"):
        model.answer_logits(fewer)


@pytest.mark.parametrize("build", [Build(), Build(kind="llava_next")], ids=str)
def test_the_longest_context_that_fits_is_taken_and_one_more_is_refused(build: Build) -> None:
    model = built(build)
    batch = questions(model, 2)
    prompt, answer = batch.prompts.shape[1], batch.answers.shape[1] - 1
    most = 128 - prompt - answer

    logits = model.answer_logits(batch, context=random_context(model, most))
    (row, _) = model.generate(batch, 1, context=random_context(model, most + answer))

    assert logits.isfinite().all()
    assert len(row) == 1
    message = rf"{most + 1} prompt vectors do not fit.*takes {prompt + answer} of.*128 positions"
    with pytest.raises(SpecError, match=message):
        model.answer_logits(batch, context=random_context(model, most + 1))
    with pytest.raises(SpecError, match=rf"takes {prompt} of the decoder's 128 positions"):
        model.generate(batch, 1, context=random_context(model, most + answer + 1))


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_nothing_is_left_on_the_model(build: Build) -> None:
    model = built(build)
    batch = questions(model, 2)
    features, context = features_of(model, batch), random_context(model, 3)
    before = model.answer_logits(batch)
    clean = traces(model)

    def fail(_module: nn.Module, _args: object, _output: object) -> None:
        raise RuntimeError("out of memory")

    for part in ("vision_tower", "multi_modal_projector", "language_model"):
        hook = model.module.get_submodule(f"model.{part}").register_forward_hook(fail)
        for given in (None, features) if part == "language_model" else (None,):
            with pytest.raises(RuntimeError, match="out of memory"):
                model.answer_logits(batch, features=given, context=context)
        hook.remove()
    with pytest.raises(SpecError):
        model.answer_logits(batch, features=features[:1], context=context)
    model.generate(batch, 2, features=features, context=context)

    assert traces(model) == clean
    assert torch.equal(model.answer_logits(batch), before)

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import open_clip
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from bitfront.errors import SpecError
from bitfront.layers import LayerKind, Tower
from bitfront.plan import ClassPosition, Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import InputRange
from bitfront.reference.digit_clip import VOCABULARY, build_clip, tokenize
from bitfront.reference.scenes import CLASSES
from bitfront.spec import QuantizerSpec
from bitfront.vlm import PlanSwitch
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.reference import preprocess_picture
from bitfront.vlm.loaders.transformers import transformers_encoder
from bitfront.vlm.models.captions import CaptionLayout, ClassNames
from bitfront.vlm.models.dual_encoder import DualEncoder
from bitfront.vlm.models.prompted import PACK_LENGTH

END, MIDDLE, FRONT = ClassPosition.END, ClassPosition.MIDDLE, ClassPosition.FRONT
LENGTH = 28
LAST = len(VOCABULARY) - 1
TINY = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4}
VISION = {**TINY, "image_size": 24, "patch_size": 8}
TEXT = {**TINY, "vocab_size": len(VOCABULARY), "max_position_embeddings": LENGTH}
TEXT |= {"bos_token_id": 1, "eos_token_id": LAST, "pad_token_id": 0}
PLACES = {"image_size": 24, "patch_size": 8, "width": 24, "layers": 1, "head_width": 6}
WORDS = {"context_length": LENGTH, "vocab_size": len(VOCABULARY), "width": 24, "heads": 4}
WORDS |= {"layers": 2}
SIGLIP = {**WORDS, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
NORMS = {"qk_norm": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
OPEN_CLIP: dict[str, dict[str, object]] = {
    "open_clip eos": {**WORDS, **NORMS, "pool_type": "eos", "eos_id": LAST, "proj_bias": True},
    "open_clip no projection": {**WORDS, "proj_type": "none"},
    "open_clip class token": {**WORDS, "embed_cls": True},
    "open_clip two-way": {**WORDS, "no_causal_mask": True},
    "open_clip last": {**WORDS, "pool_type": "last"},
    "open_clip siglip": SIGLIP,
}
CAUSAL = (
    *("reference", "open_clip eos", "open_clip no projection"),
    *("transformers clip", "transformers old clip"),
)
WHOLE = (
    *("open_clip class token", "open_clip two-way", "open_clip last", "open_clip siglip"),
    "transformers siglip",
)
NAMES = ("two above one", "seven", "three left of one", "a three")
TAIL = " is small"
assert_same = partial(torch.testing.assert_close, rtol=0.0, atol=1e-10)


def siglip_tokens(texts: Sequence[str]) -> Tensor:
    """Rows as SigLIP has them: no start token, and the end token once more as padding."""
    tokens = tokenize(texts)[:, 1:]
    tokens = torch.where(tokens == 0, LAST, tokens)
    return nn.functional.pad(tokens, (0, 1), value=LAST)


@contextmanager
def double_precision() -> Iterator[None]:
    """Makes models in float64, in which the order of sums hardly moves a quantized input."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def make(name: str) -> DualEncoder:
    torch.manual_seed(0)
    tokens = siglip_tokens if "siglip" in name else tokenize
    with double_precision():
        if not name.startswith("transformers"):
            model = build_clip()
            if name != "reference":
                model = open_clip.CustomTextCLIP(24, PLACES, OPEN_CLIP[name])
            return open_clip_encoder(model, preprocess=preprocess_picture, tokenize=tokens)
        if name == "transformers siglip":
            text = {**TEXT, "projection_size": 24}
            siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
            return transformers_encoder(siglip, preprocess=preprocess_picture, tokenize=tokens)
        text = TEXT | {"eos_token_id": 2} if "old" in name else TEXT
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION))
        return transformers_encoder(clip, preprocess=preprocess_picture, tokenize=tokens)


def draw_context(encoder: DualEncoder, count: int, *, specific: bool) -> Tensor:
    """A context for all of `NAMES`, or one for each, of the size of embedded words."""
    shape = (len(NAMES), count) if specific else (count,)
    generator = torch.Generator().manual_seed(count)
    context = torch.randn(*shape, encoder.text_width, generator=generator, dtype=torch.float64)
    return context.requires_grad_()


def first_length(count: int, position: ClassPosition) -> int:
    """How many vectors stand before the name."""
    return {END: count, MIDDLE: count // 2, FRONT: 0}[position]


def whole_rows(
    encoder: DualEncoder,
    names: Sequence[str],
    tail: str,
    context: Tensor,
    position: ClassPosition,
) -> Tensor:
    """The features of prompts put together place by place, each row run in its whole length."""
    start = 1 if encoder.tokenize(["one"])[0, 0] == 1 else 0
    first = first_length(context.shape[-2], position)
    rows: list[list[int]] = []
    vectors: list[dict[int, Tensor]] = []
    for number, name in enumerate(names):
        own = context[number] if context.ndim == 3 else context
        tokens = encoder.tokenize([name + tail])[0].tolist()
        after = start + len(name.split())
        row: list[int | Tensor] = tokens[:start]
        row += [*own[:first], *tokens[start:after], *own[first:], *tokens[after:]]
        del row[LENGTH:]
        rows.append([tokens[0] if isinstance(place, Tensor) else place for place in row])
        vectors.append({n: place for n, place in enumerate(row) if isinstance(place, Tensor)})

    def put(_module: nn.Module, _args: object, embedded: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.stack([own.get(place, old) for place, old in enumerate(row)])
                for own, row in zip(vectors, embedded, strict=True)
            ]
        )

    hook = encoder._interface.token_embedding.register_forward_hook(put)
    try:
        return encoder.encode_texts(torch.tensor(rows))
    finally:
        hook.remove()


def count_positions(encoder: DualEncoder, names: ClassNames, *prompt: object) -> list[int]:
    """The positions that the text tower's first multiplication has in each run."""
    layer = next(
        layer.name
        for layer in encoder.layers
        if layer.tower is Tower.TEXT and layer.kind is LayerKind.LINEAR
    )
    counts: list[int] = []

    def watch(name: str, inputs: Tensor) -> None:
        if name == layer:
            counts.append(inputs[..., 0].numel())

    with encoder.watch_inputs(watch):
        encoder.encode_prompts(names, *prompt)  # type: ignore[arg-type]  # the caller's
    return counts


# A context of embedded words is the caption with these words.


@pytest.mark.parametrize("name", CAUSAL + WHOLE)
@pytest.mark.parametrize(
    ("position", "captions"),
    [
        (END, ["a photo of two above one is", "a photo of the three is"]),
        (MIDDLE, ["a two above one photo of is", "a the three photo of is"]),
        (FRONT, ["two above one a photo of is", "the three a photo of is"]),
    ],
)
def test_a_context_of_embedded_words_is_the_caption_with_these_words(
    name: str, position: ClassPosition, captions: list[str]
) -> None:
    encoder = make(name)
    names = encoder.class_names(["two above one", "the three"], " is")
    words = encoder.embed_words("a photo of")

    features = encoder.encode_prompts(names, words, position)

    written = encoder.encode_texts(encoder.tokenize(captions))
    assert words.shape == (3, encoder.text_width)
    assert_same(features, written)


@pytest.mark.parametrize("name", CAUSAL + WHOLE)
@pytest.mark.parametrize(
    ("position", "captions"),
    [
        (END, ["a photo of two above one is", "the good scan the three is"]),
        (MIDDLE, ["a two above one photo of is", "the the three good scan is"]),
        (FRONT, ["two above one a photo of is", "the three the good scan is"]),
    ],
)
def test_each_class_can_have_words_of_its_own(
    name: str, position: ClassPosition, captions: list[str]
) -> None:
    encoder = make(name)
    names = encoder.class_names(["two above one", "the three"], " is")
    words = torch.stack([encoder.embed_words(text) for text in ("a photo of", "the good scan")])

    features = encoder.encode_prompts(names, words, position)

    written = encoder.encode_texts(encoder.tokenize(captions))
    assert_same(features, written)


# Packed rows against whole rows.


@pytest.mark.parametrize("name", CAUSAL + WHOLE)
@pytest.mark.parametrize("position", ClassPosition)
@pytest.mark.parametrize("specific", [False, True])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_features_and_gradients_are_those_of_whole_rows(
    name: str, position: ClassPosition, specific: bool, count: int
) -> None:
    encoder = make(name)
    context = draw_context(encoder, count, specific=specific)
    expected = whole_rows(encoder, NAMES, TAIL, context, position)

    features = encoder.encode_prompts(encoder.class_names(NAMES, TAIL), context, position)

    assert_same(features, expected)
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    (gradient,) = torch.autograd.grad((weights * features).sum(), context)
    (wanted,) = torch.autograd.grad((weights * expected).sum(), context)
    assert_same(gradient, wanted)
    assert (gradient.abs().amax(dim=-1) > 0).all()
    assert all(parameter.grad is None for parameter in encoder.module.parameters())


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("name", CAUSAL + WHOLE)
@pytest.mark.parametrize("position", ClassPosition)
@pytest.mark.parametrize("specific", [False, True])
def test_under_a_plan_too_they_are_those_of_whole_rows(
    name: str, activations: str, position: ClassPosition, specific: bool
) -> None:
    encoder = make(name)
    context = draw_context(encoder, 3, specific=specific)
    names = encoder.class_names(NAMES, TAIL)
    unquantized = encoder.encode_prompts(names, context, position)
    layers = [layer.name for layer in encoder.layers]
    quantizer = QuantizerSpec.model_validate({"activations": activations})
    ranges = {layer: {1.0: InputRange(-2.0, 2.5)} for layer in layers}
    PlanSwitch(encoder, quantizer, ranges).to(Plan.uniform(layers, Precision(4, 4)))
    expected = whole_rows(encoder, NAMES, TAIL, context, position)

    features = encoder.encode_prompts(names, context, position)

    assert_same(features, expected)
    (gradient,) = torch.autograd.grad(features.square().sum(), context)
    (wanted,) = torch.autograd.grad(expected.square().sum(), context)
    assert_same(gradient, wanted)
    assert gradient.any()
    assert (features - unquantized).abs().amax() > 0.1 * unquantized.std()


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(
    "names",
    [
        ["two above one"],
        ["two above one", "two above three", "two"],
        ["seven", "seven"],
        ["two", "seven", "two"],
    ],
)
def test_alike_names_are_those_of_whole_rows(name: str, names: list[str]) -> None:
    encoder = make(name)
    context = draw_context(encoder, 3, specific=False)

    features = encoder.encode_prompts(encoder.class_names(names), context)

    assert_same(features, whole_rows(encoder, names, "", context, END))


@pytest.mark.parametrize("name", CAUSAL + WHOLE)
def test_an_empty_context_is_the_plain_caption(name: str) -> None:
    encoder = make(name)
    names = encoder.class_names(NAMES, TAIL)

    features = encoder.encode_prompts(names, torch.zeros(0, encoder.text_width))

    assert_same(features, encoder.encode_texts(names.tokens))


# What runs.


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(
    ("position", "specific", "shared"),
    [(END, False, 6), (MIDDLE, False, 3), (FRONT, False, 1), (END, True, 1), (MIDDLE, True, 1)],
)
def test_what_all_rows_share_runs_once_and_nothing_runs_after_the_ends(
    name: str, position: ClassPosition, specific: bool, shared: int
) -> None:
    encoder = make(name)
    context = draw_context(encoder, 5, specific=specific)
    rows = [1 + 5 + len((text + TAIL).split()) + 1 for text in NAMES]

    counts = count_positions(encoder, encoder.class_names(NAMES, TAIL), context, position)

    assert counts == [shared + sum(row - shared for row in rows)]


@pytest.mark.parametrize("name", CAUSAL)
def test_words_that_all_names_begin_with_run_once(name: str) -> None:
    encoder = make(name)
    names = encoder.class_names(["two above one", "two above three", "two above the seven"])

    counts = count_positions(encoder, names, draw_context(encoder, 5, specific=False))

    assert counts == [1 + 5 + 2 + (1 + 1) + (1 + 1) + (2 + 1)]


@pytest.mark.parametrize("name", CAUSAL)
def test_many_classes_run_in_several_packs(name: str) -> None:
    encoder = make(name)
    context = draw_context(encoder, 6, specific=False)
    names = encoder.class_names(CLASSES)

    counts = count_positions(encoder, names, context)

    own = sum(len(text.split()) + 1 for text in CLASSES)
    assert 1 < len(counts) <= 2 * own / PACK_LENGTH
    assert sum(counts) == own + len(counts) * (1 + 6)
    expected = whole_rows(encoder, CLASSES, "", context, END)
    assert_same(encoder.encode_prompts(names, context), expected)


@pytest.mark.parametrize("name", WHOLE)
def test_towers_in_which_padding_counts_run_whole_rows(name: str) -> None:
    encoder = make(name)
    places = LENGTH + (name == "open_clip class token")

    counts = count_positions(
        encoder, encoder.class_names(NAMES), draw_context(encoder, 5, specific=False)
    )

    assert counts == [len(NAMES) * places]


@pytest.mark.parametrize("name", ["reference", "transformers clip", "transformers siglip"])
def test_a_context_leaves_no_trace(name: str) -> None:
    encoder = make(name)
    names = encoder.class_names(NAMES)
    before = encoder.encode_texts(names.tokens)

    encoder.encode_prompts(names, draw_context(encoder, 3, specific=False))
    with pytest.raises(SpecError):
        encoder.encode_prompts(names, draw_context(encoder, 30, specific=True))

    assert torch.equal(encoder.encode_texts(names.tokens), before)
    assert not any(module._forward_hooks for module in encoder.module.modules())


# What is refused.


@pytest.mark.parametrize("name", CAUSAL + WHOLE)
@pytest.mark.parametrize("position", ClassPosition)
def test_the_longest_context_that_fits_is_taken_and_one_more_is_refused(
    name: str, position: ClassPosition
) -> None:
    encoder = make(name)
    names = encoder.class_names(["two above one", "a photo of two above one"])
    start = 0 if "siglip" in name else 1
    most = LENGTH - start - 6 - 1

    features = encoder.encode_prompts(names, torch.ones(most, encoder.text_width), position)

    assert features.isfinite().all()
    with pytest.raises(SpecError, match=rf"{most + 1} prompt vectors do not fit.*{LENGTH}"):
        encoder.encode_prompts(names, torch.ones(2, most + 1, encoder.text_width), position)


@pytest.mark.parametrize("shape", [(2, 63), (64,), (1, 2, 64), (2, 2, 63), (1, 2, 2, 64)])
def test_a_context_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    encoder = make("reference")
    names = encoder.class_names(["two above one", "seven"])

    with pytest.raises(SpecError, match=r"must be \(count, 64\), or \(2, count, 64\)"):
        encoder.encode_prompts(names, torch.ones(shape))


# Names.


def test_a_row_without_an_end_is_full() -> None:
    layout = CaptionLayout(start=1, end=9)
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 9, 0]])

    assert layout.ends(tokens).tolist() == [4, 2]


@pytest.mark.parametrize("name", ["reference", "transformers siglip"])
def test_class_names_are_captions_that_know_the_names_length(name: str) -> None:
    encoder = make(name)

    names = encoder.class_names(NAMES, TAIL)

    assert len(names) == len(NAMES)
    assert torch.equal(names.tokens, encoder.tokenize([text + TAIL for text in NAMES]))
    assert names.name_lengths.tolist() == [3, 1, 4, 2]


def test_some_classes_are_picked_in_their_order() -> None:
    names = make("reference").class_names(NAMES, TAIL)

    some = names.pick(torch.tensor([2, 0]))

    assert torch.equal(some.tokens, names.tokens[[2, 0]])
    assert some.name_lengths.tolist() == [4, 3]


def test_clips_tokens_tell_the_name_from_the_full_stop() -> None:
    tokens = open_clip.get_tokenizer("ViT-B-32")

    names = ClassNames.of(["golden retriever", "cat", "jack-o'-lantern"], ".", tokens)

    words = [len(tokens.encode(name)) for name in ("golden retriever", "cat", "jack-o'-lantern")]
    assert words[:2] == [2, 1]
    assert names.name_lengths.tolist() == words
    ends = names.layout.ends(names.tokens)
    stops = names.tokens[torch.arange(3), ends - 1]
    assert stops.tolist() == 3 * tokens.encode(".")
    assert (ends - names.name_lengths).tolist() == [2, 2, 2]


def test_where_name_and_tail_share_a_token_all_is_name() -> None:
    def in_pairs(texts: Sequence[str]) -> Tensor:
        rows = [
            [ord(text[n]) * 256 + ord(text[n + 1 : n + 2] or " ") for n in range(0, len(text), 2)]
            for text in texts
        ]
        return torch.tensor([[1, *row, *[0] * (8 - len(row))] for row in rows])

    names = ClassNames.of(["cat", "cats"], ".x", in_pairs)

    assert names.layout.ends(names.tokens).tolist() == [4, 4]
    assert names.name_lengths.tolist() == [3, 2]


def test_embedded_words_are_in_full_precision_under_a_plan() -> None:
    encoder = make("reference")
    words = encoder.embed_words("two above one")

    encoder.put_weight("token_embedding.weight", torch.zeros(len(VOCABULARY), 64))

    assert torch.equal(encoder.embed_words("two above one"), words)
    assert words.any()


@pytest.mark.parametrize("name", [*CAUSAL, *WHOLE])
def test_a_copy_runs_on_its_own_weights(name: str) -> None:
    encoder, expected = make(name), make(name)
    context = draw_context(encoder, 2, specific=False)
    copied = copy.deepcopy(encoder)
    pixels = torch.ones(1, *encoder.image_shape, dtype=torch.float64)

    def features(one: DualEncoder) -> list[Tensor]:
        with torch.no_grad():
            prompted = one.encode_prompts(one.class_names(NAMES, TAIL), context)
            return [prompted, one.encode_texts(one.tokenize(NAMES)), one.encode_images(pixels)]

    before = features(encoder)
    for model in (copied, expected):
        for layer in model.layers:
            model.put_weight(layer.name, 0.5 * model.weight(layer.name))

    assert all(map(torch.equal, features(copied), features(expected)))
    assert all(map(torch.equal, features(encoder), before))

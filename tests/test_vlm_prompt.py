from collections.abc import Sequence

import open_clip
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from bitfront.errors import SpecError
from bitfront.reference.digit_clip import VOCABULARY, build_clip, tokenize
from bitfront.vlm.captions import CaptionLayout
from bitfront.vlm.encoder import DualEncoder
from bitfront.vlm.open_clip_models import open_clip_encoder
from bitfront.vlm.reference_model import preprocess_picture
from bitfront.vlm.transformers_models import transformers_encoder

LENGTH = 28
TINY = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4}
VISION = {**TINY, "image_size": 24, "patch_size": 8}
TEXT = {**TINY, "vocab_size": len(VOCABULARY), "max_position_embeddings": LENGTH}
TEXT |= {"bos_token_id": 1, "eos_token_id": len(VOCABULARY) - 1, "pad_token_id": 0}
PLACES = {"image_size": 24, "patch_size": 8, "width": 24, "layers": 1, "head_width": 6}
WORDS = {"context_length": LENGTH, "vocab_size": 36, "width": 24, "heads": 4, "layers": 2}


def siglip_tokens(texts: Sequence[str]) -> Tensor:
    """Rows as SigLIP has them: no start token, and the end token once more as padding."""
    tokens = tokenize(texts)[:, 1:]
    tokens = torch.where(tokens == 0, len(VOCABULARY) - 1, tokens)
    return nn.functional.pad(tokens, (0, 1), value=len(VOCABULARY) - 1)


def make(name: str) -> DualEncoder:
    torch.manual_seed(0)
    if name == "reference":
        model = build_clip()
        return open_clip_encoder(model, preprocess=preprocess_picture, tokenize=tokenize)
    if name == "open_clip siglip":
        text = {**WORDS, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
        model = open_clip.CustomTextCLIP(16, PLACES, text)
        return open_clip_encoder(model, preprocess=preprocess_picture, tokenize=siglip_tokens)
    if name == "transformers clip":
        clip = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION))
        return transformers_encoder(clip, preprocess=preprocess_picture, tokenize=tokenize)
    siglip = SiglipModel(
        SiglipConfig(text_config={**TEXT, "projection_size": 24}, vision_config=VISION)
    )
    return transformers_encoder(siglip, preprocess=preprocess_picture, tokenize=siglip_tokens)


NAMES = ("reference", "open_clip siglip", "transformers clip", "transformers siglip")


@pytest.mark.parametrize("name", NAMES)
def test_a_context_of_embedded_words_is_the_caption_with_these_words(name: str) -> None:
    encoder = make(name)
    context = encoder.embed_words("a photo of")

    with_context = encoder.encode_texts(encoder.tokenize(["two above one", "the three"]), context)
    written = encoder.encode_texts(
        encoder.tokenize(["a photo of two above one", "a photo of the three"])
    )

    assert context.shape == (3, encoder.text_width)
    torch.testing.assert_close(with_context, written, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_context_vector(name: str) -> None:
    encoder = make(name)
    context = torch.randn(4, encoder.text_width, requires_grad=True)

    features = encoder.encode_texts(encoder.tokenize(["two above one"]), context)
    (gradient,) = torch.autograd.grad(features.square().sum(), context)

    assert (gradient.abs().amax(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in encoder.module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_longest_context_that_fits_is_taken_and_one_more_is_refused(name: str) -> None:
    encoder = make(name)
    tokens = encoder.tokenize(["two above one", "a photo of two above one"])
    start = 1 if torch.equal(tokens, tokenize(["two above one", "a photo of two above one"])) else 0
    most = LENGTH - start - 6 - 1

    features = encoder.encode_texts(tokens, torch.ones(most, encoder.text_width))

    assert features.isfinite().all()
    with pytest.raises(SpecError, match=rf"{most + 1} prompt vectors do not fit.*{LENGTH}"):
        encoder.encode_texts(tokens, torch.ones(most + 1, encoder.text_width))


def test_an_empty_context_changes_nothing() -> None:
    encoder = make("reference")
    tokens = encoder.tokenize(["two above one"])

    assert torch.equal(
        encoder.encode_texts(tokens, torch.zeros(0, encoder.text_width)),
        encoder.encode_texts(tokens),
    )


def test_a_context_leaves_no_trace() -> None:
    encoder = make("reference")
    tokens = encoder.tokenize(["two above one"])
    before = encoder.encode_texts(tokens)

    encoder.encode_texts(tokens, torch.ones(3, encoder.text_width))
    with pytest.raises(SpecError):
        encoder.encode_texts(tokens, torch.ones(30, encoder.text_width))

    assert torch.equal(encoder.encode_texts(tokens), before)


@pytest.mark.parametrize("shape", [(2, 63), (64,), (1, 2, 64)])
def test_a_context_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    encoder = make("reference")

    with pytest.raises(SpecError, match=r"prompt vectors must be \(count, 64\)"):
        encoder.encode_texts(encoder.tokenize(["two above one"]), torch.ones(shape))


def test_a_row_without_an_end_is_full() -> None:
    layout = CaptionLayout(start=1, end=9)
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 9, 0]])

    assert layout.ends(tokens).tolist() == [4, 2]
    with pytest.raises(SpecError, match="1 prompt vectors do not fit"):
        layout.make_room(tokens, 1)
    assert layout.make_room(tokens[1:], 1).tolist() == [[1, 1, 2, 9]]


def test_embedded_words_are_in_full_precision_under_a_plan() -> None:
    encoder = make("reference")
    words = encoder.embed_words("two above one")

    encoder.put_weight("token_embedding.weight", torch.zeros(36, 64))

    assert torch.equal(encoder.embed_words("two above one"), words)
    assert words.any()

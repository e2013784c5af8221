import copy
from collections.abc import Callable

import open_clip
import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import Attention as OpenClipAttention
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from bitfront.errors import InvalidModel
from bitfront.reference.digit_clip import tokenize
from bitfront.vlm.layers.rewrite import call_every_weight
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.reference import preprocess_picture
from bitfront.vlm.loaders.transformers import transformers_encoder
from bitfront.vlm.models.dual_encoder import DualEncoder

WIDTH, HEADS, BATCH, QUERIES, KEYS = 24, 4, 3, 5, 7


class Holder(nn.Module):
    """A model with one part, which a rewrite may replace."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


def randomized(module: nn.Module) -> nn.Module:
    """The module in eval mode, its biases and scales drawn too: zeros would hide a mistake."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return module.eval().requires_grad_(requires_grad=False)


def rewritten(part: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The part as it was, and as a rewrite leaves it."""
    holder = Holder(copy.deepcopy(randomized(part)))
    names = call_every_weight(holder)
    wanted = {name for name, p in part.named_parameters() if p.ndim > 1 and "weight" in name}
    assert {name.removeprefix("part.") for name in names.values()} == wanted
    return part, holder.part


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CAUSAL = torch.ones(QUERIES, QUERIES).triu(1).bool()
PADDING = (torch.arange(QUERIES) >= QUERIES - 2).expand(BATCH, -1)
MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "additive": {"attn_mask": draw(QUERIES, QUERIES)},
    "causal": {"attn_mask": torch.full((QUERIES, QUERIES), float("-inf")).triu(1)},
    "boolean": {"attn_mask": CAUSAL},
    "per head": {"attn_mask": draw(BATCH * HEADS, QUERIES, QUERIES)},
    "padding": {"key_padding_mask": PADDING},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_self_attention_is_the_same(mask: str, batch_first: bool) -> None:
    before, after = rewritten(nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first))
    x = draw(BATCH, QUERIES, WIDTH) if batch_first else draw(QUERIES, BATCH, WIDTH)
    given = MASKS[mask]

    fast = before(x, x, x, need_weights=False, **given)[0]
    slow = before(x, x.clone(), x.clone(), need_weights=False, **given)[0]
    output = after(x, x, x, need_weights=False, **given)[0]

    torch.testing.assert_close(output, fast, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output, slow, rtol=1e-5, atol=1e-5)
    assert torch.equal(output, after(x, x, x, **given)[0])


@pytest.mark.parametrize("shared", [True, False], ids=["key is value", "all apart"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(WIDTH, WIDTH), (16, 8)], ids=["packed", "apart"])
def test_cross_attention_is_the_same(widths: tuple[int, int], bias: bool, shared: bool) -> None:
    kdim, vdim = (widths[0],) * 2 if shared else widths
    before, after = rewritten(
        nn.MultiheadAttention(WIDTH, HEADS, bias=bias, kdim=kdim, vdim=vdim, batch_first=True)
    )
    query, key = draw(BATCH, QUERIES, WIDTH), draw(BATCH, KEYS, kdim)
    value = key if shared else draw(BATCH, KEYS, vdim) + 1

    expected = before(query, key, value)[0]

    torch.testing.assert_close(after(query, key, value)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "part",
    [
        OpenClipAttention(WIDTH, HEADS),
        OpenClipAttention(WIDTH, HEADS, qkv_bias=False, qk_norm=True),
        OpenClipAttention(WIDTH, HEADS, scale_heads=True, inner_norm=True),
        EvaAttention(WIDTH, HEADS, qkv_fused=True, norm_layer=nn.LayerNorm),
    ],
    ids=["plain", "query and key norms", "head scales", "eva"],
)
@pytest.mark.parametrize("masked", [True, False])
def test_a_librarys_own_attention_is_the_same(part: nn.Module, masked: bool) -> None:
    before, after = rewritten(part)
    x = draw(BATCH, QUERIES, WIDTH)
    mask = torch.full((QUERIES, QUERIES), float("-inf")).triu(1) if masked else None

    called: list[nn.Module] = []
    linears = [module for module in after.modules() if isinstance(module, nn.Linear)]
    for module in linears:
        module.register_forward_pre_hook(lambda module, _args: called.append(module))

    expected = before(x, attn_mask=mask)

    torch.testing.assert_close(after(x, attn_mask=mask), expected, rtol=1e-5, atol=1e-5)
    assert called == linears


def test_the_attention_pool_is_the_same() -> None:
    before, after = rewritten(AttentionPool2d(3, WIDTH, HEADS, 10))
    x = draw(BATCH, WIDTH, 3, 3)

    torch.testing.assert_close(after(x), before(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "part",
    [
        nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True),
        nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True),
        OpenClipAttention(WIDTH, HEADS, scaled_cosine=True),
    ],
)
def test_attention_that_would_change_is_refused(part: nn.Module) -> None:
    with pytest.raises(InvalidModel, match="not supported"):
        call_every_weight(Holder(part))


TEXT = {"context_length": 28, "vocab_size": 36, "width": 24, "heads": 4, "layers": 2}
VISION = {"image_size": 24, "patch_size": 8, "width": 24, "layers": 2, "head_width": 6}
SIGLIP_TEXT = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
TINY = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4}
TINY_VISION = {**TINY, "image_size": 24, "patch_size": 8}
TINY_TEXT = {**TINY, "vocab_size": 36, "max_position_embeddings": 28}
TINY_TEXT |= {"bos_token_id": 1, "eos_token_id": 35, "pad_token_id": 0}


def clip(**vision: object) -> nn.Module:
    model: nn.Module = open_clip.CLIP(16, {**VISION, **vision}, TEXT)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": clip,
    "quick gelu, layer scale, average": lambda: open_clip.CLIP(
        16, {**VISION, "ls_init_value": 0.1, "pool_type": "avg"}, TEXT, quick_gelu=True
    ),
    "attentional pool": lambda: clip(attentional_pool=True, attn_pooler_queries=3),
    "resnet": lambda: clip(layers=(1, 2, 1, 1), image_size=32, width=8, head_width=16),
    "siglip text": lambda: open_clip.CustomTextCLIP(16, VISION, {**TEXT, **SIGLIP_TEXT}),
    "custom blocks": lambda: open_clip.CLIP(
        16, {**VISION, "qk_norm": True}, {**TEXT, "scale_heads": True}
    ),
    "transformers clip": lambda: CLIPModel(
        CLIPConfig(text_config=TINY_TEXT, vision_config=TINY_VISION, projection_dim=16)
    ),
    "transformers siglip": lambda: SiglipModel(
        SiglipConfig(text_config={**TINY_TEXT, "projection_size": 24}, vision_config=TINY_VISION)
    ),
}


def encoder_of(model: nn.Module) -> DualEncoder:
    if isinstance(model, CLIPModel | SiglipModel):
        return transformers_encoder(model, preprocess=preprocess_picture, tokenize=tokenize)
    return open_clip_encoder(model, preprocess=preprocess_picture, tokenize=tokenize)


def library_features(model: nn.Module, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What the library itself computes."""
    if isinstance(model, CLIPModel | SiglipModel):
        output = model(input_ids=tokens, pixel_values=pixels)
        return output.image_embeds, output.text_embeds
    image, text, *_ = model(pixels, tokens)
    return image, text


@pytest.mark.parametrize("name", MODELS)
def test_a_models_features_are_those_of_its_library(name: str) -> None:
    model = randomized(MODELS[name]())
    encoder = encoder_of(copy.deepcopy(model))
    pixels = draw(2, *encoder.image_shape)
    tokens = tokenize(["a three left of a seven", "two above one"])

    images, texts = library_features(model, pixels, tokens)
    encoded = encoder.encode_images(pixels), encoder.encode_texts(tokens)

    for expected, features in zip((images, texts), encoded, strict=True):
        unit = nn.functional.normalize(features, dim=-1)
        torch.testing.assert_close(unit, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(encoded[0], encoder.encode_images(pixels))
    assert torch.equal(encoded[1], encoder.encode_texts(tokens))
    assert encoder.feature_width == encoded[0].shape[1]


@pytest.mark.parametrize("name", MODELS)
def test_changing_any_layer_changes_a_feature(name: str) -> None:
    encoder = encoder_of(randomized(MODELS[name]()))
    pixels, tokens = draw(1, *encoder.image_shape), tokenize(["a three left of a seven"])

    def features() -> Tensor:
        return torch.cat([encoder.encode_images(pixels), encoder.encode_texts(tokens)], dim=1)

    full = features()
    for layer in encoder.layers:
        encoder.put_weight(layer.name, encoder.weight(layer.name) * 1.5)
        assert not torch.equal(features(), full), layer.name
        encoder.put_weight(layer.name, None)
    assert torch.equal(features(), full)

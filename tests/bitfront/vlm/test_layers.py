from collections.abc import Callable

import open_clip
import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from bitfront.errors import InvalidModel
from bitfront.layers import LayerKind, Tower
from bitfront.reference.digit_clip import build_clip, tokenize
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.reference import preprocess_picture
from bitfront.vlm.loaders.transformers import transformers_encoder
from bitfront.vlm.models.dual_encoder import DualEncoder


def open_clip_model(name: str) -> nn.Module:
    config = open_clip.get_model_config(name)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model: nn.Module = kind(**config)
    return model


def encoder_of(model: nn.Module) -> DualEncoder:
    if isinstance(model, CLIPModel | SiglipModel):
        return transformers_encoder(model, preprocess=preprocess_picture, tokenize=tokenize)
    return open_clip_encoder(model, preprocess=preprocess_picture, tokenize=tokenize)


# Siglip's text tower has no start token; its default config still names CLIP's.
SIGLIP_TEXT = {"bos_token_id": 0, "eos_token_id": 1}
BUILDS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ViT-B-32": (lambda: open_clip_model("ViT-B-32"), 151_277_313),
    "ViT-B-16": (lambda: open_clip_model("ViT-B-16"), 149_620_737),
    "RN50": (lambda: open_clip_model("RN50"), 102_007_137),
    "ViT-B-16-SigLIP": (lambda: open_clip_model("ViT-B-16-SigLIP"), 203_155_970),
    "transformers CLIP": (lambda: CLIPModel(CLIPConfig()), 151_277_313),
    "transformers SigLIP": (
        lambda: SiglipModel(SiglipConfig(text_config=SIGLIP_TEXT)),
        203_155_970,
    ),
}

# What is deliberately left in 16 bits, by the last two parts of a parameter's name.
KEPT = (
    "bias",
    "class_embedding",
    "positional_embedding",
    "position_embedding.weight",
    "pos_embed",
    "logit_scale",
    "logit_bias",
    "latent",  # the query of timm's attention pool
    "probe",  # the same in transformers
    *(f"ln_{place}.weight" for place in ("pre", "post", "final", "1", "2")),
    *(f"bn{number}.weight" for number in (1, 2, 3)),
    "downsample.1.weight",  # a batch norm
    *(f"norm{number}.weight" for number in ("", 1, 2)),
    *(f"layer_norm{number}.weight" for number in (1, 2)),
    *(f"{place}.weight" for place in ("pre_layrnorm", "post_layernorm", "final_layer_norm")),
    "head.layernorm.weight",
)


@pytest.mark.parametrize("name", BUILDS)
def test_layers_and_kept_parameters_are_the_whole_model(name: str) -> None:
    build, parameters = BUILDS[name]
    with torch.device("meta"):
        model = build()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(sizes.values()) == parameters

    encoder = encoder_of(model)

    counted = {layer.name: layer.weights for layer in encoder.layers} | dict(encoder.kept)
    assert counted == sizes
    assert sum(layer.weights for layer in encoder.layers) + sum(encoder.kept.values()) == parameters
    assert [name for name in encoder.kept if not name.endswith(KEPT)] == []
    assert sum(encoder.kept.values()) < 0.005 * parameters


@pytest.mark.parametrize("name", BUILDS)
def test_layers_come_in_order_of_execution_vision_first(name: str) -> None:
    with torch.device("meta"):
        encoder = encoder_of(BUILDS[name][0]())

    towers = [layer.tower for layer in encoder.layers]
    kinds = [layer.kind for layer in encoder.layers]

    switch = towers.index(Tower.TEXT)
    assert set(towers[:switch]) == {Tower.VISION}
    assert set(towers[switch:]) == {Tower.TEXT}
    assert kinds[0] is LayerKind.CONVOLUTION
    assert kinds.index(LayerKind.EMBEDDING) == switch
    assert kinds.count(LayerKind.EMBEDDING) == 1


def layers_of(name: str) -> dict[str, tuple[int, int, int, str, str]]:
    """Rows, columns, positions, source and scope of each layer."""
    with torch.device("meta"):
        encoder = encoder_of(BUILDS[name][0]())
    return {
        layer.name: (layer.rows, layer.columns, layer.positions, layer.source, layer.scope)
        for layer in encoder.layers
    }


def test_open_clip_layers_have_the_shapes_of_the_architecture() -> None:
    layers = layers_of("ViT-B-32")

    block = "visual.transformer.resblocks.3"
    packed = f"{block}.attn.in_proj_weight"
    assert layers[packed] == (3 * 768, 768, 50, packed, block)
    assert layers["visual.conv1.weight"][:3] == (768, 3 * 32 * 32, 49)
    assert layers["visual.proj"] == (512, 768, 1, "visual.proj", "vision")
    assert layers["text_projection"][:3] == (512, 512, 1)
    assert layers["token_embedding.weight"][:3] == (49408, 512, 0)
    assert layers["transformer.resblocks.0.mlp.c_fc.weight"][:3] == (2048, 512, 77)


def test_layers_with_one_input_share_their_source() -> None:
    layers = layers_of("transformers CLIP")

    attention = "vision_model.encoder.layers.2.self_attn"
    sources = [layers[f"{attention}.{part}_proj.weight"][3] for part in ("q", "k", "v", "out")]
    assert sources[0] == sources[1] == sources[2] == f"{attention}.q_proj.weight"
    assert sources[3] == f"{attention}.out_proj.weight"


def test_the_attention_pool_of_a_resnet_projects_one_query_and_all_keys() -> None:
    layers = layers_of("RN50")

    positions = {part: layers[f"visual.attnpool.{part}_proj.weight"][2] for part in "qkvc"}
    assert positions == {"q": 1, "k": 50, "v": 50, "c": 1}
    assert layers["visual.layer2.0.downsample.0.weight"][4] == "visual.layer2.0"
    assert layers["visual.layer4.2.conv2.weight"][:3] == (512, 512 * 9, 49)


def test_a_packed_pool_counts_its_query_rows_once_and_its_key_rows_for_every_patch() -> None:
    layers = layers_of("transformers SigLIP")

    rows, columns, positions, _, _ = layers["vision_model.head.attention.in_proj_weight"]
    assert (rows, columns) == (3 * 768, 768)
    assert positions == -(-(1 * 768 + 196 * 2 * 768) // rows)


class Tied(open_clip.CLIP):  # type: ignore[misc]  # open_clip has no types
    """A CLIP whose two text blocks share the weights of their attention and first linear."""

    def __init__(self) -> None:
        vision = {"image_size": 24, "patch_size": 8, "width": 24, "layers": 1, "head_width": 6}
        text = {"context_length": 28, "vocab_size": 36, "width": 24, "heads": 4, "layers": 2}
        super().__init__(16, vision, text)
        first, second = self.transformer.resblocks
        second.attn.in_proj_weight = first.attn.in_proj_weight
        second.mlp.c_fc = first.mlp.c_fc


def test_a_tied_weight_counts_once_and_changes_wherever_it_is_used() -> None:
    model = Tied()
    total = sum(parameter.numel() for parameter in model.parameters())
    encoder = encoder_of(model)
    tied = "transformer.resblocks.0.attn.in_proj_weight"

    encoder.put_weight(tied, torch.zeros(72, 24))

    assert total == sum(layer.weights for layer in encoder.layers) + sum(encoder.kept.values())
    assert len(encoder.modules(tied)) == 2
    assert all(not module.get_parameter("weight").any() for module in encoder.modules(tied))
    layers = {layer.name: layer for layer in encoder.layers}
    assert layers[tied].positions == 2 * 28
    assert layers["transformer.resblocks.0.mlp.c_fc.weight"].positions == 2 * 28
    assert "transformer.resblocks.1.mlp.c_fc.weight" not in layers


def test_batch_norm_statistics_count_as_fixed_bytes() -> None:
    with torch.device("meta"):
        encoder = encoder_of(open_clip_model("RN50"))

    statistics = sum(encoder.buffers.values())
    assert statistics == 2 * sum(
        module.num_features
        for module in encoder.module.modules()
        if isinstance(module, nn.BatchNorm2d)
    )
    assert encoder.fixed_nbytes == 2 * (sum(encoder.kept.values()) + statistics)


def test_identity_is_of_the_content() -> None:
    changed = build_clip()
    with torch.no_grad():
        changed.visual.conv1.weight.view(-1)[7] += 1e-6
    renamed = build_clip()
    renamed.visual.pool_type = "avg"
    identities = [encoder_of(model).identity for model in (build_clip(), build_clip())]

    assert identities[0] == identities[1]
    assert encoder_of(changed).identity != identities[0]
    assert encoder_of(renamed).identity != identities[0]


def test_identity_does_not_change_with_a_plan_or_a_rewrite() -> None:
    encoder = encoder_of(build_clip())
    before = encoder.identity

    encoder.put_weight("visual.proj", torch.zeros(32, 64))

    assert encoder.identity == before == encoder_of(build_clip()).identity


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    model = build_clip()
    with torch.no_grad():
        model.transformer.resblocks[1].mlp.c_fc.weight[0, 3] = value

    with pytest.raises(InvalidModel, match=r"transformer\.resblocks\.1\.mlp\.c_fc\.weight"):
        encoder_of(model)

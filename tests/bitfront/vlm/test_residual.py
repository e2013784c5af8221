import pytest

from bitfront.spec import ModelSpec
from bitfront.vlm import LayeredModel, load_model
from tests.support.scene_models import untrained_encoder


def streams(model: LayeredModel) -> dict[str, str]:
    """For each layer that writes into a residual stream, the module that reads it before."""
    paths = {module: path for path, module in model.module.named_modules()}
    found = {layer.name: model.stream(layer.name) for layer in model.layers}
    return {name: paths[module] for name, module in found.items() if module is not None}


def test_attention_and_mlp_of_a_clip_write_into_the_stream_that_their_norms_read() -> None:
    towers = {"visual.transformer": 3, "transformer": 2}
    expected = {}
    for tower, blocks in towers.items():
        for block in (f"{tower}.resblocks.{number}" for number in range(blocks)):
            expected[f"{block}.attn.out_proj.weight"] = f"{block}.ln_1"
            expected[f"{block}.mlp.c_proj.weight"] = f"{block}.ln_2"

    assert streams(untrained_encoder()) == expected


def test_every_block_of_a_llava_writes_twice_into_its_stream() -> None:
    model = load_model(ModelSpec.model_validate({"source": "reference", "name": "digit-llava"}))

    found = streams(model)

    blocks = {layer.scope for layer in model.layers if layer.scope[-1].isdigit()}
    assert len(found) == 2 * len(blocks)
    ends = ("out_proj.weight", "o_proj.weight", "fc2.weight", "down_proj.weight")
    assert all(name.endswith(ends) for name in found)
    for name, norm in found.items():
        is_attention = name.endswith(("out_proj.weight", "o_proj.weight"))
        first = norm.endswith(("layer_norm1", "input_layernorm"))
        assert first is is_attention
        assert norm.rpartition(".")[0] == name.split(".self_attn")[0].split(".mlp")[0]


@pytest.mark.parametrize("name", ["visual.conv1.weight", "visual.proj", "token_embedding.weight"])
def test_a_layer_whose_output_is_not_added_as_it_is_writes_into_none(name: str) -> None:
    assert untrained_encoder().stream(name) is None

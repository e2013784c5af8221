import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextSparseMoeBlock

from bitfront.layers import LayerKind, Tower
from bitfront.vlm.layers.patches import CalledPatches, is_patch_projection
from bitfront.vlm.layers.rewrite import call_every_weight
from bitfront.vlm.layers.trace import find_sites

EXPERTS, CHOSEN, WIDTH, HIDDEN = 5, 2, 12, 8


class Layers(nn.Module):
    """A decoder of one layer that is a mixture of experts."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        config = Qwen3VLMoeTextConfig(
            hidden_size=WIDTH,
            moe_intermediate_size=HIDDEN,
            num_experts=EXPERTS,
            num_experts_per_tok=CHOSEN,
        )
        config._experts_implementation = "eager"
        self.layers = nn.ModuleList([Qwen3VLMoeTextSparseMoeBlock(config)])
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / WIDTH**0.5

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers[0](x)
        return output


def tokens(count: int, seed: int = 1) -> Tensor:
    return torch.randn(1, count, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_mixture_gives_the_same_bits_expert_by_expert() -> None:
    stock = Layers()
    called = copy.deepcopy(stock)
    call_every_weight(called)

    x = tokens(20)
    assert torch.equal(called(x), stock(x))


@pytest.mark.parametrize("count", [1, 2, 20])
def test_every_expert_is_two_layers_however_few_tokens_show_the_model(count: int) -> None:
    model = Layers()
    packed = {name: p for name, p in model.named_parameters() if p.ndim == 3}
    names = call_every_weight(model)
    x = tokens(count)

    sites = find_sites(model, names, {Tower.LANGUAGE: lambda: model(x)})

    found = {site.layer.name: site.layer for site in sites}
    assert found.keys() == {f"{name}.{expert}" for name in packed for expert in range(EXPERTS)}
    assert sum(layer.weights for layer in found.values()) == sum(p.numel() for p in packed.values())
    for layer in found.values():
        assert layer.kind is LayerKind.LINEAR
        assert layer.scope == "layers.0"
        assert 1 <= layer.positions <= max(CHOSEN, -(-count * CHOSEN // EXPERTS))


@torch.no_grad()
def test_a_weight_of_one_expert_is_put_on_and_taken_off() -> None:
    model = Layers()
    original = dict(Layers().named_parameters())["layers.0.experts.down_proj"]
    names = {name: module for module, name in call_every_weight(model).items()}
    parameter = names["layers.0.experts.down_proj.3"].get_parameter("weight")
    x = tokens(20)
    before, own = model(x), parameter.data
    assert torch.equal(own, original[3])

    parameter.data = torch.zeros_like(own)
    changed = model(x)
    parameter.data = own

    assert not torch.equal(changed, before)
    assert torch.equal(model(x), before)
    stock = Layers()
    stock.get_parameter("layers.0.experts.down_proj").data[3] = 0
    torch.testing.assert_close(changed, stock(x))


CONVOLUTIONS = {
    "one dimension": (nn.Conv1d(3, 5, 4, stride=4), (2, 3, 13)),
    "three dimensions": (nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4), bias=False), (2, 3, 5, 9, 8)),
    "one patch": (nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4)), (7, 3, 2, 4, 4)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_are_multiplied_as_the_convolution_does(name: str) -> None:
    convolution, shape = CONVOLUTIONS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(copy.deepcopy(convolution))

    names = call_every_weight(model)

    assert list(names.values()) == ["0.weight"]
    assert isinstance(model[0], CalledPatches)
    torch.testing.assert_close(model(x), convolution(x))


@pytest.mark.parametrize(
    "convolution",
    [nn.Conv1d(4, 4, 3), nn.Conv3d(4, 4, 2, stride=2, groups=2), nn.Conv2d(3, 4, 2, stride=2)],
)
def test_other_convolutions_are_left_as_they_are(convolution: nn.Module) -> None:
    assert not is_patch_projection(convolution)

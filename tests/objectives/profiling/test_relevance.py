"""Relevance is conserved, and the epsilon rule is what its definition says."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bitfront.layers import Tower
from bitfront.vlm import DualEncoder, PlanSwitch
from objectives.data.classification import ClassificationTask
from objectives.profiling.calibration import calibrate
from objectives.profiling.full_precision import FullPrecisionReference
from objectives.profiling.relevance import layer_relevance
from objectives.profiling.relevance_rules import EPSILON, RelevanceRules
from tests.support.scene_models import scene_spec, scene_task, untrained_encoder

# What epsilon takes and floats round away, as a share of what was sent.
TOLERANCE = 1e-3


class Block(nn.Module):
    """A transformer block with biases, either norm, either kind of activation, and a gate."""

    def __init__(self, width: int, *, gated: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width) if gated else nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.gate, self.down = (nn.Linear(width, width) for _ in range(3))
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        query, key, value = (
            part(y).unflatten(-1, (2, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.gated)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.norm(x)
        if self.gated:
            change = self.down(functional.silu(self.gate(y)) * self.up(y))
        else:
            narrow = self.up(y)
            quick = narrow * torch.sigmoid(1.702 * narrow)
            change = self.down(quick + functional.gelu(self.gate(y)))
        made: Tensor = x + change
        return made


def relevance(value: Tensor) -> float:
    assert value.grad is not None
    return float((value.detach() * value.grad).sum())


@pytest.mark.parametrize("gated", [False, True])
def test_what_a_logit_sends_arrives_at_the_inputs_and_the_biases(gated: bool) -> None:
    torch.manual_seed(3)
    blocks = nn.Sequential(Block(16, gated=gated), Block(16, gated=gated)).double()
    head = torch.randn(16, 5, dtype=torch.double)
    x = torch.randn(3, 7, 16, dtype=torch.double, requires_grad=True)

    with RelevanceRules():
        unit = functional.normalize(blocks(x)[:, -1], dim=-1)
        logits = 100 * unit @ head
    plain = 100 * functional.normalize(blocks(x)[:, -1], dim=-1) @ head
    sent = logits.amax(dim=-1).sum()
    sent.backward()  # type: ignore[no-untyped-call]

    biases = [own for name, own in blocks.named_parameters() if name.endswith("bias")]
    arrived = relevance(x) + sum(map(relevance, biases))
    assert torch.allclose(logits, plain, rtol=1e-9, atol=1e-9), "the way there is as it was"
    assert arrived == pytest.approx(sent.item(), rel=TOLERANCE)
    assert abs(relevance(x)) > 0.05 * abs(sent.item())


def test_the_epsilon_rule_is_its_definition() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 6), nn.Linear(6, 3)
    x = torch.randn(4, requires_grad=True)

    with RelevanceRules():
        out = second(first(x))
    out[1].backward()

    def sent_back(given: Tensor, layer: nn.Linear, relevances: Tensor) -> Tensor:
        """Term by term: each input's share of each sum."""
        made = layer(given)
        eps = EPSILON * float(made.square().mean().sqrt())
        found = torch.zeros_like(given)
        for i in range(len(given)):
            for j in range(len(made)):
                share = given[i] * layer.weight[j, i]
                below = made[j] + eps * math.copysign(1, float(made[j]))
                found[i] += share / below * relevances[j]
        return found

    with torch.no_grad():
        last = torch.zeros(3)
        last[1] = out[1]
        middle = sent_back(first(x), second, last)
        expected = sent_back(x, first, middle)
    assert x.grad is not None
    assert torch.allclose(x.detach() * x.grad, expected, rtol=1e-4, atol=1e-6)


def test_of_two_factors_each_has_half_and_a_masked_token_nothing() -> None:
    torch.manual_seed(1)
    query, key, value = (torch.randn(1, 1, 4, 8, requires_grad=True) for _ in range(3))

    with RelevanceRules():
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    mixed[0, 0, 1].sum().backward()  # type: ignore[no-untyped-call]

    sent = mixed[0, 0, 1].sum().item()
    assert relevance(value) == pytest.approx(sent / 2, rel=TOLERANCE)
    assert relevance(query) == pytest.approx(sent / 4, rel=TOLERANCE)
    assert relevance(key) == pytest.approx(sent / 4, rel=TOLERANCE)
    for own in (key, value):
        assert own.grad is not None
        assert torch.isfinite(own.grad).all()
        assert not own.grad[0, 0, 2:].any()


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return untrained_encoder()


@pytest.fixture(scope="module")
def reference(model: DualEncoder) -> FullPrecisionReference:
    task: ClassificationTask = scene_task(scene_spec(), model)
    switch = PlanSwitch(model, scene_spec().quantizer, calibrate(task, (1.0,)))
    return FullPrecisionReference(task, switch, 0)


def test_the_last_layers_of_both_towers_have_all_that_was_sent(
    model: DualEncoder, reference: FullPrecisionReference
) -> None:
    """Behind them is nothing but the logits: there, relevances of either sign add up to those."""
    found = layer_relevance(reference, Tower.VISION)
    texts = layer_relevance(reference, Tower.TEXT)

    features, captions = (reference.outputs[stream.key] for stream in reference.streams)
    if reference.streams[0].towers != {Tower.VISION}:
        features, captions = captions, features
    x, t = (functional.normalize(own.double(), dim=-1) for own in (features, captions))
    scores = reference.scores(reference.stream(Tower.VISION), features).double()
    winners = scores.argmax(dim=-1)
    assert len(t) == scores.shape[1], "one template: one caption a class"
    products = model.logit_scale * x * t[winners]
    sent = float(scores.amax(dim=-1).abs().sum())
    assert found["visual.proj"] == pytest.approx(float(products.abs().sum()) / sent, rel=1e-3)
    assert found.keys() | texts.keys() == {layer.name for layer in model.layers}
    assert min(*found.values(), *texts.values()) > 0
    assert texts["text_projection"] >= 1 - 1e-4

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.layers import Layer, LayerKind, Tower
from bitfront.quant.inputs import InputRange, input_levels
from bitfront.vlm import DualEncoder
from objectives.data.classification import ClassificationTask as Task
from objectives.data.split_name import SplitName
from objectives.profiling import entropy
from objectives.profiling.calibration import Ranges, calibrate
from objectives.profiling.entropy import (
    TEMPERATURE,
    Chain,
    InputGroup,
    measure_entropies,
    soft_assignment,
    spaced_channels,
)
from tests.support.scene_models import all_pixels, scene_spec, scene_task, untrained_encoder

BITS = 4


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return untrained_encoder()


@pytest.fixture(scope="module")
def task(model: DualEncoder) -> Task:
    return scene_task(scene_spec(), model)


@pytest.fixture(scope="module")
def ranges(model: DualEncoder, task: Task) -> Ranges:
    return calibrate(task, (1.0,))


def slow_assignment(x: float, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """One value's probabilities, as Eq 5 has it with the exponent over the squared step."""
    step = levels[1] - levels[0]
    exponents = [-((x - q) ** 2) / (TEMPERATURE * step**2) for q in levels]
    weights = [math.exp(exponent - max(exponents)) for exponent in exponents]
    return np.array(weights) / sum(weights)


def slow_entropy(probabilities: NDArray[np.float64]) -> float:
    return -sum(p * math.log(p) for p in probabilities.flatten().tolist() if p > 0)


def slow_joint(
    pairs: list[tuple[float, float]], first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    joint = np.zeros((len(first), len(second)))
    for x, y in pairs:
        joint += np.outer(slow_assignment(x, first), slow_assignment(y, second)) / len(pairs)
    return joint


@given(
    values=st.lists(st.floats(-3, 3), min_size=1, max_size=8),
    low=st.floats(-2, 0),
    width=st.floats(0.5, 4),
)
def test_assignment_is_that_of_the_formula(values: list[float], low: float, width: float) -> None:
    levels = np.linspace(low, low + width, 16)

    fast = soft_assignment(torch.tensor(values, dtype=torch.float64), torch.from_numpy(levels))

    slow = np.stack([slow_assignment(value, levels) for value in values])
    np.testing.assert_allclose(fast.numpy(), slow, atol=1e-9)


def test_entropies_agree_with_the_slow_definition(
    model: DualEncoder, task: Task, ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On so few values that a layer's every sampled value can be looked at."""
    monkeypatch.setattr(entropy, "CHANNELS", 4)
    pixels = all_pixels(task, SplitName.CALIBRATION)
    inputs: dict[str, Tensor] = {}
    with torch.no_grad(), model.watch_inputs(inputs.__setitem__):
        model.encode_images(pixels)
    names = ["attn.out_proj", "mlp.c_fc"]
    first, second = (f"visual.transformer.resblocks.1.{name}.weight" for name in names)

    measured = {e.layer: e for e in measure_entropies(task, ranges, BITS)}

    levels = [input_levels(ranges[n][1.0], BITS).double().numpy() for n in (first, second)]
    rows = [
        spaced_channels(inputs[n].flatten(0, -2), 4).flatten().tolist() for n in (first, second)
    ]
    joint = slow_joint(list(zip(*rows, strict=True)), levels[0], levels[1])
    log_m = math.log(2**BITS)
    alone = slow_entropy(joint.sum(axis=1))
    assert measured[first].entropy == pytest.approx(alone / log_m, abs=1e-4)
    assert measured[first].dependency == pytest.approx(
        (slow_entropy(joint) - alone) / log_m, abs=1e-4
    )


def test_every_layer_has_entropies_within_zero_and_one(
    model: DualEncoder, task: Task, ranges: Ranges
) -> None:
    measured = measure_entropies(task, ranges, BITS)

    assert [entry.layer for entry in measured] == [layer.name for layer in model.layers]
    for entry, layer in zip(measured, model.layers, strict=True):
        assert 0.0 <= entry.entropy <= 1.0
        assert (entry.entropy == 0.0) == (layer.kind is LayerKind.EMBEDDING)
        assert entry.dependency is None or 0.0 <= entry.dependency <= 1.0
    ends = {layer.tower: layer.name for layer in model.layers}
    assert {entry.layer for entry in measured if entry.dependency is None} == set(ends.values())


def test_where_tokens_differ_the_dependency_is_the_next_layers_entropy(
    model: DualEncoder, task: Task, ranges: Ranges
) -> None:
    measured = measure_entropies(task, ranges, BITS)

    for tower in (Tower.VISION, Tower.TEXT):
        own = [e for e, layer in zip(measured, model.layers, strict=True) if layer.tower is tower]
        assert own[0].dependency == own[1].entropy
        assert own[-2].dependency == own[-1].entropy


@pytest.mark.parametrize("copies", [2, 3])
def test_duplicated_tokens_change_nothing(copies: int) -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 5, 40, 32, generator=generator)

    one = chain_of(before, after, tokens=1)
    many = chain_of(before, after, tokens=copies)

    assert many == pytest.approx(one, rel=0.02)


@given(width=st.integers(16, 64))
def test_the_width_changes_little(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    before = torch.randn(8, 64, 64, generator=generator)
    after = before + 0.5 * torch.randn(8, 64, 64, generator=generator)

    assert chain_of(before[..., :width], after[..., :width], tokens=1) == pytest.approx(
        chain_of(before, after, tokens=1), rel=0.05
    )


@given(seed=st.integers(0, 2**31))
def test_an_identical_layer_leaves_least_open(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 32, 16, generator=generator)
    shuffled = values.flatten()[torch.randperm(values.numel(), generator=generator)]
    noisy = values + 0.3 * torch.randn(4, 32, 16, generator=generator)

    _, same = chain_of(values, values, tokens=1)

    assert same < chain_of(values, noisy, tokens=1)[1]
    assert same < chain_of(values, shuffled.view_as(values), tokens=1)[1]


def group_of(name: str, width: int) -> InputGroup:
    layer = Layer(name, Tower.VISION, LayerKind.LINEAR, 1, width, 1, name, "vision")
    return InputGroup((layer,), input_levels(InputRange(-4.0, 4.0), BITS))


def chain_of(before: Tensor, after: Tensor, *, tokens: int) -> tuple[float, float]:
    """The entropy and dependency of two linear layers with these inputs, tokens repeated."""
    first, second = (
        group_of(name, values.shape[-1]) for name, values in (("a", before), ("b", after))
    )
    chain = Chain([first, second], TEMPERATURE)
    for group, values in ((first, before), (second, after)):
        chain.add(group.lead.name, values.repeat(1, tokens, 1), 1 << 20)
    entry = chain.entropies()[0]
    assert entry.dependency is not None
    return entry.entropy, entry.dependency


@pytest.mark.parametrize("bits", [1, 9, 16])
def test_other_widths_are_refused(
    bits: int, model: DualEncoder, task: Task, ranges: Ranges
) -> None:
    with pytest.raises(SpecError, match=f"got {bits}"):
        measure_entropies(task, ranges, bits)

import itertools

import pytest
import torch

from bitfront.layers import LayerKind, Tower
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.quant.packing import packed_weight
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder
from objectives.cost.costs import (
    bit_operations,
    bits_per_weight,
    configuration_nbytes,
    layer_bit_operations,
    layer_nbytes,
)
from objectives.recovery.class_training import ClassData, ClassTraining
from tests.support.scene_models import untrained_clip, untrained_encoder

FORMATS = (
    Precision(2, 8),
    Precision(3, 4, group=32),
    Precision(4, 8, clip=0.99),
    Precision(5, 16),
    Precision(6, 6, group=40),
    Precision(8, 8),
    Precision(16, 8),
    Precision(16, 16),
)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return untrained_encoder()


def mixed_plan(model: DualEncoder) -> Plan:
    """Every format somewhere, and one layer that the plan does not name."""
    names = [layer.name for layer in model.layers][1:]
    return Plan.of(dict(zip(names, itertools.cycle(FORMATS), strict=False)))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_bytes_are_those_of_the_tensors_that_a_checkpoint_holds(
    model: DualEncoder, scheme: str, activations: str
) -> None:
    quantizer = QuantizerSpec.model_validate({"scheme": scheme, "activations": activations})
    plan = mixed_plan(model)

    parts = configuration_nbytes(model, Configuration(plan), quantizer)

    stored = 0
    for layer in model.layers:
        precision = plan.precision(layer.name)
        tensors = packed_weight(model.weight(layer.name), precision, quantizer)
        stored += sum(tensor.nbytes for tensor in tensors.values())
        if activations == "static" and precision.quantizes_input:
            stored += 0 if layer.kind is LayerKind.EMBEDDING else 2 + 1  # scale and zero point
    layers = {layer.name for layer in model.layers}
    for name, tensor in parameters().items():
        stored += 0 if name in layers else tensor.half().nbytes
    assert sum(parts.values()) == stored


def parameters() -> dict[str, torch.Tensor]:
    """The library's own parameters, before anything was rewritten."""
    return {name: tensor.detach() for name, tensor in untrained_clip().named_parameters()}


def test_parts_tell_towers_and_scales_apart(model: DualEncoder) -> None:
    names = [layer.name for layer in model.layers if layer.tower is Tower.TEXT]
    plan = Plan.uniform(names, Precision(4, 16))

    parts = configuration_nbytes(model, Configuration(plan), QuantizerSpec())

    weights = {
        tower: sum(layer.weights for layer in model.layers if layer.tower is tower)
        for tower in (Tower.VISION, Tower.TEXT)
    }
    assert parts["vision.codes"] == 2 * weights[Tower.VISION]
    assert parts["vision.scales"] == 0
    assert parts["text.codes"] == weights[Tower.TEXT] // 2
    rows = sum(layer.rows for layer in model.layers if layer.tower is Tower.TEXT)
    assert parts["text.scales"] == 3 * rows
    assert parts["inputs"] == 0
    assert "prompt" not in parts
    assert "adapter" not in parts


@pytest.mark.parametrize(
    "recovery",
    [
        Recovery(context_length=3, reduction=0, steps=1),
        Recovery(context_length=0, reduction=4, adapter_bits=8, steps=1),
        Recovery(context_length=2, reduction=3, adapter_bits=4, steps=1),
        Recovery(context_length=0, reduction=5, adapter_bits=16, steps=1),
        Recovery(context_length=3, class_specific=True, reduction=0, steps=1),
    ],
)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_a_recovery_costs_what_it_stores(
    model: DualEncoder, recovery: Recovery, scheme: str
) -> None:
    quantizer = QuantizerSpec.model_validate({"scheme": scheme})
    width = model.feature_width
    data = ClassData(
        image_features=torch.randn(4, width),
        labels=torch.tensor([0, 1, 0, 1]),
        teacher_image_features=torch.randn(4, width),
        teacher_text_features=torch.randn(2, width),
        text_features=torch.randn(2, width),
        names=model.class_names(["a three", "a seven"]),
        scale=10.0,
    )

    trained = ClassTraining(model, recovery, quantizer, data, seed=0)
    with_it = configuration_nbytes(model, Configuration(Plan(()), recovery), quantizer, classes=2)
    without = configuration_nbytes(model, Configuration(Plan(())), quantizer)

    trained.step()
    stored = sum(tensor.nbytes for tensor in trained.stored().values())
    contexts = 2 if recovery.class_specific else 1
    assert sum(with_it.values()) - sum(without.values()) == stored
    assert with_it.get("prompt", 0) == 2 * contexts * recovery.context_length * model.text_width


def test_blocks_cells_and_kept_parameters_add_up_to_the_configuration(model: DualEncoder) -> None:
    plan, quantizer = mixed_plan(model), QuantizerSpec()

    layers = sum(
        layer_nbytes(layer, plan.precision(layer.name), quantizer) for layer in model.layers
    )

    whole = sum(configuration_nbytes(model, Configuration(plan), quantizer).values())
    assert whole == layers + model.fixed_nbytes


def test_bits_per_weight_counts_what_is_kept_at_sixteen(model: DualEncoder) -> None:
    plan = Plan.uniform([layer.name for layer in model.layers], Precision(4, 8))

    bits = bits_per_weight(model, Configuration(plan, Recovery()))

    weights = sum(layer.weights for layer in model.layers)
    kept = sum(model.kept.values())
    assert bits == pytest.approx((4 * weights + 16 * kept) / (weights + kept))
    assert bits_per_weight(model, Configuration(Plan(()))) == 16


def test_bit_operations_are_macs_times_both_widths(model: DualEncoder) -> None:
    plan = Plan.uniform([layer.name for layer in model.layers], Precision(4, 8))

    plain = bit_operations(model, Configuration(plan))
    adapted = bit_operations(model, Configuration(plan, Recovery(reduction=4, adapter_bits=8)))

    macs = sum(layer.rows * layer.columns * layer.positions for layer in model.layers)
    hidden = model.feature_width // 4
    assert plain == 32 * macs
    assert plain == sum(layer_bit_operations(layer, Precision(4, 8)) for layer in model.layers)
    assert adapted - plain == 64 * 2 * hidden * model.feature_width
    assert bit_operations(model, Configuration(Plan(()))) == 256 * macs

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitfront.errors import InvalidMetric, SpecError
from bitfront.layers import Block, LayerKind, Tower
from bitfront.plan import Option
from bitfront.precision import Precision
from bitfront.quant.inputs import InputQuantizer
from bitfront.quant.weights import fake_quantize_weight
from bitfront.spec import ErrorMeasure, JobSpec
from bitfront.vlm import DualEncoder, PlanSwitch, load_model
from objectives.cost.costs import layer_bit_operations, layer_nbytes
from objectives.cost.latency import LatencyMeter
from objectives.cost.runtimes.runtime import Timing
from objectives.cost.runtimes.stages import image_stage
from objectives.cost.runtimes.torch_runtime import TorchRuntime
from objectives.data.classification import ClassificationTask as Task
from objectives.data.classification import load_classification
from objectives.data.split_name import SplitName
from objectives.profiling import gauss_newton
from objectives.profiling.calibration import Ranges, calibrate
from objectives.profiling.cells import CellMeter
from objectives.profiling.entropy import measure_entropies
from objectives.profiling.measures import ENTROPY_BITS
from tests.support.clip_models import folder_spec, save_pictures, save_transformers
from tests.support.scene_models import all_pixels, scene_spec, scene_task, untrained_encoder

VISION = "visual.transformer.resblocks.1"
TEXT = "transformer.resblocks.0"
BLOCKS = (
    Block("stem", Tower.VISION, ("visual.conv1.weight",)),
    Block(
        "vision",
        Tower.VISION,
        (f"{VISION}.attn.out_proj.weight", f"{VISION}.mlp.c_fc.weight"),
    ),
    Block("embedding", Tower.TEXT, ("token_embedding.weight",)),
    Block("text", Tower.TEXT, (f"{TEXT}.mlp.c_proj.weight",)),
    Block("end", Tower.VISION, ("visual.proj",)),
)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return untrained_encoder()


@pytest.fixture(scope="module")
def task(model: DualEncoder) -> Task:
    """Every tenth class only: cells look at no label, and captions cost the most time."""
    whole = scene_task(scene_spec(), model)
    return replace(whole, classes=whole.classes[::10], tokens=whole.tokens[:, ::10])


@pytest.fixture(scope="module")
def ranges(model: DualEncoder, task: Task) -> Ranges:
    return calibrate(task, (1.0, 0.99))


@pytest.fixture(scope="module")
def meters(model: DualEncoder, task: Task, ranges: Ranges) -> dict[ErrorMeasure, CellMeter]:
    switch = PlanSwitch(model, scene_spec().quantizer, ranges)
    return {kind: CellMeter(task, switch, measuring(kind)) for kind in ErrorMeasure}


def measuring(kind: ErrorMeasure) -> JobSpec:
    return scene_spec(profile={"measure": kind.value})


def uniform(block: Block, precision: Precision) -> Option:
    return Option((precision,) * len(block.layers))


def features(model: DualEncoder, task: Task) -> tuple[Tensor, Tensor]:
    """Image and text features in one batch each."""
    with torch.no_grad():
        pixels = all_pixels(task, SplitName.CALIBRATION)
        return model.encode_images(pixels), model.encode_texts(task.captions)


def probabilities(images: Tensor, texts: Tensor, scale: float) -> NDArray[np.float64]:
    """The softmax over the classes, in numpy; the task has one template."""
    x, t = images.double().numpy(), texts.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    scores = np.exp(scale * x @ t.T)
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def quantized_by_hand(block: Block, option: Option, ranges: Ranges) -> DualEncoder:
    """A model of its own, with the block's weights replaced and its inputs rounded."""
    model = untrained_encoder()
    kinds = {layer.name: layer.kind for layer in model.layers}
    for name, precision in zip(block.layers, option.precisions, strict=True):
        (module,) = model.modules(name)
        weight = module.get_parameter("weight")
        weight.data = fake_quantize_weight(weight, precision, scene_spec().quantizer)
        if precision.quantizes_input and kinds[name] is not LayerKind.EMBEDDING:
            known = ranges[name][precision.clip]
            module.register_forward_pre_hook(rounding(InputQuantizer(8, known)))
    return model


def weight_by_hand(block: Block, option: Option, ranges: Ranges) -> Tensor:
    """The replaced weight of a block's first layer."""
    (module,) = quantized_by_hand(block, option, ranges).modules(block.layers[0])
    return module.get_parameter("weight").detach().flatten(1)


def rounding(quantize: InputQuantizer) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    return lambda _module, args: quantize(args[0])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
@pytest.mark.parametrize("precision", [Precision(2, 8), Precision(4, 8, clip=0.99)], ids=str)
def test_the_divergence_is_that_of_a_model_quantized_by_hand(
    block: Block,
    precision: Precision,
    meters: dict[ErrorMeasure, CellMeter],
    task: Task,
    ranges: Ranges,
) -> None:
    option = uniform(block, precision)

    cell = meters[ErrorMeasure.OUTPUT_KL].measure(block, option)

    full = untrained_encoder()
    by_hand = quantized_by_hand(block, option, ranges)
    p = probabilities(*features(full, task), full.logit_scale)
    q = probabilities(*features(by_hand, task), full.logit_scale)
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    assert cell.error == pytest.approx(divergence, rel=1e-2, abs=1e-9)


# What is measured around 8 bits may fall below them, where the errors of others are made up for.
@pytest.mark.parametrize("kind", sorted(set(ErrorMeasure) - {ErrorMeasure.LOSS_DELTA}))
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_errors_fall_with_more_bits(
    kind: ErrorMeasure, block: Block, meters: dict[ErrorMeasure, CellMeter]
) -> None:
    errors = [
        meters[kind].measure(block, uniform(block, Precision(bits))).error for bits in (2, 4, 8, 16)
    ]

    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0
    assert errors[-1] <= 1e-4 * errors[0]


@pytest.mark.parametrize(
    "kind", [ErrorMeasure.GRADIENT, ErrorMeasure.FISHER, ErrorMeasure.GAUSS_NEWTON]
)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_expansions_estimate_the_divergence(
    kind: ErrorMeasure, block: Block, meters: dict[ErrorMeasure, CellMeter]
) -> None:
    """Within a factor: the diagonal leaves out how changes of elements add up."""
    option = uniform(block, Precision(4, 8))

    measured = meters[ErrorMeasure.OUTPUT_KL].measure(block, option).error
    estimated = meters[kind].measure(block, option).error

    assert measured / 6 < estimated < measured * 6


def test_the_gradient_measure_weighs_by_the_fisher_information(
    meters: dict[ErrorMeasure, CellMeter],
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
) -> None:
    """At the last layer, where the expectation over all labels can be written down."""
    block = BLOCKS[-1]
    option = uniform(block, Precision(3, 8))

    cell = meters[ErrorMeasure.GRADIENT].measure(block, option)

    images, texts = features(model, task)
    changed, _ = features(quantized_by_hand(block, option, ranges), task)
    unit_texts = nn.functional.normalize(texts, dim=-1)

    def log_p(image: Tensor) -> Tensor:
        cosine = nn.functional.normalize(image, dim=-1) @ unit_texts.T
        return torch.log_softmax(model.logit_scale * cosine, dim=-1)

    total = 0.0
    for image, change in zip(images, changed - images, strict=True):
        gradients = torch.func.jacrev(log_p)(image)
        information = (log_p(image).exp()[:, None] * gradients.square()).sum(dim=0)
        total += float((information * change.square()).sum()) / 2
    assert cell.error == pytest.approx(total / len(images), rel=0.3)


def log_probabilities(model: DualEncoder, task: Task) -> Tensor:
    images, texts = features(model, task)
    cosine = nn.functional.normalize(images, dim=-1) @ nn.functional.normalize(texts, dim=-1).T
    return torch.log_softmax(model.logit_scale * cosine, dim=-1).double()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_gauss_newton_is_the_variance_of_the_log_likelihoods_derivative(
    block: Block,
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`E_y[(d log p(y))^2]` over all labels, along the change of the layers, by differences."""
    monkeypatch.setattr(gauss_newton, "SAMPLE_DRAWS", 16)
    monkeypatch.setattr(gauss_newton, "CAPTION_DRAWS", 128)
    option = uniform(block, Precision(3, 8))
    switch = PlanSwitch(model, scene_spec().quantizer, ranges)

    cell = CellMeter(task, switch, measuring(ErrorMeasure.GAUSS_NEWTON)).measure(block, option)

    by_hand = quantized_by_hand(block, option, ranges)

    def along(share: float) -> Tensor:
        """The log-probabilities with a share of the change of each of the layers."""

        def move(changed: nn.Module) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
            return lambda _module, args, full: full + share * (changed(args[0]) - full)

        handles = [
            model.modules(name)[0].register_forward_hook(move(by_hand.modules(name)[0]))
            for name in block.layers
        ]
        try:
            return log_probabilities(model, task)
        finally:
            for handle in handles:
                handle.remove()

    step = 0.02
    with torch.no_grad():
        derivative = (along(step) - along(-step)) / (2 * step)
        expected = (along(0.0).exp() * derivative.square()).sum(dim=1).mean() / 2
    # Labels are drawn: 16 times for 20 images, 128 times for all of them together.
    assert cell.error == pytest.approx(float(expected), rel=0.3)


@pytest.mark.parametrize("changed", ["q_proj", "k_proj", "v_proj"])
def test_the_gradient_measure_sees_each_of_q_k_and_v_in_one_block(
    changed: str, tmp_path: Path
) -> None:
    save_transformers("clip", tmp_path / "model")
    save_pictures(tmp_path / "pictures", {"one": 12, "two": 12, "dogs": 12})
    samples = {"calibration": 12, "tuning": 3, "selection": 3, "test": 3}
    pictures = {"source": "image_folder", "path": str(tmp_path / "pictures"), "samples": samples}
    spec = scene_spec(profile={"measure": "gradient"}, data=pictures)
    model = load_model(folder_spec(tmp_path / "model"))
    assert isinstance(model, DualEncoder)
    shown = load_classification(spec.data, model)
    meter = CellMeter(shown, PlanSwitch(model, spec.quantizer, calibrate(shown, (1.0,))), spec)
    scope = "vision_model.encoder.layers.0.self_attn"
    names = tuple(f"{scope}.{part}.weight" for part in ("q_proj", "k_proj", "v_proj"))
    block = Block("qkv", Tower.VISION, names)

    def error(bits: int) -> float:
        widths = [bits if name.endswith(f"{changed}.weight") else 8 for name in names]
        return meter.measure(block, Option(tuple(Precision(width) for width in widths))).error

    errors = [error(bits) for bits in (2, 4, 8)]

    assert errors[0] > errors[1] > errors[2] > 0


def test_the_entropy_measure_is_the_weighted_relative_change(
    meters: dict[ErrorMeasure, CellMeter],
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
) -> None:
    block = BLOCKS[-1]
    option = uniform(block, Precision(3, 8))

    cell = meters[ErrorMeasure.ENTROPY].measure(block, option)

    entropies = {e.layer: e.entropy for e in measure_entropies(task, ranges, ENTROPY_BITS)}
    images, _ = features(model, task)
    changed, _ = features(quantized_by_hand(block, option, ranges), task)
    relative = ((changed - images).square().sum() / images.square().sum()).item()
    assert cell.error == pytest.approx(entropies["visual.proj"] * relative, rel=1e-3)


def test_a_loss_delta_is_what_an_option_adds_to_eight_bits(
    meters: dict[ErrorMeasure, CellMeter], model: DualEncoder, task: Task, ranges: Ranges
) -> None:
    block = BLOCKS[1]
    option = uniform(block, Precision(2, 8))

    cell = meters[ErrorMeasure.LOSS_DELTA].measure(block, option)

    whole = Block("all", Tower.VISION, tuple(layer.name for layer in model.layers))
    eight = dict.fromkeys(whole.layers, Precision(8, 8))
    full = probabilities(*features(model, task), model.logit_scale)
    losses = []
    for changed in (eight, {**eight, **dict.fromkeys(block.layers, Precision(2, 8))}):
        by_hand = quantized_by_hand(whole, Option(tuple(changed.values())), ranges)
        found = probabilities(*features(by_hand, task), model.logit_scale)
        losses.append(float((full * np.log(full / found)).sum(axis=1).mean()))
    assert cell.error == pytest.approx(losses[1] - losses[0], rel=1e-3)


@pytest.mark.parametrize("kind", [ErrorMeasure.LIM, ErrorMeasure.ZD, ErrorMeasure.MASKED])
def test_relative_errors_are_weighted_by_the_importance_of_their_layer(
    kind: ErrorMeasure,
    meters: dict[ErrorMeasure, CellMeter],
    model: DualEncoder,
    task: Task,
    ranges: Ranges,
) -> None:
    block = BLOCKS[3]
    (layer,) = block.layers
    option = uniform(block, Precision(2, 8))

    cell = meters[kind].measure(block, option)

    modules = dict(model.module.named_modules())
    (module,) = model.modules(layer)
    states: list[Tensor] = []
    inputs: list[Tensor] = []
    switch = PlanSwitch(model, scene_spec().quantizer, ranges)
    quantize = switch.input_quantizer(layer, Precision(16, 8))
    assert quantize is not None
    with (
        modules[TEXT].register_forward_hook(
            lambda _, args, output: states.extend((args[0].double(), output.double()))
        ),
        module.register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
    ):
        images, texts = features(model, task)
    weight = model.weight(layer).double()
    if kind is ErrorMeasure.LIM:
        before, after = (torch.cat(states[start::2]).flatten() for start in (0, 1))
        importance = 1 - float(nn.functional.cosine_similarity(before, after, dim=0))
    elif kind is ErrorMeasure.ZD:
        scores = (weight - weight.mean()) / weight.std(correction=0)
        importance = 1 / float((scores > 1).double().mean())
    else:
        importance = cell.error / meters[ErrorMeasure.ZD].measure(block, option).error
        scores = (weight - weight.mean()) / weight.std(correction=0)
        importance /= float((scores > 1).double().mean())
        broken = untrained_encoder()
        broken.put_weight(layer, torch.zeros_like(model.weight(layer)))
        full = probabilities(images, texts, model.logit_scale)
        none = probabilities(*features(broken, task), model.logit_scale)
        assert 0 < importance < float((full * np.log(full / none)).sum(axis=1).mean())
        return
    change = weight_by_hand(block, option, ranges).double() - weight
    given = torch.cat([one.flatten() for one in inputs]).double()
    rounded = torch.cat([quantize(one).flatten() for one in inputs]).double()
    relative = float(change.square().sum() / weight.square().sum())
    relative += float((rounded - given).square().sum() / given.square().sum())
    assert cell.error == pytest.approx(importance * relative, rel=1e-4)


@pytest.mark.parametrize("kind", ErrorMeasure)
def test_cells_do_not_depend_on_what_was_measured_before(
    kind: ErrorMeasure, meters: dict[ErrorMeasure, CellMeter]
) -> None:
    options = [(block, uniform(block, Precision(3, 8))) for block in BLOCKS]

    forwards = [meters[kind].measure(block, option) for block, option in options]
    backwards = [meters[kind].measure(block, option) for block, option in reversed(options)]

    assert forwards == backwards[::-1]


@pytest.mark.parametrize("kind", ErrorMeasure)
def test_measuring_leaves_the_model_as_it_was(
    kind: ErrorMeasure,
    meters: dict[ErrorMeasure, CellMeter],
    model: DualEncoder,
    task: Task,
) -> None:
    before = features(untrained_encoder(), task)

    for block in BLOCKS:
        meters[kind].measure(block, uniform(block, Precision(2, 8)))

    assert all(map(torch.equal, before, features(model, task)))
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_a_cell_costs_what_its_layers_cost(
    meters: dict[ErrorMeasure, CellMeter], model: DualEncoder
) -> None:
    block, option = BLOCKS[1], Option((Precision(3, 8), Precision(4, 6, group=32)))

    cell = meters[ErrorMeasure.FISHER].measure(block, option)

    layers = {layer.name: layer for layer in model.layers}
    members = [
        (layers[name], precision)
        for name, precision in zip(block.layers, option.precisions, strict=True)
    ]
    quantizer = scene_spec().quantizer
    assert (cell.block, cell.option) == (block.name, option)
    assert cell.nbytes == sum(layer_nbytes(layer, p, quantizer) for layer, p in members)
    assert cell.bit_operations == sum(layer_bit_operations(layer, p) for layer, p in members)


def test_the_identity_follows_quantizer_and_measure(
    model: DualEncoder, task: Task, ranges: Ranges
) -> None:
    specs = [
        scene_spec(),
        scene_spec(quantizer={"scheme": "symmetric"}),
        scene_spec(profile={"measure": "fisher"}),
        scene_spec(space={"weight_bits": [3]}, search={"seed": 7}),
    ]

    switch = PlanSwitch(model, scene_spec().quantizer, ranges)
    first, *others, unrelated = [CellMeter(task, switch, spec).identity for spec in specs]

    assert len({first, *others}) == 3
    assert unrelated == first


def test_an_option_of_another_block_is_refused(meters: dict[ErrorMeasure, CellMeter]) -> None:
    with pytest.raises(SpecError, match="has 2 layers"):
        meters[ErrorMeasure.OUTPUT_KL].measure(BLOCKS[1], Option((Precision(4),)))


def test_an_error_that_is_not_finite_is_refused(task: Task, ranges: Ranges) -> None:
    model = untrained_encoder()
    switch = PlanSwitch(model, scene_spec().quantizer, ranges)
    meter = CellMeter(replace(task, model=model), switch, scene_spec())
    model.modules(BLOCKS[3].layers[0])[0].get_parameter("bias").data.fill_(float("nan"))

    with pytest.raises(InvalidMetric, match="output_kl of text came out as nan"):
        meter.measure(BLOCKS[3], uniform(BLOCKS[3], Precision(4)))


def test_a_cell_is_timed_where_the_job_needs_its_latency(
    model: DualEncoder, task: Task, ranges: Ranges
) -> None:
    spec = scene_spec(constraints={"max_latency_s": 1.0})
    switch = PlanSwitch(model, spec.quantizer, ranges)
    runtime = TorchRuntime(model, switch, spec.quantizer, Timing(2, 1, 0.0))
    stage = image_stage(model, runtime, 2)
    times = LatencyMeter(model, switch, stage, runtime, spec.quantizer)
    meter = CellMeter(task, switch, spec, [times])
    block = BLOCKS[1]
    layers = [layer for layer in model.layers if layer.name in block.layers]

    cells = {bits: meter.measure(block, uniform(block, Precision(bits, 8))) for bits in (4, 8)}

    assert cells[8].latency_s == times.kernel_seconds(
        [(layer, Precision(8, 8)) for layer in layers]
    )
    assert cells[4].latency_s is None  # no kernel multiplies w4a8
    assert cells[4].weight_bits == 4 * sum(layer.weights for layer in layers)
    assert meter.identity != CellMeter(task, switch, spec).identity
    assert meter.measure(BLOCKS[2], uniform(BLOCKS[2], Precision(4))).latency_s == 0.0

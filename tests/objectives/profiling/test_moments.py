from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models import Settings, job, save_samples
from bitfront.errors import SpecError
from bitfront.layers import LayerKind
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.spec import Rounding
from bitfront.vlm import DualEncoder, LayeredModel, PlanSwitch, load_model
from objectives.data.classification import load_classification
from objectives.data.task import Task
from objectives.evaluation.evaluator import Evaluator
from objectives.profiling import moments
from objectives.profiling.calibration import watch_calibration
from objectives.profiling.moments import measure_moments
from tests.support.families import SMALL_MODELS
from tests.support.scene_models import scene_spec, scene_task, untrained_encoder


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return untrained_encoder()


@pytest.fixture(scope="module")
def task(model: DualEncoder) -> Task:
    return scene_task(scene_spec(), model)


def mean_square_outputs(task: Task, model: LayeredModel) -> dict[str, float]:
    """The mean over inputs of the squared norm of each layer's output, without its bias."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}

    def add(layer: str, inputs: Tensor) -> None:
        module = model.multiplying(layer)[0]
        outputs = module.forward(inputs)
        zero = module.forward(torch.zeros_like(inputs[:1]))  # the bias alone
        outputs = outputs - zero
        if isinstance(module, nn.Conv2d):
            outputs = outputs.movedim(1, -1)
        rows = outputs.flatten(0, -2)
        sums[layer] = sums.get(layer, 0.0) + rows.double().square().sum().item()
        counts[layer] = counts.get(layer, 0) + len(rows)

    watch_calibration(task, add)
    return {layer: total / counts[layer] for layer, total in sums.items()}


def test_a_moment_gives_the_mean_square_of_its_layers_outputs(
    model: DualEncoder, task: Task
) -> None:
    found = measure_moments(task)

    for layer, expected in mean_square_outputs(task, model).items():
        weight = model.weight(layer).flatten(1)
        assert float(((weight @ found[layer]) * weight).sum()) == pytest.approx(expected, rel=1e-3)


def test_every_layer_but_the_embedding_has_a_moment(model: DualEncoder, task: Task) -> None:
    found = measure_moments(task)

    numeric = {layer.name for layer in model.layers if layer.kind is not LayerKind.EMBEDDING}
    assert set(found) == numeric


def test_more_moments_than_memory_are_refused(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "MAX_NBYTES", 1000)

    with pytest.raises(SpecError, match=r"are kept: set quantizer.rounding to nearest"):
        measure_moments(task)

    assert measure_moments(task, where_possible=True) == {}


def test_a_job_that_asks_for_descent_gets_lower_output_errors(task: Task) -> None:
    model = task.model
    layers = [layer.name for layer in model.layers if model.multiplying(layer.name)]
    plan, found = Plan.uniform(layers, Precision(2)), measure_moments(task)
    lost: dict[Rounding, float] = {}
    for rounding in Rounding:
        quantizer = scene_spec().quantizer.model_copy(update={"rounding": rounding})
        switch = PlanSwitch(model, quantizer, {}, moments=found)
        full = {layer: model.weight(layer).flatten(1).clone() for layer in layers}
        switch.to(plan)
        rounded = {
            layer: model.multiplying(layer)[0].get_parameter("weight").detach().flatten(1)
            for layer in layers
        }
        change = {layer: full[layer] - rounded[layer] for layer in layers}
        lost[rounding] = sum(
            float(((change[layer] @ found[layer]) * change[layer]).sum()) for layer in layers
        )
        switch.clear()

    assert lost[Rounding.DESCENT] < 0.8 * lost[Rounding.NEAREST]
    assert lost[Rounding.DESCENT] < lost[Rounding.GPTQ]


def test_a_head_that_is_also_the_embedding_counts_both_uses() -> None:
    head = torch.diag(torch.tensor([1.0, 3.0]))

    assert torch.equal(moments._with_embedding(head), torch.diag(torch.tensor([1.5, 2.5])))
    assert torch.equal(moments._with_embedding(torch.zeros(2, 2)), torch.eye(2))


def test_descent_at_two_bits_helps_a_model_whose_head_is_tied() -> None:
    errors = {}
    for rounding in (Rounding.NEAREST, Rounding.DESCENT):
        spec = scene_spec(
            model={"source": "reference", "name": "digit-llava"},
            data={"source": "reference", "samples": {"calibration": 64, "selection": 128}},
            quantizer={"rounding": rounding},
        )
        evaluator = Evaluator.from_spec(spec)
        layers = [layer.name for layer in evaluator.model.layers]
        found = evaluator.evaluate(Configuration(Plan.uniform(layers, Precision(2, 8))))
        errors[rounding] = found.values["error"]

    assert errors[Rounding.DESCENT] < errors[Rounding.NEAREST]


def test_convolutions_of_one_input_have_moments_of_their_own_patches(tmp_path: Path) -> None:
    small = next(small for small in SMALL_MODELS if "MobileCLIP" in small.name)
    (tmp_path / "model").mkdir()
    small.save(tmp_path / "model")
    save_samples(tmp_path, 0)
    model = load_model(small.spec(tmp_path / "model"))
    spec = job(small, tmp_path, Settings(1, 0, "auto", 8))
    assert isinstance(model, DualEncoder)

    found = measure_moments(load_classification(spec.data, model), where_possible=True)

    columns = {layer.name: layer.columns for layer in model.layers}
    assert {name: len(moment) for name, moment in found.items()} == {
        name: columns[name] for name in found
    }

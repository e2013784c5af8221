from collections.abc import Mapping
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.quant.inputs import InputQuantizer, input_grid
from bitfront.quant.packing import unpacked_weight
from bitfront.quant.rounding.methods import rounded_target
from bitfront.quant.rounding.problem import damped_hessian
from bitfront.quant.rounding.targets import REGRESSION_DAMPING, QuantizedInputs, output_target
from bitfront.quant.weights import read_back
from bitfront.spec import JobSpec, QuantizerSpec
from bitfront.vlm import LayeredModel, PlanSwitch, load_model
from bitfront.vlm.layers.rows import multiplied_rows
from objectives.data.split_name import SplitName
from objectives.data.task import Task
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.registry import load_family
from objectives.profiling.calibration import Ranges, calibrate
from objectives.profiling.moments import measure_moments, missing_note
from objectives.profiling.range_search import RangeSearch
from objectives.rounding.sequential import SequentialSwitch
from tests.support.scene_models import scene_spec, scene_task, untrained_encoder


def llava_spec(**changes: object) -> JobSpec:
    return scene_spec(
        model={"source": "reference", "name": "digit-llava"},
        data={"source": "reference", "batch_size": 8, "samples": {"calibration": 24}},
        **changes,
    )


@cache
def llava_task() -> Task:
    spec = llava_spec()
    return load_family(spec.data, load_model(spec.model)).task


@cache
def clip_task() -> Task:
    return scene_task(scene_spec(), untrained_encoder())


@pytest.fixture(params=[clip_task, llava_task], ids=["clip", "llava"])
def either(request: pytest.FixtureRequest) -> Task:
    """Images and captions; or questions, in batches of several lengths, and a tied head."""
    task: Task = request.param()
    return task


@pytest.fixture
def task() -> Task:
    return clip_task()


def quantizer(**changes: str) -> QuantizerSpec:
    return QuantizerSpec.model_validate({"rounding": "gptq", "target": "residual", **changes})


_MEASURED: dict[LayeredModel, tuple[Ranges, Mapping[str, Tensor]]] = {}


def measured(task: Task) -> tuple[Ranges, Mapping[str, Tensor]]:
    """The ranges and the moments of one of the two tasks, measured once."""
    if task.model not in _MEASURED:
        _MEASURED[task.model] = calibrate(task, (1.0,)), measure_moments(task)
    return _MEASURED[task.model]


def switch_of(
    task: Task, spec: QuantizerSpec, cache_nbytes: int = 64 << 20, input_nbytes: int = 1 << 30
) -> SequentialSwitch:
    ranges, moments = measured(task)
    return SequentialSwitch(
        task,
        spec,
        ranges,
        moments=moments,
        searched=RangeSearch(task),
        cache_nbytes=cache_nbytes,
        input_nbytes=input_nbytes,
    )


def names(model: LayeredModel) -> list[str]:
    return [layer.name for layer in model.layers]


def shown(model: LayeredModel) -> dict[str, Tensor]:
    return {
        name: model.modules(name)[0].get_parameter("weight").detach().flatten(1).clone()
        for name in names(model)
    }


def outputs(task: Task) -> dict[str, list[Tensor]]:
    with torch.no_grad():
        return {
            stream.key: [stream.run(batch) for batch in range(len(stream.sizes))]
            for stream in task.streams(SplitName.CALIBRATION)
        }


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_layer_is_fitted_to_what_the_plan_before_it_gives(either: Task) -> None:
    model, spec = either.model, quantizer(target="output")
    precision = Precision(3, 8)
    switch = switch_of(either, spec)
    layers = [
        name
        for name in names(model)
        if model.multiplying(name) and not model.acts_from_the_start(name)
    ]
    layer = layers[len(layers) // 2]
    stream = next(
        s for s in either.streams(SplitName.CALIBRATION) if _tower(model, layer) in s.towers
    )
    full = _inputs(either, layer)

    switch.to(Plan.uniform(names(model), precision))
    weights, inputs = shown(model), _inputs(either, layer)  # on their levels already
    switch.clear()

    module = model.multiplying(layer)[0]
    assert len(full) == len(inputs) == len(stream.sizes)
    x = torch.cat([multiplied_rows(module, part) for part in inputs])
    found = QuantizedInputs.of(x, torch.cat([multiplied_rows(module, part) for part in full]))
    hessian = damped_hessian(found.moment, REGRESSION_DAMPING)
    target = output_target(model.weight(layer), hessian, found)
    codes = rounded_target(target, hessian, precision, spec)
    assert torch.equal(read_back(codes, model.weight(layer)), weights[layer])


def _tower(model: LayeredModel, name: str) -> object:
    return next(layer.tower for layer in model.layers if layer.name == name)


def _inputs(task: Task, layer: str) -> list[Tensor]:
    """What the layer gets, batch by batch, under whatever plan is on the model."""
    found: list[Tensor] = []

    def note(name: str, inputs: Tensor) -> None:
        if name == layer:
            found.append(inputs)

    with torch.no_grad(), task.model.watch_inputs(note):
        for stream in task.streams(SplitName.CALIBRATION):
            for batch in range(len(stream.sizes)):
                stream.run(batch)
    return found


def test_neither_caches_nor_earlier_plans_change_a_bit(either: Task) -> None:
    every = names(either.model)
    first = Plan.uniform(every, Precision(3, 8))
    half = dict.fromkeys(every[: len(every) // 2], Precision(3, 8))
    second = Plan.of({**dict.fromkeys(every, Precision(2, 8)), **half})
    fresh, kept = switch_of(either, quantizer(), 0), switch_of(either, quantizer())

    kept.to(first)
    before = kept.decided
    kept.to(second)
    shared = kept.decided - before
    with_caches, answers = shown(either.model), outputs(either)
    fresh.to(second)

    assert equal(shown(either.model), with_caches)
    for key, parts in outputs(either).items():
        assert all(map(torch.equal, parts, answers[key]))
    assert 0 < shared < before
    fresh.clear()


def test_a_plan_that_comes_back_is_not_walked_again(task: Task) -> None:
    switch = switch_of(task, quantizer())
    plans = [Plan.uniform(names(task.model), Precision(bits, 8)) for bits in (2, 3, 2)]
    decided, weights = [], []

    for plan in plans:
        switch.to(plan)
        decided.append(switch.decided)
        weights.append(shown(task.model))
    switch.clear()

    assert decided[2] == decided[1] > decided[0] > 0
    assert equal(weights[0], weights[2])
    assert not equal(weights[0], weights[1])
    full = {name: task.model.weight(name) for name in names(task.model)}
    assert equal(shown(task.model), full)


def test_packing_gives_the_tensors_that_are_on_the_model(either: Task) -> None:
    precision, spec = Precision(3, 8, group=16), quantizer()
    switch = switch_of(either, spec)
    plan = Plan.uniform(names(either.model), precision)

    packed = switch.packed(plan)

    switch.to(plan)
    weights, forms = shown(either.model), switch._forms(plan)
    for layer in either.model.layers:
        tensors = packed[layer.name]
        read = unpacked_weight(tensors, layer.rows, layer.columns, precision, spec)
        assert torch.equal(read, weights[layer.name])
        quantize = switch._input_quantizer(layer.name, forms[layer.name])
        assert ("input_scale" in tensors) is (quantize is not None)
        if quantize is not None:
            assert quantize.range is not None
            low, high = torch.tensor(quantize.range.low), torch.tensor(quantize.range.high)
            scale, zero = input_grid(low, high, quantize.bits)
            assert torch.equal(tensors["input_scale"], scale.half())
            assert int(tensors["input_zero"]) == int(zero)
    switch.clear()


def test_layers_with_an_own_target_are_as_on_full_precision_inputs(task: Task) -> None:
    spec = quantizer(target="auto")
    switch = switch_of(task, spec)
    parallel = PlanSwitch(
        task.model,
        spec,
        switch.ranges,
        moments=measured(task)[1],
        searched=RangeSearch(task),
    )
    plan = Plan.uniform(names(task.model), Precision(4, 4))

    switch.to(plan)
    sequential = outputs(task)
    parallel.to(plan)

    for key, parts in outputs(task).items():
        assert all(map(torch.equal, parts, sequential[key]))
    assert switch.decided == 0
    parallel.clear()


def test_ranges_follow_the_inputs_behind_quantized_layers(task: Task) -> None:
    switch = switch_of(task, quantizer())
    plan = Plan.uniform(names(task.model), Precision(2, 8))
    lows: dict[str, float] = {}

    def note(layer: str, inputs: Tensor) -> None:
        lows[layer] = min(lows.get(layer, 0.0), float(inputs.min()))

    switch.to(plan)
    with torch.no_grad(), task.model.watch_inputs(note):
        for stream in task.streams(SplitName.CALIBRATION):
            for batch in range(len(stream.sizes)):
                stream.run(batch)

    forms = switch._forms(plan)
    followed = [name for name, form in forms.items() if form.prefix]
    for name in followed:
        quantize = switch._input_quantizer(name, forms[name])
        assert isinstance(quantize, InputQuantizer)
        assert quantize.range is not None
        span = quantize.range.high - quantize.range.low
        assert lows[name] == pytest.approx(min(quantize.range.low, 0), abs=span / 100)
    assert any(
        switch.ranges[name][1.0] != switch._input_quantizer(name, forms[name]).range  # type: ignore[union-attr]  # all have one
        for name in followed
    )
    switch.clear()


def test_an_unknown_layer_is_refused_before_anything_runs(task: Task) -> None:
    switch = switch_of(task, quantizer())

    with pytest.raises(SpecError, match="no layer 'nowhere'"):
        switch.to(Plan.of({"nowhere": Precision(2, 8)}))

    assert switch.decided == 0


@pytest.mark.parametrize(
    "spec",
    [quantizer(target="auto"), quantizer(rounding="auto")],
    ids=["a method that is named", "a target that is named"],
)
def test_inputs_that_take_too_much_memory_are_refused_with_the_way_out(
    task: Task, spec: QuantizerSpec
) -> None:
    switch = switch_of(task, spec, input_nbytes=1000)

    with pytest.raises(SpecError, match=r"set quantizer\.target to own, or take fewer samples"):
        switch.to(Plan.uniform(names(task.model), Precision(2, 8)))


def test_what_is_left_open_is_descent_with_the_target_that_the_inputs_ask_for(task: Task) -> None:
    plan = Plan.uniform(names(task.model), Precision(2, 8))
    found = []

    for spec in (QuantizerSpec(), quantizer(rounding="descent")):
        switch = switch_of(task, spec)
        switch.to(plan)
        found.append(shown(task.model))
        assert spec != QuantizerSpec() or switch.notes == ()
        switch.clear()

    assert equal(*found)


def test_what_is_left_open_takes_the_own_target_where_memory_does_not_suffice(task: Task) -> None:
    plan = Plan.uniform(names(task.model), Precision(2, 8))
    own = quantizer(rounding="descent", target="own")
    ranges, moments = measured(task)
    little = switch_of(task, QuantizerSpec(), input_nbytes=1000)

    little.to(plan)
    weights = shown(task.model)
    parallel = PlanSwitch(task.model, own, ranges, moments=moments)
    parallel.to(plan)

    assert equal(shown(task.model), weights)
    assert little.decided == 0
    assert [note.startswith("quantizer.target: auto fits") for note in little.notes] == [True]
    parallel.clear()


def test_what_is_left_open_takes_the_nearest_codes_where_a_layer_has_no_moment(task: Task) -> None:
    plan = Plan.uniform(names(task.model), Precision(2, 8))
    ranges, moments = measured(task)
    *fitted, last = moments
    some = {layer: moments[layer] for layer in fitted}
    nearest = PlanSwitch(task.model, quantizer(rounding="nearest"), ranges)

    SequentialSwitch(task, QuantizerSpec(), ranges, moments=some).to(plan)
    open_weights = shown(task.model)
    nearest.to(plan)

    weights = shown(task.model)
    assert [x for x in moments if torch.equal(open_weights[x], weights[x])] == [last]
    nearest.clear()
    (note,) = missing_note(task.model, some)
    assert f"gives 1 of {len(moments)} layers their nearest codes" in note
    assert missing_note(task.model, moments) == ()


def test_an_error_within_a_walk_leaves_the_model_as_it_was(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = switch_of(task, quantizer())

    def fail(*_args: object) -> None:
        raise SpecError("on the way")

    monkeypatch.setattr(switch, "_decision", fail)
    with pytest.raises(SpecError, match="on the way"):
        switch.to(Plan.uniform(names(task.model), Precision(2, 8)))

    full = {name: task.model.weight(name) for name in names(task.model)}
    assert equal(shown(task.model), full)
    assert not any(module._forward_pre_hooks for module in task.model.module.modules())


def test_the_better_the_target_the_lower_the_error_at_two_bits() -> None:
    samples = {"calibration": 64, "selection": 256}
    errors = []
    for target in ("own", "residual"):
        evaluator = Evaluator.from_spec(
            scene_spec(
                data={"source": "reference", "samples": samples},
                quantizer={"rounding": "descent", "target": target},
            )
        )
        plan = Plan.uniform(names(evaluator.model), Precision(2, 8))
        found = evaluator.evaluate(Configuration(plan))
        errors.append(found.values["error"])
        again = evaluator.evaluate(Configuration(plan))
        assert again.values == found.values
        assert ("seconds.rounding" in found.metrics) is (target != "own")
        if target != "own":
            assert (found.metrics["hits.rounding"], again.metrics["hits.rounding"]) == (0, 1)

    for worse, better in pairwise(errors):
        assert better < worse

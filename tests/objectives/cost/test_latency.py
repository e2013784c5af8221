from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bitfront.errors import UnavailableDevice
from bitfront.layers import LayerKind, Tower
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import FULL, Precision
from bitfront.reference.digit_clip import build_clip, tokenize
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder, PlanSwitch
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.loaders.reference import preprocess_picture
from objectives.cost.latency import LatencyKey, LatencyMeter, LatencyTable
from objectives.cost.runtimes.runtime import Timing, describe_cpu
from objectives.cost.runtimes.stages import image_stage
from objectives.cost.runtimes.torch_runtime import TorchRuntime

DYNAMIC = QuantizerSpec(activations="dynamic")
INT8 = Precision(8, 8)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return open_clip_encoder(build_clip(), preprocess=preprocess_picture, tokenize=tokenize)


@pytest.fixture
def switch(model: DualEncoder) -> PlanSwitch:
    return PlanSwitch(model, DYNAMIC, {})


def _uniform(model: DualEncoder, precision: Precision) -> Configuration:
    return Configuration(Plan.uniform([layer.name for layer in model.layers], precision))


def _measure(
    model: DualEncoder,
    configuration: Configuration,
    switch: PlanSwitch,
    table: LatencyTable | None = None,
) -> float:
    return _meter(model, switch, table).seconds(configuration)


def _meter(
    model: DualEncoder, switch: PlanSwitch, table: LatencyTable | None = None
) -> LatencyMeter:
    known = LatencyTable() if table is None else table
    runtime = TorchRuntime(model, switch, DYNAMIC, Timing(2, 1, 0.0))
    stage = image_stage(model, runtime, 2)
    return LatencyMeter(model, switch, stage, runtime, DYNAMIC, known)


class WatchedTable(LatencyTable):
    """A table that shows which times were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[LatencyKey, float] = {}
        self.measured = 0

    def seconds(self, key: LatencyKey, measure: Callable[[], float]) -> float:
        def counted() -> float:
            self.measured += 1
            return measure()

        self.asked[key] = super().seconds(key, counted)
        return self.asked[key]


def _known_times(model: DualEncoder, tower: float, float32: float, int8: float) -> LatencyTable:
    """A table in which every layer takes the same time, for batches of 2."""
    return LatencyTable(_times(model, tower, float32, int8))


def _times(
    model: DualEncoder, tower: float, float32: float, int8: float
) -> dict[LatencyKey, float]:
    entries = {key(f"vision tower {model.identity}", 0, 0, 0): tower}
    for layer in model.layers:
        shape = (layer.rows, layer.columns, layer.positions)
        entries[key("float32", *shape)] = float32
        entries[key("int8-dynamic", *shape)] = int8
    return entries


def key(name: str, rows: int, columns: int, positions: int) -> LatencyKey:
    """What torch's time of a kernel is filed under, for batches of 2."""
    device, runtime = (
        describe_cpu(f"{torch.get_num_threads()} threads"),
        f"torch {torch.__version__}",
    )
    return LatencyKey(device, runtime, name, rows, columns, positions, 2)


def _vision_layers(model: DualEncoder) -> int:
    return sum(layer.tower is Tower.VISION for layer in model.layers)


@pytest.mark.parametrize("precision", [FULL, INT8, Precision(4, 16)])
def test_a_uniform_plan_takes_a_positive_time(
    model: DualEncoder, switch: PlanSwitch, precision: Precision
) -> None:
    seconds = _measure(model, _uniform(model, precision), switch)

    assert 0 < seconds < 10


def test_what_was_measured_once_is_not_measured_again(
    model: DualEncoder, switch: PlanSwitch
) -> None:
    table = WatchedTable()

    first = _measure(model, _uniform(model, INT8), switch, table)
    entries = dict(table.asked)
    again = _measure(model, _uniform(model, INT8), switch, table)

    shapes = {
        (layer.rows, layer.columns, layer.positions)
        for layer in model.layers
        if layer.tower is Tower.VISION
    }
    assert again == first
    assert table.asked == entries
    assert table.measured == len(entries) == 2 * len(shapes) + 1
    assert all(seconds > 0 for seconds in entries.values())


def test_full_precision_takes_the_time_of_the_whole_tower(
    model: DualEncoder, switch: PlanSwitch
) -> None:
    table = _known_times(model, tower=3.0, float32=0.05, int8=0.02)

    assert _measure(model, _uniform(model, FULL), switch, table) == pytest.approx(1.5)


def test_each_layer_saves_what_its_kernel_saves(model: DualEncoder, switch: PlanSwitch) -> None:
    table = _known_times(model, tower=3.0, float32=0.05, int8=0.02)
    layers = _vision_layers(model)

    seconds = _measure(model, _uniform(model, INT8), switch, table)

    assert seconds == pytest.approx((3.0 - 0.03 * layers) / 2)


def test_a_latency_is_never_below_the_sum_of_its_kernels(
    model: DualEncoder, switch: PlanSwitch
) -> None:
    table = _known_times(model, tower=0.1, float32=0.5, int8=0.4)

    seconds = _measure(model, _uniform(model, INT8), switch, table)

    assert seconds == pytest.approx(0.4 * _vision_layers(model) / 2)


def test_the_text_tower_costs_an_image_nothing(model: DualEncoder, switch: PlanSwitch) -> None:
    table = _known_times(model, tower=3.0, float32=0.05, int8=0.02)
    text = [layer.name for layer in model.layers if layer.tower is Tower.TEXT]
    plan = Plan.uniform(text, Precision(3, 6))

    assert _measure(model, Configuration(plan), switch, table) == pytest.approx(1.5)


def test_an_adapter_adds_its_two_products(model: DualEncoder, switch: PlanSwitch) -> None:
    known = _times(model, tower=3.0, float32=0.05, int8=0.02)
    width = model.feature_width
    known[key("int8-dynamic", width // 4, width, 1)] = 0.3
    known[key("int8-dynamic", width, width // 4, 1)] = 0.5
    plan = _uniform(model, FULL).plan
    table = LatencyTable(known)

    adapted = _measure(
        model, Configuration(plan, Recovery(context_length=0, reduction=4)), switch, table
    )
    prompted = _measure(
        model, Configuration(plan, Recovery(context_length=4, reduction=0)), switch, table
    )

    assert adapted == pytest.approx((3.0 + 0.8) / 2)
    assert prompted == pytest.approx(1.5)


def test_a_precision_without_a_kernel_names_its_layer_and_the_way_out(
    model: DualEncoder, switch: PlanSwitch
) -> None:
    layer = next(
        layer
        for layer in model.layers
        if layer.tower is Tower.VISION and layer.kind is LayerKind.LINEAR
    )
    configuration = Configuration(Plan.of({layer.name: Precision(3, 8)}))

    with pytest.raises(UnavailableDevice) as caught:
        _measure(model, configuration, switch)

    assert f"multiplies layer {layer.name} at w3a8" in str(caught.value)
    assert "bit_operations" in str(caught.value)


def test_an_adapter_without_a_kernel_is_refused_too(model: DualEncoder, switch: PlanSwitch) -> None:
    configuration = Configuration(
        _uniform(model, FULL).plan, Recovery(context_length=0, reduction=4, adapter_bits=4)
    )

    with pytest.raises(UnavailableDevice, match=r"adapter\.down at w4a4"):
        _measure(model, configuration, switch)


def test_the_model_has_the_plan_afterwards(model: DualEncoder, switch: PlanSwitch) -> None:
    configuration = _uniform(model, INT8)

    _measure(model, configuration, switch)

    assert switch.to(configuration.plan) == 0


def test_times_are_filed_under_the_device_its_threads_and_the_runtime(
    model: DualEncoder, switch: PlanSwitch
) -> None:
    runtime = _meter(model, switch).runtime

    assert runtime.device.endswith(f"{torch.get_num_threads()} threads")
    assert runtime.name == f"torch {torch.__version__}"


def test_a_file_remembers_times_for_other_processes(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "latencies.jsonl"
    first, second = LatencyTable(file=file), LatencyTable(file=file)
    known = key("float32", 1, 2, 3)

    measured = first.seconds(known, lambda: 0.25)
    with file.open("a") as damaged:
        damaged.write('{"device": "cut o')

    assert measured == 0.25
    assert second.seconds(known, lambda: 0.5) == 0.25
    assert LatencyTable(file=file).seconds(known, lambda: 0.5) == 0.25


def test_a_file_that_cannot_be_written_costs_no_time_that_was_measured(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("no folder")
    table = LatencyTable(file=tmp_path / "occupied" / "latencies.jsonl")
    known = key("float32", 1, 2, 3)

    assert [table.seconds(known, lambda: 0.25), table.seconds(known, lambda: 0.5)] == [0.25] * 2


def test_the_first_of_two_processes_that_measure_the_same_counts(tmp_path: Path) -> None:
    file = tmp_path / "latencies.jsonl"
    first, second = LatencyTable(file=file), LatencyTable(file=file)
    known = key("float32", 1, 2, 3)

    later = first.seconds(known, lambda: 2 * second.seconds(known, lambda: 0.25))

    assert later == 0.25


def test_a_latency_is_its_fixed_part_and_the_kernels_of_each_layer(
    model: DualEncoder, switch: PlanSwitch
) -> None:
    meter = _meter(model, switch)
    names = [layer.name for layer in model.layers]
    plan = Plan.of({name: INT8 if n % 2 else FULL for n, name in enumerate(names)})

    whole = meter.seconds(Configuration(plan))

    precisions = dict(plan)
    parts = [meter.kernel_seconds([(layer, precisions[layer.name])]) for layer in model.layers]
    assert whole == pytest.approx(meter.fixed_seconds() + sum(parts), rel=1e-12)

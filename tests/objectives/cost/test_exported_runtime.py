"""Latencies in the runtimes that artefacts are built for."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version

import pytest

from bitfront.errors import UnavailableDevice
from bitfront.layers import Tower
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import FULL, Precision
from bitfront.quant.inputs import InputRange
from bitfront.spec import REFERENCE_LLAVA, JobSpec, QuantizerSpec
from bitfront.vlm import DualEncoder, GenerativeModel, PlanSwitch
from objectives.cost.latency import LatencyMeter
from objectives.cost.runtimes.choose import choose_runtime
from objectives.cost.runtimes.exported_runtime import ExportedRuntime
from objectives.cost.runtimes.onnx_runtime import OnnxRuntime
from objectives.cost.runtimes.openvino_runtime import OpenVinoRuntime
from objectives.cost.runtimes.runtime import Timing
from objectives.cost.runtimes.stages import image_stage, prompt_length
from objectives.cost.runtimes.torch_runtime import TorchRuntime
from objectives.evaluation.evaluator import Evaluator
from objectives.profiling.cells import CellMeter
from tests.support.scene_models import scene_spec, untrained_encoder
from tests.support.store_samples import job as job_spec

pytestmark = pytest.mark.runtime

CLASSES = 7
QUICK = Timing(2, 1, 0.0)
QUANTIZERS = {
    scheme: QuantizerSpec.model_validate({"scheme": scheme, "rounding": "nearest"})
    for scheme in ("symmetric", "asymmetric")
}
RUNTIMES = [OnnxRuntime, OpenVinoRuntime]


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return untrained_encoder()


def made(
    kind: type[ExportedRuntime], model: DualEncoder, scheme: str = "symmetric"
) -> ExportedRuntime:
    return kind(model, switch_of(model, scheme), QUANTIZERS[scheme], CLASSES, 1, QUICK)


def switch_of(model: DualEncoder, scheme: str) -> PlanSwitch:
    ranges = {layer.name: {1.0: InputRange(-4.0, 4.0)} for layer in model.layers}
    return PlanSwitch(model, QUANTIZERS[scheme], ranges)


def metered(runtime: ExportedRuntime, model: DualEncoder) -> LatencyMeter:
    scheme = "symmetric"
    stage = image_stage(model, runtime, 2)
    return LatencyMeter(model, switch_of(model, scheme), stage, runtime, QUANTIZERS[scheme])


def uniform(model: DualEncoder, precision: Precision) -> Plan:
    vision = [layer.name for layer in model.layers if layer.tower is Tower.VISION]
    return Plan.uniform(vision, precision)


@pytest.mark.parametrize("kind", RUNTIMES)
@pytest.mark.parametrize("text", ["w16a16", "w4a16", "w8a16g32", "w2a8", "w8a4"])
def test_every_plan_has_a_time_in_its_runtime(
    kind: type[ExportedRuntime], text: str, model: DualEncoder
) -> None:
    plan = uniform(model, Precision.parse(text))
    recovery = Recovery(context_length=0, reduction=4)
    meter = metered(made(kind, model), model)

    seconds = meter.seconds(Configuration(plan, recovery))

    assert 0 < seconds < 10


@pytest.mark.parametrize("kind", RUNTIMES)
def test_full_precision_takes_the_time_of_the_exported_model(
    kind: type[ExportedRuntime], model: DualEncoder
) -> None:
    meter = metered(made(kind, model), model)
    layers = [(layer, FULL) for layer in model.layers]

    seconds = meter.seconds(Configuration(Plan(())))

    assert seconds == pytest.approx(meter.fixed_seconds() + meter.kernel_seconds(layers))


@pytest.mark.parametrize("kind", RUNTIMES)
def test_times_are_filed_under_the_runtime_its_version_and_its_threads(
    kind: type[ExportedRuntime], model: DualEncoder
) -> None:
    runtime = made(kind, model)
    (package,) = kind.target.packages

    assert runtime.name == f"{package} {version(package)}"
    assert runtime.device.endswith(", 1 threads")
    assert metered(runtime, model).identity == [runtime.device, 2, runtime.name]


@pytest.mark.parametrize(
    ("kind", "scheme", "text", "told"),
    [
        (
            OnnxRuntime,
            "symmetric",
            "w3a16",
            "MatMulNBits, 4 bits, blocks of 32, level 4, symmetric",
        ),
        (OnnxRuntime, "asymmetric", "w4a16g32", "MatMulNBits, 8 bits, blocks of 32, level 4, "),
        (OnnxRuntime, "symmetric", "w4a8", "MatMulIntegerToFloat, symmetric, static inputs"),
        (OnnxRuntime, "symmetric", "w4a4", "MatMulIntegerToFloat, symmetric, static inputs, cut"),
        (OnnxRuntime, "symmetric", "w16a16", "MatMul, bias"),
        (OpenVinoRuntime, "symmetric", "w4a16g32", "FullyConnected, packed, 4 bits, groups of 32"),
        (OpenVinoRuntime, "symmetric", "w8a8", "FullyConnected, int8, static inputs"),
        (OpenVinoRuntime, "asymmetric", "w2a16", "FullyConnected, packed, 2 bits, rows, asymm"),
    ],
)
def test_a_format_names_the_kernel_and_how_the_weight_lies(
    kind: type[ExportedRuntime], scheme: str, text: str, told: str, model: DualEncoder
) -> None:
    layer = next(layer for layer in model.layers if layer.name.endswith("c_fc.weight"))

    (product,) = made(kind, model, scheme).products(layer, Precision.parse(text))

    assert product.format.startswith(told)
    assert product.format.endswith("bias")


def test_precisions_of_one_kernel_share_its_time(model: DualEncoder) -> None:
    meter = metered(made(OnnxRuntime, model), model)
    layer = next(layer for layer in model.layers if layer.tower is Tower.VISION)

    products = {bits: meter.runtime.products(layer, Precision(bits, 16)) for bits in (3, 4, 8)}

    formats = {bits: product.format for bits, (product,) in products.items()}
    assert formats[3] == formats[4] != formats[8]
    times = [meter.kernel_seconds([(layer, Precision(bits, 16))]) for bits in (3, 4)]
    assert times[0] == times[1]


@pytest.mark.parametrize("text", ["w16a16", "w4a16", "w8a8", "w4a4"])
def test_a_timed_layer_has_the_nodes_that_the_export_writes_for_it(
    text: str, model: DualEncoder
) -> None:
    runtime, precision = made(OnnxRuntime, model), Precision.parse(text)
    own = {"Identity": 1, "Slice": 1}  # what gives a layer's outputs away
    plain = operators(runtime.image_model(Plan(()))[0])

    for layer in [layer for layer in model.layers if layer.tower is Tower.VISION]:
        whole = operators(runtime.image_model(Plan.of({layer.name: precision}))[0])
        alone, full = (operators(runtime.layer_model(layer, one)[0]) for one in (precision, FULL))
        assert alone - Counter(own)
        assert changed(whole, plain) == changed(alone, full)


def operators(graph: object) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)  # type: ignore[attr-defined]  # onnx


def changed(after: Counter[str], before: Counter[str]) -> dict[str, int]:
    """How many more or fewer nodes there are of each operator."""
    names = after.keys() | before.keys()
    return {name: after[name] - before[name] for name in names if after[name] != before[name]}


@pytest.mark.parametrize(
    ("target", "kind"),
    [("any", TorchRuntime), ("onnxruntime", OnnxRuntime), ("openvino", OpenVinoRuntime)],
)
def test_the_target_of_a_job_chooses_the_runtime(
    target: str, kind: type[object], model: DualEncoder
) -> None:
    spec = job(target)

    runtime = choose_runtime(spec, model, PlanSwitch(model, spec.quantizer, {}), CLASSES)

    assert isinstance(runtime, kind)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_runtime_that_is_not_installed_is_one_sentence(
    target: str, model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, target, None)
    spec = job(target)

    with pytest.raises(UnavailableDevice) as caught:
        choose_runtime(spec, model, PlanSwitch(model, spec.quantizer, {}), CLASSES)

    assert str(caught.value) == (
        f"times are measured in {target}, which needs {target}: 'pip install bitfront[{target}]'"
    )


ANSWERING = {
    "model": {"source": "reference", "name": REFERENCE_LLAVA, "device": "cpu"},
    "data": {
        "source": "reference",
        "samples": {"calibration": 2, "tuning": 2, "selection": 4, "test": 2},
        "batch_size": 2,
    },
    "quantizer": {"scheme": "symmetric", "rounding": "nearest", "scale_search": False},
}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("figures", [["latency_s", "token_s"], ["token_s"]])
def test_a_model_that_answers_has_a_time_for_a_prompt_and_one_for_a_token(
    target: str, figures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objectives.cost.runtimes.choose.STANDARD", QUICK)
    spec = job_spec("asks", **ANSWERING, target=target, objectives=["error", *figures])
    kept = Evaluator.from_spec(spec)
    plan = Plan.uniform([layer.name for layer in kept.model.layers], Precision(4, 16))

    meters = {meter.stage.figure.value: meter for meter in kept.latency_meters}
    values = kept.evaluate(Configuration(plan)).values

    assert list(meters) == figures
    assert all(values[name] > 0 for name in figures)
    token = meters["token_s"]
    assert token.stage.batch_size == 1
    assert set(token.stage.positions.values()) == {1}
    decoder = {layer.name for layer in kept.model.layers if layer.tower is Tower.LANGUAGE}
    assert set(token.stage.positions) == {x for x in decoder if kept.model.multiplying(x)}
    if "latency_s" in meters:
        prompt = meters["latency_s"].stage
        assert prompt.batch_size == 2
        assert isinstance(kept.model, GenerativeModel)
        length = prompt_length(kept.model)
        assert {prompt.positions[name] for name in token.stage.positions} == {length}
        vision = [layer for layer in kept.model.layers if layer.tower is Tower.VISION]
        assert all(prompt.positions[x.name] == x.positions for x in vision if x.positions)


@dataclass(frozen=True, slots=True)
class Recording(Timing):
    """Runs once, and keeps what it gave."""

    given: list[object] = field(default_factory=list)

    def median(
        self, run: Callable[[], object], before: Callable[[], object] = lambda: None
    ) -> float:
        before()
        self.given.append(run())
        return 1.0


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_token_is_timed_with_its_look_up_and_the_cache_that_it_hands_on(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = Recording()
    monkeypatch.setattr("objectives.cost.runtimes.choose.STANDARD", timing)
    spec = job_spec("asks", **ANSWERING, target=target, objectives=["error", "token_s"])
    kept = Evaluator.from_spec(spec)
    assert isinstance(kept.model, GenerativeModel)
    (meter,) = kept.latency_meters

    meter.stage.whole.measure(1)

    (found,) = timing.given
    assert isinstance(found, tuple)
    logits, state = found
    assert logits.shape[:2] == (1, 1)
    assert {part.shape[2] for part in state.values()} == {prompt_length(kept.model) + 1}


def test_cells_that_differ_in_what_was_timed_are_different_ones() -> None:
    identities = set()
    for figures in (["latency_s"], ["token_s"], ["latency_s", "token_s"], ["nbytes"]):
        spec = job_spec("asks", **ANSWERING, target="onnxruntime", objectives=["error", *figures])
        kept = Evaluator.from_spec(spec)
        meter = CellMeter(kept.task, kept.cell_switch, spec, kept.latency_meters)
        identities.add(meter.identity)

    assert len(identities) == 4


def test_threads_that_are_no_number_are_one_sentence(
    model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFRONT_RUNTIME_THREADS", "two")
    spec = job("onnxruntime")

    with pytest.raises(UnavailableDevice, match="is 'two': write a number of threads, or 0"):
        choose_runtime(spec, model, PlanSwitch(model, spec.quantizer, {}), CLASSES)


def job(target: str) -> JobSpec:
    return scene_spec(target=target, objectives=["error", "latency_s"])

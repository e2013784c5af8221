"""What can go wrong with an artefact, for every target: one sentence, and nothing half-made."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest

from bitfront.errors import FailedBuild, InvalidModel, SpecError
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.spec import REFERENCE_LLAVA
from objectives.evaluation.artefact_process import ArtefactProcess
from objectives.evaluation.card import write_card
from objectives.evaluation.evaluator import Evaluator
from service.study.build import Writer, writer
from tests.support.artefacts import dual_encoder_folder, evaluator, llava_folder
from tests.support.clip_models import save_open_clip
from tests.support.llava_models import Build

pytestmark = pytest.mark.runtime

TARGETS = ("packed", "onnx", "openvino", "compressed-tensors", "gguf")
LARGEST = {
    "packed": "model.safetensors",
    "onnx": "model.onnx_data",
    "openvino": "decoder_model_merged.bin",
    "compressed-tensors": "model.safetensors",
    "gguf": "decoder.gguf",
}
PACKAGES = {
    "packed": "torch",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "compressed-tensors": "compressed_tensors",
    "gguf": "xllamacpp",
}


def write(target: str) -> Writer:
    return writer(target, 4)


def answerer(target: str, folder: Path) -> dict[str, object]:
    """The bundled LLaVA at 4 bits, built for a target; its card."""
    kept = evaluator(REFERENCE_LLAVA, scheme="symmetric", rounding="nearest")
    layers = [layer.name for layer in kept.model.layers]
    found = Configuration(Plan.uniform(layers, Precision(4)))
    return write(target)(kept, found, folder, {})


def refusal(target: str, folder: Path) -> str:
    """What is said when the artefact of a folder is loaded."""
    with pytest.raises(FailedBuild) as caught, ArtefactProcess(folder, target):
        pass
    said = str(caught.value)
    assert "\n" not in said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("target", TARGETS)
def test_a_flipped_byte_is_found_when_the_artefact_is_loaded(target: str, tmp_path: Path) -> None:
    answerer(target, tmp_path)
    path = tmp_path / LARGEST[target]
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))

    said = refusal(target, tmp_path)

    assert f"{path} is damaged, its digest is not the one in card.json" in said


def other_node(folder: Path) -> None:
    path = folder / "embed_tokens.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[-1].op_type = "NoSuchOperator"
    path.write_bytes(model.SerializeToString())


def other_layer(folder: Path) -> None:
    path = folder / "embed_tokens.xml"
    content = path.read_text()
    assert 'type="Gather"' in content
    path.write_text(content.replace('type="Gather"', 'type="NoSuchOperator"'))


def other_format(folder: Path) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"]["format"] = "no-such-operator"
    for group in content["quantization_config"]["config_groups"].values():
        group["format"] = "no-such-operator"
    path.write_text(json.dumps(content))


def other_architecture(folder: Path) -> None:
    """A decoder that this llama.cpp has no graph for; names of one length keep all offsets."""
    path = folder / "decoder.gguf"
    content = path.read_bytes()
    assert content.count(b"llama") > 1
    path.write_bytes(content.replace(b"llama", b"nosuc"))


@pytest.mark.parametrize(
    ("target", "change", "said"),
    [
        ("onnx", other_node, "NoSuchOperator"),
        ("openvino", other_layer, "NoSuchOperator"),
        ("compressed-tensors", other_format, "validation error"),
        ("gguf", other_architecture, "decoder.gguf"),
    ],
)
def test_a_runtime_that_refuses_an_operator_is_one_sentence(
    target: str, change: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    card = answerer(target, tmp_path)
    change(tmp_path)
    write_card(card, tmp_path)

    found = refusal(target, tmp_path)

    assert found.startswith(f"{target} refuses the model, in a process of its own: ")
    assert said in found
    assert found.endswith("--to packed takes every plan")


def unknown_clip(folder: Path) -> Evaluator:
    spec = dual_encoder_folder(folder)
    save_open_clip(folder / "model", changes={"vision_cfg": {"pool_type": "avg"}})
    return Evaluator.from_spec(spec)


def unknown_llava(folder: Path) -> Evaluator:
    return Evaluator.from_spec(llava_folder(folder, Build(decoder="mistral")))


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Evaluator]:
    made = partial(tmp_path_factory.mktemp, "unknown")
    return {"clip": unknown_clip(made()), "llava": unknown_llava(made())}


@pytest.mark.parametrize("name", ["clip", "llava"])
@pytest.mark.parametrize("target", TARGETS)
def test_an_architecture_that_is_not_known_is_refused_in_a_sentence(
    target: str, name: str, unknown: dict[str, Evaluator], tmp_path: Path
) -> None:
    with pytest.raises(InvalidModel) as caught:
        write(target)(unknown[name], Configuration(Plan(())), tmp_path, {})

    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "packed"])
def test_a_runtime_that_is_not_installed_is_told_with_what_installs_it(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[target], None)  # as if it were not installed

    with pytest.raises(SpecError, match=rf"--to {target} needs .*'pip install bitfront\["):
        writer(target, 4)

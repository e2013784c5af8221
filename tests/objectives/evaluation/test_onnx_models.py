"""A configuration as ONNX models: what was measured, in the bytes that were promised."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from bitfront.artefact.example import EXAMPLE
from bitfront.artefact.onnx.products import EXACT, ROUNDED
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import REFERENCE_CLIP
from objectives.data.classification import ClassificationTask
from objectives.data.split_name import SplitName
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.onnx_models import write_onnx
from tests.support.artefacts import dual_encoder_folder, evaluator, random_configuration
from tests.support.pictures import noise

pytestmark = pytest.mark.runtime


def run(folder: Path, name: str, output: str, given: dict[str, Tensor]) -> Tensor:
    session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    (found,) = session.run([output], {key: tensor.numpy() for key, tensor in given.items()})
    return torch.from_numpy(np.asarray(found))


def differences(kept: Evaluator, configuration: Configuration, folder: Path) -> Tensor:
    assert isinstance(kept.scorer, ClassificationScorer)
    assert isinstance(kept.task, ClassificationTask)
    split = kept.task.split(SplitName.CALIBRATION)
    pixels = split.read(0, len(split))
    found = run(folder, "image.onnx", "logits", {"pixels": pixels})
    return (found - kept.scorer.logits(configuration, pixels)).abs()


def uniform(kept: Evaluator, text: str) -> Configuration:
    layers = [layer.name for layer in kept.model.layers if layer.name != "token_embedding.weight"]
    return Configuration(Plan.uniform(layers, Precision.parse(text)))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("text", ["w8a16", "w4a16g32", "w3a16", "w2a16g24", "w16a16"])
def test_weights_alone_are_computed_as_they_were_measured(
    text: str, scheme: str, tmp_path: Path
) -> None:
    kept = evaluator(REFERENCE_CLIP, scheme=scheme)
    configuration = uniform(kept, text)

    write_onnx(kept, configuration, tmp_path, {}, accuracy_level=EXACT)

    assert float(differences(kept, configuration, tmp_path).max()) < 1e-4


@pytest.mark.parametrize(
    ("scheme", "activations"),
    [
        ("symmetric", "static"),
        ("asymmetric", "dynamic"),
        ("symmetric", "grouped"),
        ("symmetric", "dynamic_symmetric"),
    ],
)
def test_any_mix_and_a_recovery_are_computed_but_for_single_flipped_codes(
    scheme: str, activations: str, tmp_path: Path
) -> None:
    kept = evaluator(REFERENCE_CLIP, scheme=scheme, activations=activations)
    recovery = Recovery(context_length=3, reduction=4, steps=2, adapter_bits=8)
    configuration = random_configuration(kept, 3, recovery)

    write_onnx(kept, configuration, tmp_path, {}, accuracy_level=EXACT)

    assert float(differences(kept, configuration, tmp_path).mean()) < 0.1


def test_captions_have_the_features_of_the_quantized_text_tower(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP)
    configuration = Configuration(
        Plan.uniform([layer.name for layer in kept.model.layers], Precision(4, 16, 32))
    )
    write_onnx(kept, configuration, tmp_path, {}, accuracy_level=EXACT)
    assert isinstance(kept.task, ClassificationTask)
    tokens = kept.task.captions[:20]

    found = run(tmp_path, "text.onnx", "features", {"tokens": tokens})

    kept.switch.to(configuration.plan)
    wanted = torch.nn.functional.normalize(kept.task.model.encode_texts(tokens), dim=-1)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_both_towers_of_a_model_of_ones_own_are_computed_as_measured(
    kind: str, tmp_path: Path
) -> None:
    kept = Evaluator.from_spec(dual_encoder_folder(tmp_path, kind))
    layers = [layer.name for layer in kept.model.layers]
    configuration = Configuration(Plan.uniform(layers, Precision(4, 16, 8)))
    folder = tmp_path / "artefact"
    folder.mkdir()
    write_onnx(kept, configuration, folder, {}, accuracy_level=EXACT)
    assert isinstance(kept.task, ClassificationTask)
    tokens = kept.task.captions

    assert float(differences(kept, configuration, folder).max()) < 1e-4
    found = run(folder, "text.onnx", "features", {"tokens": tokens})
    kept.switch.to(configuration.plan)
    wanted = torch.nn.functional.normalize(kept.task.model.encode_texts(tokens), dim=-1)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_files_hold_the_tensors_of_the_trial_and_little_more(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP)
    configuration = random_configuration(kept, 4, None)

    write_onnx(kept, configuration, tmp_path, {}, accuracy_level=ROUNDED)

    initializers = [
        tensor
        for name in ("image.onnx", "text.onnx")
        for tensor in onnx.load(tmp_path / name).graph.initializer
    ]
    constants = {tensor.name for tensor in initializers if tensor.name[0] == "c"}
    stored = sum(len(t.raw_data) for t in initializers if t.name not in constants)
    assert stored == sum(kept.nbytes(configuration).values())


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_a_model_of_ones_own_is_exported_and_reads_pictures_alike(
    kind: str, tmp_path: Path
) -> None:
    kept = Evaluator.from_spec(dual_encoder_folder(tmp_path, kind))
    drawn = random_configuration(kept, 7, None).plan
    # Inputs are left alone: rounded ones flip single codes, and with them a share's last digits.
    configuration = Configuration(
        Plan.of({n: Precision(p.weight_bits, 16, p.group) for n, p in drawn})
    )
    folder = tmp_path / "artefact"
    folder.mkdir()

    write_onnx(kept, configuration, folder, {}, accuracy_level=EXACT)

    assert float(differences(kept, configuration, folder).mean()) < 1e-4
    picture = noise(61, 40).convert("RGB")
    picture.save(tmp_path / "picture.png")
    ((*wanted,),) = kept.scorer.classify(configuration, [picture], 2)
    said = run_example(folder, tmp_path / "picture.png")
    assert said == [f"{100 * share:5.1f} %  {name}" for name, share in wanted]


ALONE = """
import runpy, sys
for name in ("bitfront", "objectives", "service", "storage", "torch", "onnx", "open_clip"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(folder: Path, picture: Path) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder / EXAMPLE), str(picture)],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()


def test_a_script_of_fifteen_lines_says_what_bitfront_says(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP)
    configuration = uniform(kept, "w4a16")
    write_onnx(kept, configuration, tmp_path, {}, accuracy_level=EXACT)
    picture = noise(40, 30)
    picture.save(tmp_path / "picture.png")

    said = run_example(tmp_path, tmp_path / "picture.png")

    ((*wanted,),) = kept.scorer.classify(configuration, [picture], 3)
    assert said == [f"{100 * share:5.1f} %  {name}" for name, share in wanted]
    lines = (tmp_path / EXAMPLE).read_text().splitlines()
    assert len([line for line in lines[1:] if line]) <= 15


@pytest.mark.parametrize(
    ("text", "level", "said"),
    [
        ("w8a16", ROUNDED, "rounds the inputs of 35 layers to 8 bits, in groups of 16 to 128 col"),
        ("w4a16g24", ROUNDED, "35 layers, such as visual.conv1.weight, have no fast kernel that"),
        ("w4a16", EXACT, ""),
    ],
)
def test_what_differs_from_the_trial_is_said_in_a_sentence(
    text: str, level: int, said: str, tmp_path: Path
) -> None:
    kept = evaluator(REFERENCE_CLIP, scheme="symmetric")

    card = write_onnx(kept, uniform(kept, text), tmp_path, {}, accuracy_level=level)

    changes = card["changes"]
    assert isinstance(changes, list)
    assert len(changes) == bool(said)
    assert said in "".join(changes)

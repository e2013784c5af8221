"""A configuration as OpenVINO's models: what was measured, in a process with OpenVINO alone."""

from pathlib import Path

import pytest
import torch

from bitfront.artefact.runtime.exported_model import DamagedArtefact, load
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import REFERENCE_CLIP, REFERENCE_LLAVA
from objectives.data.classification import ClassificationTask
from objectives.data.split_name import SplitName
from objectives.evaluation.artefact_process import ArtefactProcess
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.openvino_models import write_openvino
from objectives.evaluation.verification import verify
from tests.support.artefacts import evaluator, random_configuration

pytestmark = pytest.mark.runtime

RECOVERY = Recovery(context_length=3, reduction=4, steps=2, adapter_bits=8)


@pytest.mark.parametrize("name", [REFERENCE_CLIP, REFERENCE_LLAVA])
def test_any_mix_and_a_recovery_are_computed_as_they_were_measured(
    name: str, tmp_path: Path
) -> None:
    kept = evaluator(name, scheme="asymmetric", rounding="nearest")
    configuration = random_configuration(kept, 3, RECOVERY, of=4)
    measured = kept.evaluate(configuration).values["error"]

    card = write_openvino(kept, configuration, tmp_path, {})
    found = verify(kept, configuration, tmp_path, measured, "openvino")

    found.check()
    assert found.mean_difference < 0.01 * found.spread
    assert found.text_cosine is None or found.text_cosine > 0.99
    changes = card["changes"]
    assert isinstance(changes, list)
    assert "for OpenVINO has 2, 4 and 8" in changes[0]
    assert "zero points take 16 bits instead of 8" in changes[1]


def test_weights_alone_agree_to_the_last_digits_and_stay_packed(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP, scheme="symmetric", rounding="nearest")
    layers = [layer.name for layer in kept.model.layers]
    configuration = Configuration(Plan.uniform(layers, Precision(4, 16, 32)))
    assert isinstance(kept.scorer, ClassificationScorer)
    assert isinstance(kept.task, ClassificationTask)
    pixels = kept.task.split(SplitName.CALIBRATION).read(0, 8)

    card = write_openvino(kept, configuration, tmp_path, {})
    with ArtefactProcess(tmp_path, "openvino") as runner:
        found = runner.run({"pixels": pixels})

    assert torch.allclose(found, kept.scorer.logits(configuration, pixels), atol=1e-4)
    assert card["changes"] == []
    constants = sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
    classes = 4 * kept.scorer.text_features(configuration).numel()
    promised = sum(kept.nbytes(configuration).values())
    assert constants - classes < 1.05 * promised


def test_a_flipped_byte_is_found_when_the_folder_is_loaded(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP, scheme="symmetric", rounding="nearest")
    write_openvino(kept, Configuration(Plan(())), tmp_path, {})
    content = (tmp_path / "image.bin").read_bytes()
    (tmp_path / "image.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(DamagedArtefact, match=r"image\.bin is damaged, its digest is not"):
        load(tmp_path)

"""A configuration as a packed checkpoint: as large as promised, and what was measured."""

import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bitfront.artefact.example import EXAMPLE
from bitfront.artefact.packed import kept_tensors
from bitfront.artefact.runtime.packed_model import (
    Answerer,
    Classifier,
    DamagedArtefact,
    load,
)
from bitfront.errors import InvalidModel
from bitfront.formats import FORMATS
from bitfront.plan import Configuration, Distillation, Plan, Recovery
from bitfront.precision import weight_precision
from bitfront.quant.packing import pack_codes
from bitfront.spec import REFERENCE_CLIP, REFERENCE_LLAVA
from objectives.data.classification import ClassificationTask
from objectives.data.split_name import SplitName
from objectives.evaluation.answer_scorer import AnswerScorer
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.packed import write_packed
from tests.support.artefacts import dual_encoder_folder, evaluator, random_configuration
from tests.support.clip_models import save_open_clip
from tests.support.pictures import noise

MODELS = (REFERENCE_CLIP, REFERENCE_LLAVA)


def stored_nbytes(path: Path) -> int:
    """The bytes of a safetensors file's tensors, by its header alone."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    offsets = [e["data_offsets"] for name, e in header.items() if name != "__metadata__"]
    assert 8 + length + max(end for _, end in offsets) == len(content)
    return sum(end - start for start, end in offsets)


@dataclass(frozen=True)
class Outputs:
    """The logits of the calibration samples: as measured, and of the artefact."""

    measured: Tensor
    loaded: Tensor

    @property
    def difference(self) -> float:
        return float((self.measured - self.loaded).abs().max())


def outputs(
    kept: Evaluator, configuration: Configuration, folder: Path, *, unpack: bool = False
) -> Outputs:
    model = load(folder, unpack=unpack)
    split = kept.task.split(SplitName.CALIBRATION)  # type: ignore[attr-defined]  # both tasks have it
    if isinstance(model, Classifier):
        assert isinstance(kept.scorer, ClassificationScorer)
        pixels = split.read(0, len(split))
        return Outputs(kept.scorer.logits(configuration, pixels), model.logits(pixels))
    assert isinstance(model, Answerer)
    assert isinstance(kept.scorer, AnswerScorer)
    batch = split.read(0)
    tokens = torch.cat([batch.prompts, batch.answers[:, :-1]], dim=1)
    found = model.logits(tokens, batch.pixels, batch.sizes, batch.answers.shape[1])
    return Outputs(kept.scorer.logits(configuration, batch), found)


def check_packed(kept: Evaluator, configuration: Configuration, folder: Path) -> None:
    """A configuration takes the promised bytes, and computes what was measured."""
    write_packed(kept, configuration, folder, {})

    promised = kept.costs(configuration)["nbytes"]
    assert stored_nbytes(folder / "model.safetensors") == promised
    found = outputs(kept, configuration, folder)
    assert torch.equal(found.measured.argmax(-1), found.loaded.argmax(-1))
    assert found.difference < 1e-4


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("name", MODELS)
def test_any_configuration_takes_the_promised_bytes_and_computes_what_was_measured(
    name: str, seed: int, tmp_path: Path
) -> None:
    kept = evaluator(name)
    configuration = random_configuration(kept, seed, None)

    check_packed(kept, configuration, tmp_path)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_every_number_format_takes_the_promised_bytes_and_computes_what_was_measured(
    name: str, seed: int, tmp_path: Path
) -> None:
    kept = evaluator(name)
    draw = random.Random(seed)
    names = [*FORMATS, "int4-g32", "float16", "nf4-g16", "fp8_e4m3-g32"]
    drawn = {layer.name: weight_precision(draw.choice(names)) for layer in kept.model.layers}
    assert {one.format for one in drawn.values()} > set(FORMATS)

    check_packed(kept, Configuration(Plan.of(drawn)), tmp_path)


@pytest.mark.parametrize("recovery", [None, Recovery(context_length=3, reduction=4, steps=2)])
@pytest.mark.parametrize("name", MODELS)
def test_a_distilled_plan_is_stored_as_it_was_measured(
    name: str, recovery: Recovery | None, tmp_path: Path
) -> None:
    kept = evaluator(name, rounding="nearest")
    rounded = random_configuration(kept, 2, recovery)
    plan = replace(rounded.plan, distil=Distillation(steps=3))

    check_packed(kept, Configuration(plan, recovery), tmp_path)

    found = load_file(tmp_path / "model.safetensors")
    trained = kept.switch.coded(plan)
    for layer, own in trained.items():
        if own.codes is not None:
            assert torch.equal(found[f"{layer}.scale"], own.codes.scale)
            assert torch.equal(found[f"{layer}.codes"], pack_codes(own.codes.codes, own.codes.bits))
    before = kept_tensors(kept.model)
    kept.switch.to(rounded.plan)
    after = kept_tensors(kept.model)
    assert all(torch.equal(found[name], before[name]) for name in kept.model.vectors)
    moved = [name for name in kept.model.vectors if not torch.equal(found[name], after[name])]
    assert len(moved) > 0.9 * len(kept.model.vectors)


@pytest.mark.parametrize("rounding", ["nearest", "descent"])
def test_whole_zero_points_take_the_byte_that_they_are_counted_with(
    rounding: str, tmp_path: Path
) -> None:
    kept = evaluator(REFERENCE_CLIP, rounding=rounding, zero_points="whole")
    configuration = random_configuration(kept, 1, None, of=3)

    check_packed(kept, configuration, tmp_path)

    found, zeros = load_file(tmp_path / "model.safetensors"), 0
    for layer, precision in configuration.plan:
        if precision.quantizes_weight:
            steps = 2 ** (8 - precision.weight_bits)
            assert not (found[f"{layer}.zero"] % steps).any()
            zeros += found[f"{layer}.zero"].nbytes
    assert zeros


@pytest.mark.parametrize(
    ("name", "rounding", "scheme", "activations"),
    [
        (REFERENCE_CLIP, "nearest", "symmetric", "static"),
        (REFERENCE_CLIP, "gptq", "asymmetric", "dynamic"),
        (REFERENCE_CLIP, "descent", "symmetric", "dynamic"),
        (REFERENCE_CLIP, "descent", "asymmetric", "grouped"),
        (REFERENCE_LLAVA, "gptq", "symmetric", "static"),
        (REFERENCE_LLAVA, "descent", "asymmetric", "dynamic"),
        (REFERENCE_LLAVA, "gptq", "symmetric", "grouped"),
        (REFERENCE_CLIP, "gptq", "symmetric", "dynamic_symmetric"),
        (REFERENCE_LLAVA, "nearest", "symmetric", "dynamic_symmetric"),
    ],
)
def test_every_way_of_rounding_and_a_recovery_travel_along(
    name: str, rounding: str, scheme: str, activations: str, tmp_path: Path
) -> None:
    kept = evaluator(name, rounding=rounding, scheme=scheme, activations=activations)
    recovery = Recovery(context_length=3, reduction=4, steps=2)
    # Descent takes its time; embedding, convolution, head and packed products are among these.
    configuration = random_configuration(kept, 1, recovery, of=3)

    check_packed(kept, configuration, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"context_length": 0},
        {"reduction": 0, "class_specific": True},
        {"adapter_bits": 16, "class_position": "front"},
        {"adapter_bits": 4, "blend": 0.7},
    ],
    ids=str,
)
def test_every_form_of_recovery_travels_along(changes: dict[str, object], tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP)
    settings = {"context_length": 2, "reduction": 8, "steps": 3, **changes}
    configuration = random_configuration(kept, 2, Recovery(**settings))  # type: ignore[arg-type]  # checked there

    check_packed(kept, configuration, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_unpacking_all_weights_at_once_changes_nothing(name: str, tmp_path: Path) -> None:
    kept = evaluator(name)
    configuration = random_configuration(kept, 3, None)

    write_packed(kept, configuration, tmp_path, {})

    found = outputs(kept, configuration, tmp_path, unpack=True)
    assert found.difference < 1e-4


def test_a_generative_artefact_writes_the_measured_answers(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_LLAVA)
    configuration = random_configuration(kept, 4, Recovery(context_length=2, reduction=4, steps=3))
    assert isinstance(kept.scorer, AnswerScorer)
    write_packed(kept, configuration, tmp_path, {})
    model = load(tmp_path)
    assert isinstance(model, Answerer)
    picture = noise(40, 40)

    for question in ("how many threes are there?", "is there an eight above a two?"):
        wanted = kept.scorer.answer(configuration, question, picture)

        assert model.answer(picture, question) == wanted


def test_a_classifier_says_what_bitfront_says_of_a_picture(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP)
    configuration = random_configuration(kept, 5, None)
    write_packed(kept, configuration, tmp_path, {})
    model = load(tmp_path)
    assert isinstance(model, Classifier)
    picture = noise(40, 30)

    found = model.classify(picture, top=5)

    ((*wanted,),) = kept.scorer.classify(configuration, [picture], 5)
    assert [name for name, _ in found] == [name for name, _ in wanted]
    assert [share for _, share in found] == pytest.approx([share for _, share in wanted], rel=1e-4)


def test_new_captions_have_the_features_of_the_quantized_text_tower(tmp_path: Path) -> None:
    kept = evaluator(REFERENCE_CLIP)
    configuration = random_configuration(kept, 6, None)
    write_packed(kept, configuration, tmp_path, {})
    model = load(tmp_path)
    assert isinstance(model, Classifier)

    found = model.encode_texts([f"a picture of {name}" for name in model.classes])

    unit = torch.nn.functional.normalize(found, dim=-1)
    assert torch.allclose(unit, model.class_features, atol=1e-5)


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_a_model_of_ones_own_loads_with_torch_alone_and_reads_pictures_alike(
    kind: str, tmp_path: Path
) -> None:
    spec = dual_encoder_folder(tmp_path, kind)
    kept = Evaluator.from_spec(spec)
    configuration = random_configuration(kept, 7, None)
    folder = tmp_path / "artefact"
    folder.mkdir()

    card = write_packed(kept, configuration, folder, {})

    promised = kept.costs(configuration)["nbytes"]
    assert stored_nbytes(folder / "model.safetensors") == promised
    assert card["requires"] == ["torch", "safetensors", "pillow"]
    assert outputs(kept, configuration, folder).difference < 1e-4
    model = load(folder)
    assert isinstance(model, Classifier)
    for size in ((40, 30), (30, 40), (24, 24), (61, 300)):
        picture = noise(*size).convert("RGB")
        wanted = kept.model.preprocess(picture)  # type: ignore[attr-defined]  # a dual encoder
        found = model.preprocess(picture)
        # transformers resizes with torchvision, which rounds to other greys than Pillow does.
        greys = 0 if kind == "open_clip" else 1
        std = torch.tensor(model.card["architecture"]["config"]["preprocessing"]["std"])
        assert ((found - wanted).abs().mean((1, 2)) <= (greys + 1e-3) / 255 / std).all()


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_captions_of_a_model_of_ones_own_have_the_features_of_its_text_tower(
    kind: str, tmp_path: Path
) -> None:
    kept = Evaluator.from_spec(dual_encoder_folder(tmp_path, kind))
    configuration = random_configuration(kept, 5, None)
    folder = tmp_path / "artefact"
    folder.mkdir()
    write_packed(kept, configuration, folder, {})
    model = load(folder)
    assert isinstance(model, Classifier)
    assert isinstance(kept.task, ClassificationTask)
    tokens = kept.task.captions

    found = model.architecture.encode_texts(tokens)

    kept.switch.to(configuration.plan)
    assert torch.allclose(found, kept.task.model.encode_texts(tokens), atol=1e-5)


UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "pooled by a mean": ({"vision_cfg": {"pool_type": "avg"}}, "is not pooled at its class token"),
    "a ResNet": (
        {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 64}},
        "its vision tower is a ModifiedResNet",
    ),
    "a text tower without a mask": (
        {"text_cfg": {"no_causal_mask": True}},
        "its text tower is not causal",
    ),
    "scaled blocks": ({"vision_cfg": {"ls_init_value": 0.1}}, "has no counterpart there"),
    "a model of two towers of its own": (
        {"text_cfg": {"pool_type": "last"}, "custom_text": True},
        "nothing can be built of a CustomTextCLIP yet: what rebuilds models knows open_clip",
    ),
}


@pytest.mark.parametrize(("changes", "said"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_model_whose_architecture_is_not_known_is_refused_in_a_sentence(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    spec = dual_encoder_folder(tmp_path)
    save_open_clip(tmp_path / "model", changes=changes)
    kept = Evaluator.from_spec(spec)
    folder = tmp_path / "artefact"
    folder.mkdir()

    with pytest.raises(InvalidModel) as caught:
        write_packed(kept, random_configuration(kept, 0, None), folder, {})

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    kept = evaluator(REFERENCE_CLIP)
    write_packed(kept, random_configuration(kept, 8, None), folder, {})
    return folder


def copied(written: Path, folder: Path) -> Path:
    for path in written.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (lambda f: flip(f / "model.safetensors"), "model.safetensors is damaged"),
    "a flipped feature": (lambda f: flip(f / "classes.safetensors"), "classes.safetensors is dam"),
    "a changed source": (lambda f: flip(f / "architecture.py"), "architecture.py is damaged"),
    "a missing file": (lambda f: (f / "classes.safetensors").unlink(), "safetensors is missing"),
    "no card": (lambda f: (f / "card.json").unlink(), "holds no readable card.json"),
    "no JSON": (lambda f: (f / "card.json").write_text("{"), "holds no readable card.json"),
    "another format": (lambda f: (f / "card.json").write_text("{}"), "is of the format None"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_artefact_is_refused_in_a_sentence(
    damage: Callable[[Path], object], said: str, written: Path, tmp_path: Path
) -> None:
    folder = copied(written, tmp_path)
    damage(folder)

    with pytest.raises(DamagedArtefact, match=said):
        load(folder)


def test_the_example_runs_from_the_folder_alone(written: Path, tmp_path: Path) -> None:
    folder = copied(written, tmp_path)
    picture = tmp_path / "picture.png"
    noise(40, 40).save(picture)

    script = (folder / EXAMPLE).read_text()
    ran = subprocess.run(
        [sys.executable, "-I", "-c", BLOCKED, str(folder / EXAMPLE), str(picture)],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )

    assert len(script.splitlines()) <= 15
    assert len(ran.stdout.splitlines()) == 3
    assert all(" %  a" in line for line in ran.stdout.splitlines())


BLOCKED = """
import runpy, sys
for name in ("bitfront", "objectives", "service", "open_clip", "transformers", "numpy"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""What a Python without these packages is like: importing one raises."""

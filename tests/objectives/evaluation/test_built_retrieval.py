"""What is built of a retrieval study: features as measured, and captions of one's own."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bitfront.artefact.architectures import describe
from bitfront.artefact.example import EXAMPLE
from bitfront.artefact.runtime import clip, exported_model, packed_model
from bitfront.errors import FailedBuild, InvalidModel
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.reference.scenes import picture as scene_picture
from bitfront.spec import REFERENCE_CLIP, JobSpec
from bitfront.vlm import DualEncoder, load_model
from objectives.cost.latency import LatencyTable
from objectives.data.retrieval import RetrievalTask
from objectives.data.split_name import SplitName
from objectives.evaluation.compressed_models import write_compressed
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.onnx_models import write_onnx
from objectives.evaluation.openvino_models import write_openvino
from objectives.evaluation.packed import write_packed
from objectives.evaluation.retrieval_scorer import RetrievalScorer
from objectives.evaluation.verification import Verification, verify
from tests.objectives.evaluation.test_packed import stored_nbytes
from tests.support.artefacts import dual_encoder_folder, random_configuration
from tests.support.clip_models import folder_spec, save_open_clip, save_transformers
from tests.support.pictures import noise

pytestmark = pytest.mark.runtime

ODD = (
    "A  photo of two dogs.",
    "caf\u00e9 \u201cquoted\u201d &amp; it's 12345",
    "don't <end_of_text> stop, he'S",
    "a dog and " * 40,
    "",
    "\u0130stanbul \U0001f600 na\u00efve \u4f60\u597d",
    "sch\u00c3\u00b6n &lt;b&gt;\tone\ntwo",
)


@cache
def evaluator(**quantizer: str) -> Evaluator:
    """Of the bundled model, kept for all tests."""
    content = {
        "study": "finds",
        "model": {"source": "reference", "name": REFERENCE_CLIP, "device": "cpu"},
        "data": {
            "source": "reference",
            "task": "retrieval",
            "samples": {"calibration": 16, "tuning": 1, "selection": 24, "test": 4},
            "batch_size": 8,
        },
        "space": {"clips": [1.0, 0.999]},
        "quantizer": {"scale_search": False, "rounding": "nearest", **quantizer},
    }
    return Evaluator.from_spec(JobSpec.model_validate(content))


def own_job(folder: Path, kind: str) -> JobSpec:
    """A model of one's own, with pictures and one or two captions of each."""
    spec = dual_encoder_folder(folder, kind)
    pictures = sorted((folder / "pictures").rglob("*.png"))
    words = ("one", "two", "a", "photo", "of", "dogs")
    lines = [
        {
            "image": str(path.relative_to(folder)),
            "captions": [
                f"a photo of {words[number % 6]} {words[number // 6]}",
                *([f"{words[number // 6]} dogs"] if number % 2 else []),
            ],
        }
        for number, path in enumerate(pictures)
    ]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    content = spec.model_dump(mode="json", exclude_unset=True)
    content["data"] |= {"source": "captions", "path": str(folder / "captions.jsonl")}
    return JobSpec.model_validate(content)


def measured(kept: Evaluator, configuration: Configuration) -> tuple[Tensor, Tensor]:
    """The features of the calibration samples, by the model that has the plan on."""
    task = kept.task
    assert isinstance(task, RetrievalTask)
    split = task.split(SplitName.CALIBRATION)
    kept.switch.to(configuration.plan)
    with torch.no_grad():
        images = task.model.encode_images(split.read(0, len(split)))
        texts = task.model.encode_texts(split.tokens)
    unit = torch.nn.functional.normalize
    return unit(images.float(), dim=-1), unit(texts.float(), dim=-1)


@pytest.mark.parametrize("seed", range(6))
def test_any_configuration_takes_the_promised_bytes_and_gives_the_measured_features(
    seed: int, tmp_path: Path
) -> None:
    kept = evaluator(activations=("static", "dynamic", "grouped")[seed % 3])
    configuration = random_configuration(kept, seed, None)
    assert isinstance(kept.task, RetrievalTask)
    split = kept.task.split(SplitName.CALIBRATION)

    write_packed(kept, configuration, tmp_path, {})
    model = packed_model.load(tmp_path)

    assert type(model) is packed_model.Encoder
    assert stored_nbytes(tmp_path / "model.safetensors") == kept.costs(configuration)["nbytes"]
    images, texts = measured(kept, configuration)
    found = torch.nn.functional.normalize(model.encode_images(split.read(0, 16)), dim=-1)
    assert torch.allclose(found, images, atol=1e-5)
    captions = [caption for own in split.captions for caption in own]
    assert torch.allclose(model.text_features(captions), texts, atol=1e-5)
    assert torch.allclose(
        model.similarity(images, texts),
        torch.cosine_similarity(images[:, None], texts[None], dim=-1),
        atol=1e-6,
    )
    assert not (tmp_path / "classes.safetensors").exists()


WRITERS: dict[str, Callable[..., dict[str, object]]] = {
    "packed": write_packed,
    "onnx": lambda *given: write_onnx(*given, accuracy_level=0),
    "openvino": write_openvino,
    "compressed-tensors": write_compressed,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_target_finds_what_was_found_in_a_process_of_its_own(
    kind: str, tmp_path: Path
) -> None:
    kept = evaluator(scheme="symmetric")
    layers = [layer.name for layer in kept.model.layers]
    configuration = Configuration(Plan.uniform(layers, Precision(2, 16)))
    error = kept.evaluate(configuration).values["error"]
    assert 0 < error < 1

    card = WRITERS[kind](kept, configuration, tmp_path, {})
    found = verify(kept, configuration, tmp_path, error, kind)

    found.check()
    assert card["task"] == "retrieval"
    assert found.error == pytest.approx(error)
    assert (found.samples, found.same_tokens) == (24, 1.0)
    assert found.largest_difference < 1e-3
    assert found.text_cosine == pytest.approx(1, abs=1e-5)
    assert set(found.latency_s) == {"1", "32"}


@pytest.mark.parametrize("writer", ["packed", "onnx"])
def test_another_configuration_is_not_what_was_measured(writer: str, tmp_path: Path) -> None:
    kept = evaluator(scheme="symmetric")
    layers = [layer.name for layer in kept.model.layers]
    wanted, other = (Configuration(Plan.uniform(layers, Precision(bits, 16))) for bits in (8, 2))
    error = kept.evaluate(wanted).values["error"]
    WRITERS[writer](kept, other, tmp_path, {})

    with pytest.raises(FailedBuild, match="it is not what was measured"):
        verify(kept, wanted, tmp_path, error, writer).check()


def test_a_tokenizer_that_makes_other_tokens_is_refused() -> None:
    seen = Verification(0, 0, 1, 1, 0.1, 0.1, 0, 1, 9, 1, 1, 1, {}, same_tokens=1.0)
    seen.check()

    with pytest.raises(FailedBuild, match=r"tokenizer gives 12\.50% of the captions other tokens"):
        replace(seen, same_tokens=0.875).check()


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_a_model_of_ones_own_reads_captions_with_the_tokenizer_of_the_folder(
    kind: str, tmp_path: Path
) -> None:
    kept = Evaluator.from_spec(own_job(tmp_path, kind))
    configuration = random_configuration(kept, 7, None)
    error = kept.evaluate(configuration).values["error"]
    for target in ("packed", "onnx"):
        folder = tmp_path / target
        folder.mkdir()

        card = WRITERS[target](kept, configuration, folder, {})
        found = verify(kept, configuration, folder, error, target)

        found.check()
        assert found.same_tokens == 1
        further = ["tokenizers", *(["ftfy"] if kind == "open_clip" else [])]
        assert card["requires"][-len(further) :] == further  # type: ignore[index]  # a list
    packed = packed_model.load(tmp_path / "packed")
    assert isinstance(packed, packed_model.Encoder)
    assert stored_nbytes(tmp_path / "packed/model.safetensors") == sum(
        kept.nbytes(configuration).values()
    )
    pictures = [noise(61, 40, seed).convert("RGB") for seed in range(2)]
    exported = exported_model.load(tmp_path / "onnx")
    assert isinstance(exported, exported_model.Encoder)
    captions = list(ODD)
    torch_features = packed.image_features(pictures), packed.text_features(captions)
    numpy_features = exported.image_features(pictures), exported.text_features(captions)
    for one, other in zip(torch_features, numpy_features, strict=True):
        assert other.dtype == np.float32
        assert one.dtype == torch.float32
        assert torch.allclose(one.norm(dim=-1), torch.ones(len(one)), atol=1e-5)
        cosines = (one * torch.from_numpy(other)).sum(dim=-1)
        assert float(cosines.min()) > 0.98
    cosines = packed.similarity(*torch_features)
    assert cosines.shape == (2, len(ODD))
    assert cosines.dtype == torch.float32


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_any_caption_gets_the_tokens_that_the_library_gives_it(kind: str, tmp_path: Path) -> None:
    if kind == "open_clip":
        save_open_clip(tmp_path)
    else:
        save_transformers(kind, tmp_path)
    model = load_model(folder_spec(tmp_path, kind if kind == "open_clip" else "transformers"))
    assert isinstance(model, DualEncoder)
    made = describe(model, reads_captions=True)
    for name, content in made.files.items():
        (tmp_path / name).write_bytes(content)

    wanted = model.tokenize(ODD)
    assert torch.equal(clip.build(dict(made.config), tmp_path).tokenize(list(ODD)), wanted)
    found = exported_model.Captions(tmp_path, made.config["words"]).tokens(list(ODD))
    assert torch.equal(torch.from_numpy(found), wanted)


def test_a_tokenizer_that_cannot_travel_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Evaluator.from_spec(own_job(tmp_path, "clip"))
    monkeypatch.setattr(DualEncoder, "caption_tokenizer", lambda _: None)
    folder = tmp_path / "artefact"
    folder.mkdir()

    with pytest.raises(InvalidModel, match="could read no captions; put a configuration onto"):
        write_packed(kept, random_configuration(kept, 1, None), folder, {})
    assert list(folder.iterdir()) == []
    describe(kept.model)  # which tells classes apart all the same


@pytest.mark.parametrize("target", ["packed", "onnx"])
def test_a_word_that_the_model_does_not_know_is_said(target: str, tmp_path: Path) -> None:
    kept = evaluator()
    WRITERS[target](kept, random_configuration(kept, 1, None), tmp_path, {})
    module = packed_model if target == "packed" else exported_model
    model = module.load(tmp_path)
    assert isinstance(model, packed_model.Encoder | exported_model.Encoder)

    assert len(model.text_features("a three left of an eight")) == 1
    with pytest.raises(ValueError, match=r"words that the model does not know: \['zebra'\]"):
        model.text_features(["a three", "a zebra"])
    with pytest.raises(ValueError, match="has more than 26 words"):
        model.text_features("a " * 40)


ALONE = """
import runpy, sys
for name in ("bitfront", "objectives", "service", "open_clip", "transformers", *sys.argv[1:2]):
    sys.modules[name] = None
sys.argv = sys.argv[2:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("target", "without"), [("packed", "numpy"), ("onnx", "torch"), ("openvino", "torch")]
)
def test_the_example_puts_the_picture_of_a_caption_first(
    target: str, without: str, tmp_path: Path
) -> None:
    kept = evaluator(scheme="symmetric")
    layers = [layer.name for layer in kept.model.layers]
    configuration = Configuration(Plan.uniform(layers, Precision(8, 16)))
    folder = tmp_path / "model"
    folder.mkdir()
    WRITERS[target](kept, configuration, folder, {})
    assert isinstance(kept.task, RetrievalTask)
    assert isinstance(kept.scorer, RetrievalScorer)
    split = kept.task.split(SplitName.SELECTION)
    images, texts = kept.scorer.features(configuration, SplitName.SELECTION)
    place = int((images @ texts.T).argmax(dim=0).eq(split.owners).nonzero()[0])
    own = int(split.owners[place])
    caption = [one for known in split.captions for one in known][place]
    paths = []
    for number in (own, (own + 1) % len(split), (own + 2) % len(split)):
        paths.append(tmp_path / f"{number}.png")
        scene_picture(split.read(number, number + 1)[0]).save(paths[-1])

    script = folder / EXAMPLE
    ran = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, without, str(script), caption, *map(str, paths[::-1])],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )

    rows = [line.split() for line in ran.stdout.splitlines()]
    cosines = [float(cosine) for cosine, _ in rows]
    assert rows[0][1] == str(paths[0])
    assert cosines == sorted(cosines, reverse=True)
    assert cosines == pytest.approx(_cosines(images, texts, place, paths, rows), abs=2e-3)
    assert len(script.read_text().splitlines()) <= 20


def _cosines(
    images: Tensor, texts: Tensor, place: int, paths: list[Path], rows: list[list[str]]
) -> list[float]:
    """What was measured for the pictures, in the order of the rows."""
    known = {str(path): images[int(path.stem)] @ texts[place] for path in paths}
    return [float(known[path]) for _, path in rows]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_times_are_those_of_the_image_model_without_classes(target: str) -> None:
    kept = evaluator(scheme="symmetric")
    content = kept.spec.model_dump(mode="json", exclude_unset=True)
    content |= {"target": target, "objectives": ["error", "latency_s"]}
    content["space"] = {"weight_bits": [4, 8], "activation_bits": [16]}
    spec = JobSpec.model_validate(content)

    (meter,) = kept.family.latency_meters(kept.cell_switch, spec, LatencyTable(file=None))

    assert meter.stage.whole.format.endswith(", 0 classes")
    assert meter.stage.whole.measure(2) > 0

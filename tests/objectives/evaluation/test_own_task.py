"""A task of a person's own: the example of docs/howto/task.md, installed as a package."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import bitfront as bf
from bitfront.errors import SpecError
from bitfront.installed_tasks import InstalledTask, installed_task
from bitfront.job import load_job
from bitfront.layers import Block
from bitfront.own_task import OwnTask
from bitfront.plan import Configuration, Distillation, Option, Plan, Recovery
from bitfront.precision import Precision
from bitfront.reference.scenes import CLASSES, MEAN, STD, draw_scenes
from bitfront.spec import DataSpec, JobSpec
from bitfront.vlm import DualEncoder, LayeredModel, load_model
from objectives.data.own import InstalledPackageTask, load_own
from objectives.data.preview import preview_data
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.execution.similarity import divergences_nats
from objectives.profiling.cells import CellMeter

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "own_task"
SAMPLES = {"calibration": 12, "tuning": 2, "selection": 30, "test": 20}
SPLIT = SplitName.SELECTION


def install(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    flags = ["--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run([*command, *flags], check=True, timeout=300)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the example is installed in."""
    source = tmp_path_factory.mktemp("source") / "own_task"
    shutil.copytree(EXAMPLE, source)  # a build leaves files behind
    target = tmp_path_factory.mktemp("installed")
    install(source, target)
    return target


@pytest.fixture(autouse=True)
def installed(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the installed package on the path, for this test alone."""
    target = tmp_path / "installed"
    shutil.copytree(package, target)
    monkeypatch.syspath_prepend(str(target))
    monkeypatch.delitem(sys.modules, "caption_pairs", raising=False)
    return target


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, the right caption of each, and one with the digits exchanged."""
    folder = tmp_path_factory.mktemp("pairs")
    scenes = draw_scenes("test", sum(SAMPLES.values()) + 6, 0)
    lines = []
    for place, (image, label) in enumerate(zip(scenes.images, scenes.labels.tolist(), strict=True)):
        pixels = ((image * STD + MEAN).clamp(0, 1) * 255).round().byte()
        name = f"{place}.png"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)
        first, relation, second = re.split(" (left of|above) ", CLASSES[label])
        wrong = f"{second} {relation} {first}"
        if first == second:
            wrong = CLASSES[(label + 100) % 200]
        captions = [f"a picture of {CLASSES[label]}", f"a picture of {wrong}"]
        right, wrong = captions[:: -1 if place % 5 == 0 else 1]  # some are labelled wrongly
        lines.append(json.dumps({"image": name, "right": right, "wrong": wrong}))
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(lines))
    return file


def job(pairs: Path, **data: object) -> JobSpec:
    known = {"source": "package", "task": "caption_pairs", "path": str(pairs), "samples": SAMPLES}
    content = {
        "study": "pairs",
        "model": {"source": "reference", "device": "cpu"},
        "data": {**known, "batch_size": 8, **data},
        "quantizer": {"rounding": "nearest"},
        "space": {"weight_bits": [3, 8]},
        "partition": {"granularity": "layer"},
        "search": {"budgets": 3, "workers": 1},
        "stop": {"trials": 4},
    }
    return JobSpec.model_validate(content)


def loaded(pairs: Path, **data: object) -> InstalledPackageTask:
    spec = job(pairs, **data)
    return load_own(spec.data, load_model(spec.model))


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "howto" / "task.md").read_text()

    assert (EXAMPLE / "caption_pairs.py").read_text() in page
    assert (EXAMPLE / "pyproject.toml").read_text() in page
    assert len((EXAMPLE / "caption_pairs.py").read_text().splitlines()) <= 60


def test_a_package_is_found_by_its_metadata_and_its_code_not_run() -> None:
    found = installed_task("caption_pairs")

    assert (found.package, found.version) == ("caption-pairs", "1.0")
    assert found.identity[:2] == ["caption-pairs", "1.0"]
    assert "caption_pairs" not in sys.modules


def test_a_job_names_the_task_and_a_preview_says_whose_it_is(pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job(pairs).model_dump(mode="json", exclude_defaults=True)))

    spec = load_job(file)

    assert spec.data.task == "caption_pairs"
    assert preview_data(spec.data, None).notes == ("the task caption_pairs of caption-pairs 1.0",)
    assert "caption_pairs" not in sys.modules


def test_errors_and_divergence_are_those_of_a_loop_over_the_pairs(pairs: Path) -> None:
    spec = job(pairs)
    measured = Evaluator.from_spec(spec)
    model = measured.model
    assert isinstance(model, DualEncoder)
    plan = Plan.uniform([layer.name for layer in model.layers], Precision(2, 8))
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    random.Random(0).shuffle(lines)
    chosen = lines[14:44]  # after those for calibration and tuning

    def by_hand(under: Plan) -> torch.Tensor:
        measured.switch.to(under)
        rows = []
        for line in chosen:
            picture = Image.open(pairs.parent / line["image"]).convert("RGB")
            with torch.no_grad():
                image = model.encode_images(model.preprocess(picture)[None])[0]
                texts = model.encode_texts(model.tokenize([line["right"], line["wrong"]]))
            cosines = [torch.cosine_similarity(image, text, dim=0) for text in texts]
            rows.append(model.logit_scale * torch.stack(cosines))
        return torch.stack(rows)

    full, found = by_hand(Plan(())), by_hand(plan)
    score = measured.scorer.score(Configuration(plan), SPLIT)
    wrong = (found[:, 1] >= found[:, 0]).double()

    assert 0 < float(wrong.mean()) < 1
    assert score.figures["error"] == pytest.approx(float(wrong.mean()))
    nats = float(divergences_nats(full, found).mean())
    assert score.figures["divergence"] == pytest.approx(nats, rel=1e-3)
    assert measured.scorer.score(Configuration(Plan(())), SPLIT).figures["divergence"] == 0


def test_cells_are_measured_on_the_calibration_samples(pairs: Path) -> None:
    spec = job(pairs)
    measured = Evaluator.from_spec(spec)
    layer = measured.model.layers[3]
    block = Block(layer.name, layer.tower, (layer.name,))

    coarse, fine = (
        CellMeter(measured.task, measured.cell_switch, spec).measure(block, Option((precision,)))
        for precision in (Precision(2, 8), Precision(8, 8))
    )

    assert coarse.error > fine.error > 0


def test_results_belong_to_version_code_settings_and_contents_but_not_to_paths(
    pairs: Path, tmp_path: Path, installed: Path
) -> None:
    before = loaded(pairs).identities

    moved = tmp_path / "moved"
    shutil.copytree(pairs.parent, moved)
    assert loaded(moved / pairs.name).identities == before
    assert loaded(pairs, seed=1).identities[SPLIT] != before[SPLIT]
    assert loaded(pairs, prompt="<image> {}?").identities[SPLIT] != before[SPLIT]
    (moved / json.loads(pairs.read_text().splitlines()[0])["image"]).write_bytes(
        (moved / "1.png").read_bytes()
    )
    assert loaded(moved / pairs.name).identities != before

    module = installed / "caption_pairs.py"
    module.write_text(module.read_text() + "\n# changed\n")
    changed = loaded(pairs).identities
    assert all(changed[name] != before[name] for name in SplitName)

    (metadata,) = installed.glob("*.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    newer = loaded(pairs).identities
    assert all(newer[name] not in (changed[name], before[name]) for name in SplitName)


def test_a_task_that_nobody_brings_is_refused_with_those_that_are_there(
    pairs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    content = job(pairs).model_dump(mode="json", exclude_defaults=True)
    content["data"]["task"] = "pairs"
    file.write_text(yaml.safe_dump(content))

    with pytest.raises(SpecError, match="no installed package brings a task pairs: write caption_"):
        load_job(file)
    content["data"]["task"] = "retrieval"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(SpecError, match="not for retrieval: name one that an installed package"):
        load_job(file)


def test_recovery_and_measure_are_refused(pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    content = job(pairs, measure="accuracy").model_dump(mode="json", exclude_defaults=True)
    content["space"]["recovery"] = {"context_length": [2]}
    file.write_text(yaml.safe_dump(content))

    with pytest.raises(SpecError) as refused:
        load_job(file)
    assert "data.measure: accuracy is not for caption_pairs: leave it out" in str(refused.value)
    assert "space.recovery: P4Q is trained" in str(refused.value)
    with pytest.raises(SpecError, match=r"space\.recovery"):
        Evaluator.from_spec(job(pairs)).evaluate(Configuration(Plan(()), Recovery()))


BROKEN = {
    "a share above 1": ("errors", "lambda self, split, logits: logits[:, 0] * 0 + 2", "between 2"),
    "one error for all": ("errors", "lambda self, split, logits: logits.mean()", "shape"),
    "logits without classes": (
        "logits",
        "lambda self, split, places: CaptionPairs.logits(self, split, places)[:, 0]",
        "must be (samples, classes)",
    ),
    "texts alone": (
        "logits",
        "lambda self, split, places: self._model.encode_texts("
        "self._model.tokenize(['a three'] * len(places)))",
        "runs no layer of the model's vision",
    ),
    "one sample for all": ("content", "lambda self, split, place: b''", "is in the split"),
    "no samples": ("count", "lambda self, split: 0", "has no sample in the split calibration"),
    "no task": ("__new__", "lambda cls, *_: 3", "is a int: its entry point must name"),
    "no file": ("__init__", "lambda self, data, model: open('/none')", "cannot be made (FileNotF"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_task_does_wrong_is_one_sentence(case: str, pairs: Path, installed: Path) -> None:
    method, code, sentence = BROKEN[case]
    module = installed / "caption_pairs.py"
    module.write_text(
        f"{module.read_text()}\n\nclass Broken(CaptionPairs):\n    {method} = {code}\n"
    )
    (names,) = installed.glob("*.dist-info/entry_points.txt")
    names.write_text(
        names.read_text().replace("caption_pairs:CaptionPairs", "caption_pairs:Broken")
    )

    with pytest.raises(SpecError, match=re.escape(sentence)) as refused:
        Evaluator.from_spec(job(pairs)).evaluate(Configuration(Plan(())))
    assert "\n" not in str(refused.value)


def test_what_an_entry_point_names_must_be_there(pairs: Path, installed: Path) -> None:
    (names,) = installed.glob("*.dist-info/entry_points.txt")
    names.write_text(names.read_text().replace("caption_pairs:CaptionPairs", "caption_pairs:None_"))
    with pytest.raises(SpecError, match="cannot be imported"):
        loaded(pairs)
    names.write_text("[bitfront.tasks]\ncaption_pairs = elsewhere:Task\n")
    with pytest.raises(SpecError, match="elsewhere"):
        installed_task("caption_pairs").identity  # noqa: B018 - it looks for the code


class Rows(OwnTask):
    """Two rows of logits for each sample."""

    def __init__(self, _data: DataSpec, model: LayeredModel) -> None:
        assert isinstance(model, DualEncoder)
        self._model = model

    def count(self, _split: str) -> int:
        return 5

    def content(self, split: str, place: int) -> bytes:
        return f"{split}/{place}".encode()

    def logits(self, _split: str, places: Sequence[int]) -> torch.Tensor:
        pixels = torch.stack([torch.full((3, 24, 24), place / 5.0) for place in places])
        images = self._model.encode_images(pixels)
        texts = self._model.encode_texts(self._model.tokenize(["a three left of an eight"]))
        return torch.stack([images[:, :4], images[:, 4:8] + texts[:, :4]], dim=1)

    def errors(self, _split: str, logits: torch.Tensor) -> torch.Tensor:
        assert logits.shape == (5, 2, 4)
        return (logits.argmax(dim=-1) == 0).double().mean(dim=-1)


def test_a_sample_may_have_several_rows(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InstalledTask, "load", lambda _: Rows)
    measured = Evaluator.from_spec(job(pairs, batch_size=2))
    plan = Plan.uniform([layer.name for layer in measured.model.layers], Precision(3, 8))

    score = measured.scorer.score(Configuration(plan), SPLIT)

    own = Rows(measured.spec.data, measured.model)
    with torch.no_grad():
        measured.switch.to(plan)
        found = own.logits("selection", range(5))
        measured.switch.to(Plan(()))
        full = own.logits("selection", range(5))
    by_sample = [divergences_nats(full[n], found[n]).mean() for n in range(5)]
    assert score.samples is not None
    assert score.figures["divergence"] == pytest.approx(float(sum(by_sample) / 5), rel=1e-3)
    wrong = [float((found[n].argmax(dim=-1) == 0).double().mean()) for n in range(5)]
    assert score.figures["error"] == pytest.approx(sum(wrong) / 5)


def test_a_plan_is_distilled_by_the_divergence_of_the_tasks_logits(pairs: Path) -> None:
    samples = {"calibration": 12, "tuning": 32, "selection": 10, "test": 10}
    content = job(pairs, samples=samples).model_dump(mode="json", exclude_defaults=True)
    content["space"]["recovery"] = {"distil": {"steps": [12]}}
    measured = Evaluator.from_spec(JobSpec.model_validate(content))
    plan = Plan.uniform([layer.name for layer in measured.model.layers], Precision(2, 8))
    distilled = replace(plan, distil=Distillation(steps=12))

    before = measured.scorer.figures(Configuration(plan), SplitName.TUNING)
    after = measured.scorer.figures(Configuration(distilled), SplitName.TUNING)

    assert after["divergence"] < 0.9 * before["divergence"]


class Closed(Rows):
    """A task that lets no gradients through."""

    def logits(self, split: str, places: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            return super().logits(split, places)


@pytest.mark.parametrize("share", [0.5, 1])
def test_a_task_without_gradients_is_not_distilled(
    share: float, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InstalledTask, "load", lambda _: Closed)
    measured = Evaluator.from_spec(job(pairs, batch_size=2))
    plan = Plan.uniform([layer.name for layer in measured.model.layers], Precision(3, 8))

    with pytest.raises(SpecError, match="carry no gradients, and a distillation follows them"):
        measured.switch.to(replace(plan, distil=Distillation(steps=2, share=share)))


def test_a_study_runs_from_the_job_to_the_front(
    pairs: Path, tmp_path: Path, installed: Path, ray_folder: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job(pairs).model_dump(mode="json", exclude_defaults=True)))
    database = tmp_path / "results.db"
    command = [sys.executable, "-c", "from service.cli import main; main()", "submit", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(installed)}  # which Ray's workers inherit

    subprocess.run(
        [*command, "--db", f"sqlite:///{database}"], check=True, env=environment, timeout=280
    )

    front = bf.open(str(database)).study("pairs").front()
    assert all(0 < found.error < 1 for found in front)
    assert len(front)

"""The check before a study: all that is wrong in one list, and no study left behind."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from service.cli import main
from service.database_url import file_url
from storage.store import open_store
from tests.support.llava_models import photo, save_llava

SAMPLES = "{calibration: 1, tuning: 1, selection: 1, test: 1}"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / "cache"))


def images(folder: Path, *classes: str) -> Path:
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            grey = 40 * number + 90 * place
            Image.new("RGB", (8, 8), (grey, 0, 0)).save(folder / name / f"{number}.png")
    return folder


def job(tmp_path: Path, extra: str = "") -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(
        "study: first\nmodel: {source: reference}\ndata:\n  source: image_folder\n"
        f"  path: pictures\n  samples: {SAMPLES}\n{extra}"
    )
    return path


def run(command: str, path: Path, *options: str) -> Result:
    database = ("--db", str(path.parent / "a.db")) if command != "validate" else ()
    return CliRunner().invoke(main, [command, str(path), *options, *database])


def studies(path: Path) -> list[str]:
    with open_store(file_url(path.parent / "a.db")) as store:
        return [study.name for study in store.studies()]


def test_a_good_job_shows_its_captions_and_what_was_found(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "one-left", "eight")

    result = run("validate", job(tmp_path))

    assert result.exit_code == 0, result.stderr
    assert "4 images in 2 classes" in result.stderr
    assert "captions: 'a photo of an eight.', 'a photo of a one left.'" in result.stderr
    assert "full precision: error" in result.stderr
    stages = ("load the model, calibrate it", "evaluate full precision", "hash the samples")
    assert all(stage in result.stderr.splitlines() for stage in stages)


def test_what_only_the_model_shows_is_told_with_its_line(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "one", "ant")
    path = job(tmp_path)

    result = run("validate", path)

    assert result.exit_code == 2
    assert f"Error: {path}, line 2: 'a photo of an ant.' has the word 'ant'" in result.stderr


def test_names_that_look_like_identifiers_are_a_warning(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "class_1", "class_2")

    result = run("validate", job(tmp_path), "--trust")

    assert result.exit_code == 0, result.stderr
    assert "warning: data.classes: 2 of 2 class names look like identifiers" in result.stderr


@pytest.mark.parametrize("command", ["validate", "submit"])
@pytest.mark.parametrize("case", ["one class", "empty class", "zero bytes"])
def test_bad_samples_are_one_sentence_with_the_line_and_leave_no_study(
    tmp_path: Path, command: str, case: str
) -> None:
    folder = images(tmp_path / "pictures", "ant", *(["bee"] if case != "one class" else []))
    if case == "empty class":
        (folder / "cat").mkdir()
    if case == "zero bytes":
        (folder / "bee" / "1.png").write_bytes(b"")
    path = job(tmp_path)

    result = run(command, path)

    assert result.exit_code == 2
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert sentence.startswith(f"Error: {path}, line 5: ")
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr
    assert command == "validate" or studies(path) == []


def test_samples_that_were_checked_need_not_be_opened_again(tmp_path: Path) -> None:
    folder = images(tmp_path / "pictures", "ant", "bee")
    (folder / "bee" / "1.png").write_bytes(b"")

    assert run("validate", job(tmp_path)).exit_code == 2
    assert run("validate", job(tmp_path), "--trust").exit_code == 0


def test_widths_without_a_kernel_are_refused_beside_all_else(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "ant")
    path = job(
        tmp_path,
        "space:\n  weight_bits: [2, 3, 4, 8]\nobjectives: [error, latency_s]\n",
    )

    result = run("submit", path)

    assert result.exit_code == 2
    assert f"{path}, line 8: latency_s: no kernel multiplies at w2a8, w3a8, w4a8: " in result.stderr
    assert f"{path}, line 5: " in result.stderr
    assert studies(path) == []


def test_all_mistakes_of_a_file_are_listed(tmp_path: Path) -> None:
    path = job(tmp_path, "search:\n  seed: -1\n  workers: many\n")

    result = run("validate", path)

    assert result.exit_code == 2
    assert "line 8: search.seed" in result.stderr
    assert "line 9: search.workers" in result.stderr


def test_a_disk_that_is_too_small_is_told_before_there_is_a_study(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "ant", "bee")
    path = job(tmp_path, "stop: {trials: 1000000000000}\n")

    result = run("submit", path)

    assert result.exit_code == 2
    assert f"{path}, line 7: stop.trials: 1,000,000,000,000 trials take about" in result.stderr
    assert studies(path) == []


def test_weights_that_are_larger_than_the_memory_are_not_loaded(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "ant", "bee")
    path = job(tmp_path)
    (tmp_path / "model").mkdir()
    with (tmp_path / "model" / "model.safetensors").open("wb") as weights:
        weights.truncate(1 << 42)  # of holes only
    path.write_text(
        path.read_text().replace("{source: reference}", "{source: transformers, name: ./model}", 1)
    )

    result = run("submit", path)

    assert result.exit_code == 2
    assert f"{path}, line 2: model.name: the weights take 4398 GB" in result.stderr
    assert studies(path) == []


def test_a_model_that_cannot_be_used_is_told_before_ray_starts(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "one", "ant")
    path = job(tmp_path)

    result = run("submit", path)

    assert result.exit_code == 2
    assert f"Error: {path}, line 2: 'a photo of an ant.' has the word 'ant'" in result.stderr
    assert "driven by" not in result.stderr
    assert studies(path) == []


def test_profile_checks_the_job_too(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "ant")
    path = job(tmp_path)

    result = run("profile", path)

    assert result.exit_code == 2
    assert f"Error: {path}, line 5: " in result.stderr
    assert "has 1 class folder" in result.stderr
    assert studies(path) == []


def test_mistakes_of_the_file_and_of_the_data_are_one_list(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "ant")
    path = job(tmp_path, "search:\n  seed: -1\nquantizer:\n  activations: dynamic\n")
    path.write_text(path.read_text() + "space:\n  clips: [1.0, 0.9]\n")

    result = run("submit", path)

    lines = result.stderr[result.stderr.index("Error: ") :].removeprefix("Error: ").splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        f"{path}, line {number}" for number in (5, 8, 12)
    ]


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "one", "eight")
    path = job(tmp_path, "search:\n  seed: 3\n")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))

    assert run("validate", path, "--trust").exit_code == 0

    path.write_bytes(path.read_bytes().replace(b"seed: 3", b"seed: -3"))
    assert f"{path}, line 8: search.seed: -3 is not possible" in run("validate", path).stderr


@pytest.mark.parametrize("command", ["validate", "submit"])
def test_a_missing_folder_is_one_sentence_and_leaves_no_study(tmp_path: Path, command: str) -> None:
    path = job(tmp_path)

    result = run(command, path)

    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: {path}, line 5: data.path: the folder {tmp_path / 'pictures'} does not exist\n"
    )
    assert command == "validate" or studies(path) == []


@pytest.mark.parametrize("command", ["validate", "submit"])
def test_a_llava_without_a_tokenizer_is_one_sentence_and_leaves_no_study(
    tmp_path: Path, command: str
) -> None:
    save_llava(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    lines = [
        {"question": f"what is {n}?", "answers": ["two"], "image": f"{n}.png"} for n in range(4)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for number in range(4):
        photo(number).save(tmp_path / f"{number}.png")
    path = tmp_path / "job.yaml"
    path.write_text(
        "study: first\nmodel: {source: transformers, name: ./model, device: cpu}\ndata:\n"
        f"  source: questions\n  path: questions.jsonl\n  samples: {SAMPLES}\n"
    )

    result = run(command, path)

    assert result.exit_code == 2
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert sentence.startswith(f"Error: {path}, line 2: ")
    assert "tokenizer" in sentence
    assert "Traceback" not in result.stderr
    assert command == "validate" or studies(path) == []

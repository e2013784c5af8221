"""The check before a study: all that is wrong in one list, and no study left behind."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from service.cli import main
from service.commands.deployment import file_url
from storage.store import open_store

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

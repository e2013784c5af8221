"""A job names no file outside of the folders that a machine gives to jobs."""

from pathlib import Path

import pytest

from bitfront.errors import SpecError
from bitfront.job.allowed_roots import VARIABLE, check_allowed_roots
from bitfront.spec import DataSpec, JobSpec, SplitPaths, TrackingSpec


def spec(data: Path | str, weights: str | None = None, name: str = "ViT-B-32") -> JobSpec:
    return JobSpec.model_validate(
        {
            "study": "rooted",
            "model": {"source": "open_clip", "name": name, "weights": weights},
            "data": {"source": "image_folder", "path": str(data)},
        }
    )


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "given"
    (root / "images").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    monkeypatch.setenv(VARIABLE, f"{tmp_path / 'other'}:{root}")
    return root


def test_files_within_a_root_and_names_of_a_hub_are_welcome(root: Path) -> None:
    check_allowed_roots(spec(root / "images", "laion2b_s34b_b79k"))
    check_allowed_roots(spec(root / "images" / ".." / "images"))


def test_without_roots_every_file_is_welcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    check_allowed_roots(spec(tmp_path))


@pytest.mark.parametrize("path", ["../secret", "link", "images/../../secret", "/etc", "~"])
def test_a_path_that_leaves_the_roots_is_refused(root: Path, path: str) -> None:
    with pytest.raises(SpecError, match=r"data.path: .* lies outside of the folders"):
        check_allowed_roots(spec(root / path if not path.startswith("~") else path))


def test_so_are_addresses_wherever_the_process_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    shards = spec("s3://bucket/{0..3}.tar")
    data = shards.data.model_copy(update={"source": "webdataset"})

    with pytest.raises(SpecError, match=r"s3://bucket.* lies outside"):
        check_allowed_roots(shards.model_copy(update={"data": data}))


def test_so_are_weights(root: Path) -> None:
    with pytest.raises(SpecError, match=r"model.weights: /etc/passwd lies outside"):
        check_allowed_roots(spec(root / "images", "/etc/passwd"))


@pytest.mark.parametrize("name", ["local-dir:/etc", "local-dir:elsewhere", "/etc/model"])
def test_so_are_models_in_folders(root: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"model.name: .* lies outside"):
        check_allowed_roots(spec(root / "images", name=name))


def test_so_is_the_file_that_a_study_is_mirrored_to(root: Path) -> None:
    for uri, is_refused in (("sqlite:////etc/m.db", True), ("http://host:5000", False)):
        job = spec(root / "images").model_copy(update={"tracking": TrackingSpec(mlflow=uri)})
        if not is_refused:
            check_allowed_roots(job)
            continue
        with pytest.raises(SpecError, match=r"tracking.mlflow: /etc/m.db lies outside"):
            check_allowed_roots(job)


def test_so_is_a_file_that_names_classes(root: Path) -> None:
    job = spec(root / "images")

    for classes, is_refused in (("/etc/passwd", True), ("imagenet", False), (("a", "b"), False)):
        named = job.model_copy(update={"data": job.data.model_copy(update={"classes": classes})})
        if not is_refused:
            check_allowed_roots(named)
            continue
        with pytest.raises(SpecError, match=r"data.classes: /etc/passwd lies outside"):
            check_allowed_roots(named)


def test_so_is_a_folder_of_images(root: Path) -> None:
    data = {"source": "captions", "path": str(root / "captions.jsonl"), "images": "/etc"}
    job = spec(root / "images").model_copy(update={"data": DataSpec.model_validate(data)})

    with pytest.raises(SpecError, match=r"data.images: /etc lies outside"):
        check_allowed_roots(job)


def test_so_is_the_path_of_a_split(root: Path) -> None:
    job = spec(root / "images")
    data = job.data.model_copy(update={"splits": SplitPaths(test="/etc")})

    with pytest.raises(SpecError, match=r"data.splits.test: /etc lies outside"):
        check_allowed_roots(job.model_copy(update={"data": data}))

"""Features in memory and, where that is full, on disk."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitfront.plan import Plan
from bitfront.precision import Precision
from objectives.execution.feature_store import FeatureKey, FeatureStore

NBYTES = 4 * 16


def key(number: int) -> FeatureKey:
    return FeatureKey(f"tuning/view-{number}", Plan.of({"layer": Precision(4, 8)}))


def tensors(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(10, generator=generator), torch.randn(2, 3, generator=generator)]


def same(found: tuple[Tensor, ...] | None, number: int) -> bool:
    wanted = tensors(number)
    return found is not None and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_fits_into_memory_makes_no_file(tmp_path: Path) -> None:
    store = FeatureStore("model", tmp_path, memory_nbytes=2 * NBYTES)

    store.put(key(0), tensors(0))
    store.put(key(1), tensors(1))

    assert same(store.get(key(0)), 0)
    assert store.get(key(2)) is None
    assert list(tmp_path.iterdir()) == []


def test_what_must_go_from_memory_comes_back_from_a_file(tmp_path: Path) -> None:
    store = FeatureStore("model", tmp_path / "features", memory_nbytes=2 * NBYTES)

    for number in range(5):
        store.put(key(number), tensors(number))

    assert all(same(store.get(key(number)), number) for number in range(5))


def test_what_is_larger_than_memory_goes_to_a_file_at_once(tmp_path: Path) -> None:
    store = FeatureStore("model", tmp_path, memory_nbytes=NBYTES - 1)

    store.put(key(0), tensors(0))

    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert same(store.get(key(0)), 0)


def test_another_process_finds_the_files_of_the_same_model_only(tmp_path: Path) -> None:
    FeatureStore("model", tmp_path, memory_nbytes=1).put(key(0), tensors(0))

    assert same(FeatureStore("model", tmp_path).get(key(0)), 0)
    assert FeatureStore("other", tmp_path).get(key(0)) is None
    assert FeatureStore("model", tmp_path).get(FeatureKey("tuning/view-0", Plan(()))) is None


def test_without_a_folder_or_without_memory_nothing_is_written(tmp_path: Path) -> None:
    bare = FeatureStore("model", None, memory_nbytes=1)
    off = FeatureStore("model", tmp_path, memory_nbytes=0)

    for store in (bare, off):
        store.put(key(0), tensors(0))
        assert store.get(key(0)) is None

    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_counts_as_absent_and_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FeatureStore("model", tmp_path, memory_nbytes=1)
    store.put(key(0), tensors(0))
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-20])

    assert store.get(key(0)) is None

    assert not path.exists()
    assert "cannot be read" in caplog.text


def test_the_files_that_were_used_least_recently_make_room(tmp_path: Path) -> None:
    store = FeatureStore("model", tmp_path, memory_nbytes=1)
    store.put(key(0), tensors(0))
    (size,) = (path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    limited = FeatureStore("model", tmp_path, memory_nbytes=1, disk_nbytes=3 * size)
    limited.put(key(1), tensors(1))
    for age, path in enumerate(sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)):
        os.utime(path, (1000 + age, 1000 + age))
    assert same(limited.get(key(0)), 0)

    limited.put(key(2), tensors(2))
    limited.put(key(3), tensors(3))

    kept = [number for number in range(4) if same(store.get(key(number)), number)]
    assert kept == [0, 2, 3]


def test_a_folder_that_cannot_be_written_costs_time_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    store = FeatureStore("model", tmp_path / "file", memory_nbytes=1)

    store.put(key(0), tensors(0))

    assert "not kept on disk" in caplog.text

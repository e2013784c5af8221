"""Shared files: whole or not at all, on a disk and through fsspec."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from bitfront.attempt import Evaluated
from bitfront.errors import InvalidModel, SpecError, UnusableSpool
from bitfront.files import shared_path, write_whole
from bitfront.trial import Evaluation
from objectives.recovery.checkpoint import read_checkpoint, write_checkpoint
from workers.scheduling.spool import Spool

torch = pytest.importorskip("torch")

DONE = Evaluated(Evaluation({"error": 0.5}, {}), seconds=1.0, worker="host:1")


class Away(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """A storage that fails with an error of its own, as fsspec's packages do."""

    protocol = "away"

    def fail(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError("no endpoint")

    cat_file = info = ls = makedirs = mkdir = pipe_file = rm = rm_file = _open = fail


class Bucket(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """An object store where one may put objects, and not ask for folders."""

    protocol = "bucket"

    def refuse(self, *_: object, **__: object) -> NoReturn:
        raise PermissionError("access denied")

    makedirs = mkdir = refuse


@pytest.fixture
def away() -> UPath:
    fsspec.register_implementation("away", Away, clobber=True)
    return UPath("away://bucket/spool")


@pytest.fixture(params=["disk", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | UPath:
    """A folder of this machine, by its path and by its URL, and one that is not a disk at all."""
    texts = {
        "disk": str(tmp_path / "spool"),
        "file": f"file://{tmp_path}/spool",
        "memory": f"memory://{tmp_path.name}/spool",
    }
    return shared_path(texts[request.param])


def test_a_path_is_a_folder_and_a_url_is_fsspecs(tmp_path: Path) -> None:
    assert shared_path(str(tmp_path)) == tmp_path
    assert shared_path(f"file://{tmp_path}") == tmp_path
    assert isinstance(shared_path("memory://bucket/spool"), UPath)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(SpecError, match="install the fsspec package for nowhere"):
        shared_path("nowhere://bucket/spool")


def test_a_file_is_replaced_whole_and_leaves_nothing_else(folder: Path | UPath) -> None:
    path = folder / "a" / "file"

    write_whole(path, b"first")
    write_whole(path, b"second")

    assert path.read_bytes() == b"second"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_the_spool_keeps_results_and_endings(folder: Path | UPath) -> None:
    spool = Spool(folder)
    spool.write(3, 1, DONE)
    spool.end(4)

    assert Spool(folder).read(3, 1) == DONE
    assert Spool(folder).read(3, 2) is None
    assert (spool.is_ending(4), spool.is_ending(5)) == (True, False)
    spool.tidy(5)
    assert not spool.is_ending(4)
    assert spool.read(3, 1) == DONE
    spool.discard(3, 1)
    spool.close()
    assert spool.read(3, 1) is None


def test_what_finished_trials_left_is_swept_away_and_nothing_else(folder: Path | UPath) -> None:
    spool = Spool(folder)
    for number in (3, 4, 30):
        spool.write(number, 1, DONE)
        write_whole(spool.checkpoint(number), b"")
    write_whole(folder / "vision-3", b"")
    spool.end(3)

    spool.sweep({3, 5})
    spool.close()

    left = {path.name for path in folder.iterdir()}
    kept = {f"{number:06d}{end}" for number in (4, 30) for end in ("-1.json", ".safetensors")}
    assert left == {*kept, "vision-3", "end-3"}


def test_a_checkpoint_comes_back_and_a_damaged_one_does_not(folder: Path | UPath) -> None:
    path = folder / "000001.safetensors"
    tensors = {"prompt": torch.arange(6.0).reshape(2, 3)}
    write_checkpoint(path, "form.1", "me", {"step": 7}, tensors)

    content, found = read_checkpoint(path, "form.1", "me")

    assert content == {"step": 7}
    assert torch.equal(found["prompt"], tensors["prompt"])
    write_whole(path, path.read_bytes()[:-1])
    with pytest.raises(InvalidModel, match="damaged"):
        read_checkpoint(path, "form.1", "me")


def test_a_spool_is_removed_with_all_that_is_in_it(folder: Path | UPath) -> None:
    spool = Spool(folder)
    spool.write(3, 1, DONE)
    write_whole(folder / "vision-1" / "state", b"")
    beside = folder.parent / "beside"
    write_whole(beside, b"")

    spool.remove()
    spool.remove()

    assert not folder.exists()
    assert beside.exists()


@pytest.mark.filterwarnings("ignore:UPath 'away'")
@pytest.mark.parametrize(
    "use",
    [
        lambda spool: spool.read(3, 1),
        lambda spool: spool.write(3, 1, DONE),
        lambda spool: spool.end(4),
        lambda spool: spool.is_ending(4),
        lambda spool: spool.tidy(4),
        lambda spool: spool.sweep({3}),
        lambda spool: spool.remove(),
    ],
)
def test_a_storage_that_is_away_is_named_whatever_its_package_raises(
    away: UPath, use: Callable[[Spool], object]
) -> None:
    with pytest.raises(UnusableSpool, match=r"away://bucket/spool .*no endpoint.*BITFRONT_SPOOL"):
        use(Spool(away))


@pytest.mark.filterwarnings("ignore:UPath 'away'")
def test_what_cannot_be_discarded_is_left_with_a_warning(
    away: UPath, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(away)

    with caplog.at_level(logging.WARNING):
        spool.discard(3, 1)
        spool.close()

    assert "3-1.json stays in the spool: RuntimeError: no endpoint" in caplog.text


@pytest.mark.filterwarnings("ignore:UPath 'bucket'")
def test_the_spool_asks_an_object_store_for_no_folder() -> None:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    spool = Spool(UPath("bucket://name/spool"))

    spool.tidy(1)
    spool.write(3, 1, DONE)

    assert spool.read(3, 1) == DONE


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UnusableSpool, match="Not a directory"):
        Spool(tmp_path / "file" / "spool").tidy(1)

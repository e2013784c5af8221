"""The spool in a bucket: s3fs against a server that speaks S3."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer
from upath import UPath

from bitfront.attempt import Evaluated
from bitfront.errors import UnusableSpool
from bitfront.files import shared_path
from bitfront.trial import Evaluation
from objectives.recovery.checkpoint import read_checkpoint, write_checkpoint
from tests.support.buckets import served_bucket
from tests.support.studies import Study
from workers.scheduling.spool import Spool

torch = pytest.importorskip("torch")

DONE = Evaluated(Evaluation({"error": 0.5}, {}), seconds=1.0, worker="host:1")


RESULT = re.compile(r"\d+-\d+\.json|\d+\.safetensors|end-\d+")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """A server with the bucket `studies`."""
    with served_bucket("studies", monkeypatch) as running:
        yield running


def bucket() -> UPath:
    """The folder as another process sees it, without what this one remembers."""
    s3fs.S3FileSystem.clear_instance_cache()
    path = shared_path("s3://studies/spool/digits")
    assert isinstance(path, UPath)
    return path


@pytest.mark.usefixtures("server")
def test_a_result_is_there_for_another_process_until_it_is_recorded() -> None:
    worker, driver = Spool(bucket()), Spool(bucket())
    driver.tidy(1)
    assert driver.read(3, 1) is None

    worker.write(3, 1, DONE)

    assert driver.read(3, 1) == DONE
    driver.discard(3, 1)
    driver.close()
    assert worker.read(3, 1) is None


@pytest.mark.usefixtures("server")
def test_a_worker_that_looks_again_and_again_sees_that_its_driver_ends() -> None:
    worker, driver = Spool(bucket()), Spool(bucket())
    worker.write(3, 1, DONE)
    assert not worker.is_ending(4)

    driver.end(4)

    assert worker.is_ending(4)
    assert not worker.is_ending(5)
    Spool(bucket()).tidy(5)
    assert not worker.is_ending(4)
    assert worker.read(3, 1) == DONE


@pytest.mark.usefixtures("server")
def test_a_checkpoint_goes_on_elsewhere() -> None:
    tensors = {"prompt": torch.arange(6.0).reshape(2, 3)}
    for step in (7, 8):
        write_checkpoint(Spool(bucket()).checkpoint(3), "form.1", "me", {"step": step}, tensors)

    content, found = read_checkpoint(Spool(bucket()).checkpoint(3), "form.1", "me")

    assert content == {"step": 8}
    assert torch.equal(found["prompt"], tensors["prompt"])


@pytest.mark.usefixtures("server")
def test_a_spool_is_removed_and_its_neighbour_stays() -> None:
    spool, other = Spool(bucket()), Spool(bucket().parent / "digits-2")
    spool.write(3, 1, DONE)
    other.write(3, 1, DONE)

    spool.remove()
    spool.remove()

    assert Spool(bucket()).read(3, 1) is None
    assert other.read(3, 1) == DONE


@pytest.mark.timeout(120)
def test_a_server_that_is_away_is_named_and_costs_a_driver_nothing(
    server: ThreadedMotoServer, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(bucket())
    spool.write(3, 1, DONE)
    server.stop()

    with pytest.raises(UnusableSpool, match="s3://studies/spool/digits cannot be used"):
        spool.write(4, 1, DONE)
    with pytest.raises(UnusableSpool):
        spool.read(3, 1)
    with caplog.at_level(logging.WARNING):
        spool.discard(3, 1)
        spool.close()
    assert "000003-1.json stays in the spool" in caplog.text


@pytest.mark.usefixtures("server")
def test_a_bucket_that_is_not_there_is_named_and_not_made() -> None:
    spool = Spool(UPath("s3://nobodys/spool"))

    with pytest.raises(UnusableSpool, match="s3://nobodys/spool"):
        spool.tidy(1)
    with pytest.raises(UnusableSpool, match="s3://nobodys/spool"):
        spool.write(3, 1, DONE)
    assert not s3fs.S3FileSystem(use_listings_cache=False).exists("nobodys")


@pytest.mark.usefixtures("ray_folder")
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("server")
def test_a_study_with_its_spool_in_a_bucket_outlives_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFRONT_SPOOL", "s3://studies/spool")
    study = Study(tmp_path, "digits", trials=12)
    complete = "SELECT count(*) FROM trial WHERE state = 'complete'"
    driver = study.start("submit", str(study.job))
    study.kill_when(driver, lambda: study.count(complete) >= 4)

    assert study.start("resume", "digits").wait(timeout=300) == 0, study.log.read_text()

    assert study.count(complete) == 12
    assert "cannot be" not in study.log.read_text()
    left = [path.name for path in UPath("s3://studies/spool").glob("**/*")]
    assert not [name for name in left if RESULT.fullmatch(name)], left
    assert study.start("delete", "digits", "--yes").wait(timeout=60) == 0
    assert not list(UPath("s3://studies/spool").glob("**/*"))

"""What a worker is told: the job, and a smaller batch after memory ran out."""

import pickle

import pytest

from bitfront.trial import Cause
from tests.support.store_samples import job
from workers.scheduling.failures import failed_by
from workers.scheduling.worker_config import WorkerConfig


@pytest.mark.parametrize(("halvings", "expected"), [(0, 64), (1, 32), (6, 1), (9, 1)])
def test_each_time_that_memory_ran_out_halves_the_batch(halvings: int, expected: int) -> None:
    config = WorkerConfig(job(), {"bounds": {}})

    smaller = config.with_halved_batch(halvings)

    assert smaller.spec.data.batch_size == expected
    assert (smaller.bounds, smaller.spec.model) == (config.bounds, config.spec.model)


def test_configurations_of_equal_content_are_one_key_also_in_another_process() -> None:
    config = WorkerConfig(job(), {"vision.patch": [0.0, 1.5]})
    sent = pickle.loads(pickle.dumps(config))
    other_bounds = WorkerConfig(job(), {"vision.patch": [0.0, 2.0]})

    cache = {config: "loaded"}

    assert cache[sent] == "loaded"
    assert cache[config.with_halved_batch(0)] == "loaded"
    assert other_bounds not in cache
    assert config.with_halved_batch(1) not in cache


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which this module does not import."""


def test_memory_of_host_and_device_are_one_cause() -> None:
    assert failed_by(MemoryError()).cause is Cause.OUT_OF_MEMORY
    assert failed_by(OutOfMemoryError("CUDA out of memory")).cause is Cause.OUT_OF_MEMORY
    assert failed_by(RuntimeError("shape")).cause is Cause.USER_ERROR

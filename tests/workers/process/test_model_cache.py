"""What a worker process finds of a job whose latencies are measured in its target."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from bitfront.layers import Block, Tower
from bitfront.plan import Option
from bitfront.precision import Precision
from tests.support.scene_models import scene_spec
from workers.process import model_cache
from workers.scheduling.worker_config import WorkerConfig

pytestmark = pytest.mark.runtime


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path))
    model_cache.release()
    yield
    model_cache.release()


def test_all_processes_of_a_machine_take_the_same_times_of_the_target() -> None:
    config = WorkerConfig(scene_spec(target="onnxruntime", objectives=["error", "latency_s"]))
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    block, option = Block("b", Tower.VISION, (name,)), Option((Precision(4, 16),))

    first, cell = model_cache.inspected(config), model_cache.cell_meter(config)
    timed = cell.measure(block, option).latency_s
    model_cache.release()
    second, cell = model_cache.inspected(config), model_cache.cell_meter(config)

    assert first.provenance["latency"].startswith(f"onnxruntime {version('onnxruntime')} on ")
    assert first.fixed_times == second.fixed_times
    assert first.full.values["latency_s"] == second.full.values["latency_s"] > 0
    assert timed is not None
    assert cell.measure(block, option).latency_s == timed

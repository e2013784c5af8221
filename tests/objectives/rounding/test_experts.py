"""Codes and ranges of a mixture's experts, which few tokens reach."""

from pathlib import Path

import pytest
import torch

from benchmarks.models import Settings, job, save_samples
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from objectives.evaluation.evaluator import Evaluator
from objectives.profiling.calibration import watch_calibration
from objectives.profiling.range_search import RangeSearch
from tests.support.families import SMALL_MODELS

W3A8 = Precision(3, 8)


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    folder: Path = tmp_path_factory.mktemp("mixture")
    small = next(small for small in SMALL_MODELS if small.name == "Qwen3-VL-MoE")
    (folder / "model").mkdir()
    small.save(folder / "model")
    save_samples(folder, 0)
    return Evaluator.from_spec(job(small, folder, Settings(1, 0, "auto", 8)))


def test_an_experts_codes_do_not_depend_on_where_a_plan_sends_tokens(evaluator: Evaluator) -> None:
    model = evaluator.model
    experts = [layer.name for layer in model.layers if model.is_of_expert(layer.name)]
    everything = Plan.uniform([layer.name for layer in model.layers], W3A8)

    found = evaluator.switch.coded(everything)
    figures = evaluator.evaluate(Configuration(everything)).metrics

    assert figures["divergence"] > 0
    assert experts
    for expert in experts[:: len(experts) // 4]:
        alone = evaluator.switch.coded(Plan.uniform([expert], W3A8))
        own, other = found[expert].codes, alone[expert].codes
        assert own is not None
        assert other is not None
        assert torch.equal(own.codes, other.codes)


def test_a_range_is_searched_on_the_tokens_that_reach_an_expert(evaluator: Evaluator) -> None:
    model = evaluator.model
    evaluator.switch.take_off()
    seen: dict[str, list[torch.Tensor]] = {}
    watch_calibration(
        evaluator.task, lambda layer, x: seen.setdefault(layer, []).append(x.flatten(0, -2))
    )
    search = RangeSearch(evaluator.task)

    for layer in model.layers:
        if not model.is_of_expert(layer.name):
            continue
        found = search(layer.name, 8)
        rows = torch.cat(seen[layer.name]) if layer.name in seen else torch.empty(0)
        assert (found is None) == (len(rows) == 0)
        if found is not None:
            assert float(rows.min()) - 1e-6 <= found.low <= 0 <= found.high
            assert found.high <= float(rows.max().clamp(min=0)) + 1e-6

"""A model whose blocks are read when they run gives what it gives when all of it is in memory."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitfront.errors import InvalidModel, SpecError
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.profile import Cell
from bitfront.spec import JobSpec
from bitfront.vlm import load_model
from objectives.data.split_name import SplitName
from objectives.evaluation.evaluator import Evaluator
from objectives.execution.mapped import mapped
from objectives.profiling.cells import CellMeter
from search.options import block_options
from search.partition import partition
from tests.support.artefacts import dual_encoder_folder, llava_folder
from tests.support.llava_models import BUILDS, Build, save_llava

MEMORY = 1000
"""Bytes, which no model fits into."""
KNOWN = BUILDS[:2]


def pair(folder: Path, build: Build = BUILDS[0]) -> tuple[Evaluator, Evaluator]:
    """The same model whole in memory, and read block by block."""
    spec = llava_folder(folder, build)
    content = spec.model_dump(mode="json")
    content["space"] |= {"clips": [1.0], "weight_bits": [3, 8], "activation_bits": [8]}
    whole = Evaluator.from_spec(JobSpec.model_validate(content))
    content["resources"] = {"memory": MEMORY}
    parts = Evaluator.from_spec(JobSpec.model_validate(content))
    assert whole.model.residency is None
    assert parts.model.residency is not None
    return whole, parts


def cells(loaded: Evaluator, measure: str) -> list[Cell]:
    profile = loaded.spec.profile.model_copy(update={"measure": measure})
    spec = loaded.spec.model_copy(update={"profile": profile})
    meter = CellMeter(loaded.task, loaded.cell_switch, spec)
    layers = loaded.model.layers
    blocks = partition(layers, (), spec.partition.model_copy(update={"granularity": "layer"}), ())
    return [
        meter.measure(block, option)
        for block in blocks[::9]
        for option in block_options(block, layers, spec.space, spec.quantizer, ())
    ]


def mixed(loaded: Evaluator, low: int = 4) -> Configuration:
    return Configuration(
        Plan.of(
            {
                layer.name: Precision((low, 8)[place % 2], 8)
                for place, layer in enumerate(loaded.model.layers)
            }
        )
    )


@pytest.mark.parametrize("build", KNOWN, ids=str)
def test_cells_scores_and_trials_are_those_of_the_whole_model(tmp_path: Path, build: Build) -> None:
    whole, parts = pair(tmp_path, build)

    assert parts.model.identity == whole.model.identity
    assert parts.model.layers == whole.model.layers
    assert parts.ranges == whole.ranges
    for measure in ("output_kl", "gauss_newton"):
        found, expected = cells(parts, measure), cells(whole, measure)
        for one, other in zip(found, expected, strict=True):
            assert replace(one, error=0) == replace(other, error=0)
            # The last bits of logits may depend on where in memory a tensor is.
            assert one.error == pytest.approx(other.error, rel=1e-4)
    for low in (2, 4):
        own, theirs = (e.evaluate(mixed(e, low), SplitName.TEST) for e in (parts, whole))
        assert own.values == theirs.values
        assert own.metrics["divergence"] == pytest.approx(theirs.metrics["divergence"], rel=1e-4)


def test_only_the_block_that_runs_is_in_memory(tmp_path: Path) -> None:
    _, parts = pair(tmp_path)
    blocks = [
        block
        for name, block in parts.model.module.named_modules()
        if re.fullmatch(r".*language_model.layers.[0-9]+", name)
    ]
    weights = [block.get_parameter("mlp.up_proj.weight") for block in blocks]
    seen: list[list[bool]] = []
    hooks = [
        block.get_submodule("mlp").register_forward_hook(
            lambda *_: seen.append([bool(weight.isfinite().all()) for weight in weights])
        )
        for block in blocks[::9]
    ]
    parts.evaluate(mixed(parts))
    for hook in hooks:
        hook.remove()

    assert seen
    assert all(sum(resident) == 1 for resident in seen)
    assert not any(bool(weight.isfinite().any()) for weight in weights)


def test_a_plan_is_taken_off_to_the_bit(tmp_path: Path) -> None:
    whole, parts = pair(tmp_path)
    parts.evaluate(mixed(parts, 2))
    parts.switch.clear()

    (one,), (other,) = (e.task.streams(SplitName.SELECTION) for e in (parts, whole))
    whole.switch.clear()
    with torch.no_grad():
        assert torch.equal(one.run(0), other.run(0))


def test_a_model_that_fits_is_loaded_whole(tmp_path: Path) -> None:
    spec = llava_folder(tmp_path).model

    assert load_model(spec, 1 << 30).residency is None


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    spec = llava_folder(tmp_path).model
    save_llava(Path(spec.name), BUILDS[1])
    (Path(spec.name) / "config.json").unlink()
    other = tmp_path / "other"
    other.mkdir()
    save_llava(other)
    (Path(spec.name) / "config.json").write_bytes((other / "config.json").read_bytes())

    with pytest.raises(InvalidModel, match=r"config\.json"):
        load_model(spec, MEMORY)


def test_a_vision_tower_with_two_outputs_is_refused(tmp_path: Path) -> None:
    _, parts = pair(tmp_path, Build(features=(-2, -4)))

    with pytest.raises(SpecError, match=r"leave resources\.memory out"):
        parts.evaluate(mixed(parts))


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("quantizer", {"rounding": "gptq"}, "quantizer.rounding: write nearest"),
        ("space", {"recovery": {"steps": [1]}}, "space.recovery: leave it out"),
        ("space", {"clips": [1.0, 0.99]}, "space.clips: write one clip"),
        ("profile", {"measure": "fisher"}, "profile.measure: write output_kl or gauss_newton"),
        ("profile", {"cells": "adaptive", "score": "lim"}, "profile.score: write gauss_newton"),
    ],
)
def test_what_needs_more_than_a_block_is_refused_before_anything_runs(
    tmp_path: Path, section: str, changes: dict[str, object], said: str
) -> None:
    content = llava_folder(tmp_path).model_dump(mode="json")
    content["space"] |= {"clips": [1.0]}
    content[section] |= changes
    content["resources"] = {"memory": MEMORY}

    with pytest.raises(SpecError, match=said):
        Evaluator.from_spec(JobSpec.model_validate(content))


def test_a_dual_encoder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    spec = dual_encoder_folder(tmp_path, "clip")

    with pytest.raises(SpecError, match="only a LLaVA is read block by block"):
        load_model(spec.model, MEMORY)


def test_a_mapped_tensor_keeps_its_values() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        given = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)

        assert torch.equal(mapped(given), given)
        assert mapped(given).dtype is dtype
    assert mapped(torch.empty(0)).shape == (0,)

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.layers import LayerKind
from bitfront.vlm import DualEncoder
from objectives.data.classification import ClassificationTask as Task
from objectives.data.split_name import SplitName
from objectives.profiling import calibration
from objectives.profiling.calibration import calibrate, watch_calibration
from tests.support.scene_models import all_pixels, scene_spec, scene_task, untrained_encoder


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return untrained_encoder()


@pytest.fixture(scope="module")
def task(model: DualEncoder) -> Task:
    return scene_task(scene_spec(), model)


@pytest.fixture(scope="module")
def inputs(model: DualEncoder, task: Task) -> dict[str, Tensor]:
    """All values that every layer sees, from one large batch a tower."""
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), model.watch_inputs(seen.__setitem__):
        model.encode_images(all_pixels(task, SplitName.CALIBRATION))
        model.encode_texts(task.captions)
    return seen


def test_every_layer_but_the_embedding_gets_a_range(model: DualEncoder, task: Task) -> None:
    ranges = calibrate(task, (1.0, 0.99))

    numeric = {layer.name for layer in model.layers if layer.kind is not LayerKind.EMBEDDING}
    assert set(ranges) == numeric
    assert all(set(clips) == {1.0, 0.99} for clips in ranges.values())


def test_the_widest_range_is_the_minimum_and_the_maximum(
    model: DualEncoder, task: Task, inputs: dict[str, Tensor]
) -> None:
    ranges = calibrate(task, (1.0,))

    for layer, values in inputs.items():
        assert ranges[layer][1.0].low == pytest.approx(values.min().item(), abs=1e-5)
        assert ranges[layer][1.0].high == pytest.approx(values.max().item(), abs=1e-5)


def test_a_clip_is_near_the_quantiles_of_all_values(
    model: DualEncoder, task: Task, inputs: dict[str, Tensor]
) -> None:
    ranges = calibrate(task, (0.99,))

    for layer, values in inputs.items():
        sorted_values = np.sort(values.flatten().numpy())
        for quantile, bound in ((0.01, ranges[layer][0.99].low), (0.99, ranges[layer][0.99].high)):
            below = np.searchsorted(sorted_values, bound, side="left") / len(sorted_values)
            up_to = np.searchsorted(sorted_values, bound, side="right") / len(sorted_values)
            assert below - 0.003 <= quantile <= up_to + 0.003


def test_a_small_sample_still_sees_every_channel(
    model: DualEncoder, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = calibrate(task, (0.9,))
    monkeypatch.setattr(calibration, "SAMPLED_VALUES", 4096)

    rough = calibrate(task, (0.9,))

    for layer, clips in exact.items():
        width = clips[0.9].high - clips[0.9].low
        assert rough[layer][0.9].high == pytest.approx(clips[0.9].high, abs=0.1 * width)


def test_equal_runs_give_equal_ranges(model: DualEncoder, task: Task) -> None:
    assert calibrate(task, (1.0, 0.98)) == calibrate(task, (1.0, 0.98))


def test_a_layer_whose_input_is_not_finite_is_named(task: Task) -> None:
    model = untrained_encoder()
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    model.put_weight(name, torch.full_like(model.weight(name), torch.inf))

    with pytest.raises(InvalidModel, match=r"resblocks\.0\.mlp\.c_proj"):
        calibrate(replace(task, model=model), (1.0,))


def test_watching_shows_each_image_and_caption_once(model: DualEncoder, task: Task) -> None:
    first = {layer.tower: layer for layer in reversed(model.layers) if layer.positions > 1}
    shown = dict.fromkeys(first, 0)

    def count(name: str, values: Tensor) -> None:
        for tower, layer in first.items():
            if layer.name == name:
                shown[tower] += len(values)

    watch_calibration(task, count)

    assert list(shown.values()) == [
        len(task.captions) if tower == "text" else len(task.split(SplitName.CALIBRATION))
        for tower in shown
    ]

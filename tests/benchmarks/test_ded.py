from itertools import product

import pytest

from benchmarks.ded import list_pairs, measure_ded
from bitfront.layers import Block
from bitfront.plan import Option, Plan
from bitfront.precision import Precision
from bitfront.reference.digit_llava import build_llava
from bitfront.spec import DataSpec, QuantizerSpec
from bitfront.vlm import DualEncoder, GenerativeModel, PlanSwitch
from bitfront.vlm.loaders.reference import digit_llava_model
from objectives.data.questions import load_questions
from objectives.profiling.calibration import calibrate
from objectives.profiling.clips import ClipSearch
from tests.support.scene_models import untrained_encoder

CLIPS = (1.0, 0.9)


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return digit_llava_model(build_llava(seed=4))


@pytest.fixture(scope="module")
def search(model: GenerativeModel) -> ClipSearch:
    samples = {"calibration": 8, "tuning": 1, "selection": 1, "test": 1}
    data = DataSpec.model_validate({"source": "reference", "samples": samples})
    task = load_questions(data, model)
    switch = PlanSwitch(model, QuantizerSpec(), calibrate(task, CLIPS))
    return ClipSearch(task, switch, CLIPS)


def test_pairs_follow_the_way_through_a_generative_model(model: GenerativeModel) -> None:
    pairs = list(list_pairs(model.layers))

    steps = [before.layers for before, _ in pairs] + [pairs[-1][1].layers]
    assert [name for step in steps for name in step] == [layer.name for layer in model.layers]
    assert {len(step) for step in steps} == {1, 2, 3}


def test_a_text_tower_does_not_follow_the_vision_tower() -> None:
    encoder: DualEncoder = untrained_encoder()
    towers = {layer.name: layer.tower for layer in encoder.layers}

    for before, after in list_pairs(encoder.layers):
        assert towers[before.layers[0]] is towers[after.layers[0]]


def test_ded_is_the_gain_over_trying_one_layer_after_the_other(
    model: GenerativeModel, search: ClipSearch
) -> None:
    found = measure_ded(search, model.layers[:8], Precision(4, 4))

    assert all(ded.difference >= 0 for ded in found)
    first = found[0]
    names = (first.before, *(x.name for x in model.layers if x.source == first.after))
    pair = Block("pair", model.layers[0].tower, names)
    errors = {
        clips: search.error(
            pair, Option(tuple(Precision(4, 4, 0, clip) for clip in clips)), Plan(())
        )
        for clips in product(CLIPS, repeat=len(names))
    }
    alone = Block("alone", pair.tower, names[:1])
    own = {c: search.error(alone, Option((Precision(4, 4, 0, c),)), Plan(())) for c in CLIPS}
    greedy = min(CLIPS, key=own.__getitem__)
    assert first.joint == pytest.approx(min(errors.values()), rel=1e-9)
    best_after = min(error for clips, error in errors.items() if clips[0] == greedy)
    assert first.sequential == pytest.approx(best_after, rel=1e-9)

from collections.abc import Sequence
from itertools import product

import pytest

from bitfront.layers import Block, Tower
from bitfront.plan import Option, Plan
from bitfront.precision import Precision
from bitfront.reference.digit_llava import build_llava
from bitfront.spec import DataSpec, QuantizerSpec
from bitfront.vlm import GenerativeModel, PlanSwitch
from bitfront.vlm.loaders.reference import digit_llava_model
from objectives.data.questions import QuestionTask, load_questions
from objectives.profiling.calibration import calibrate
from objectives.profiling.clips import ClipSearch, walk

CLIPS = (1.0, 0.97, 0.9)
DECODER = "model.language_model.layers.1"
VISION = "model.vision_tower.encoder.layers.0"


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return digit_llava_model(build_llava(seed=3))


@pytest.fixture(scope="module")
def task(model: GenerativeModel) -> QuestionTask:
    samples = {"calibration": 12, "tuning": 1, "selection": 1, "test": 1}
    spec = DataSpec.model_validate({"source": "reference", "samples": samples, "batch_size": 8})
    return load_questions(spec, model)


@pytest.fixture(scope="module")
def search(model: GenerativeModel, task: QuestionTask) -> ClipSearch:
    quantizer = QuantizerSpec(scale_search=False)
    switch = PlanSwitch(model, quantizer, calibrate(task, CLIPS))
    return ClipSearch(task, switch, CLIPS)


def block(*names: str, tower: Tower = Tower.LANGUAGE) -> Block:
    return Block(names[0], tower, names)


BLOCKS = {
    "one input": block(*(f"{DECODER}.self_attn.{name}_proj.weight" for name in "qkv")),
    "one after another": block(
        f"{VISION}.self_attn.out_proj.weight",
        f"{VISION}.mlp.fc1.weight",
        f"{VISION}.mlp.fc2.weight",
        tower=Tower.VISION,
    ),
    "one, then two": block(
        f"{DECODER}.self_attn.o_proj.weight",
        f"{DECODER}.mlp.gate_proj.weight",
        f"{DECODER}.mlp.up_proj.weight",
    ),
    "two, then one": block(
        f"{DECODER}.mlp.gate_proj.weight",
        f"{DECODER}.mlp.up_proj.weight",
        f"{DECODER}.mlp.down_proj.weight",
    ),
    "across towers": block("model.multi_modal_projector.linear_1.weight", tower=Tower.PROJECTOR),
    "tied": block("model.language_model.embed_tokens.weight"),
}
RUNS = {
    "one input": 3,
    "one after another": 27,
    "one, then two": 9,
    "two, then one": 27,
    "across towers": 3,
    "tied": 3,
}


def everything(layers: Sequence[str]) -> list[Option]:
    """Every joint choice of clips at 4 bits."""
    return [
        Option(tuple(Precision(4, 4, 0, clip) for clip in clips))
        for clips in product(CLIPS, repeat=len(layers))
    ]


def prefix(model: GenerativeModel) -> Plan:
    return Plan.uniform([layer.name for layer in model.layers], Precision(4, 6, 0, 0.97))


@pytest.mark.parametrize("shape", BLOCKS)
def test_the_joint_search_finds_what_trying_everything_finds(
    shape: str, model: GenerativeModel, search: ClipSearch
) -> None:
    searched, after = BLOCKS[shape], prefix(model)
    options = everything(searched.layers)

    found = search.joint(searched, options[0], after)

    errors = [search.error(searched, option, after) for option in options]
    assert found.error == pytest.approx(min(errors), rel=1e-9)
    assert search.error(searched, found.option, after) == pytest.approx(found.error, rel=1e-9)
    assert found.evaluations == RUNS[shape]


@pytest.mark.parametrize("shape", BLOCKS)
def test_searching_jointly_is_never_worse_than_layer_by_layer(
    shape: str, model: GenerativeModel, search: ClipSearch
) -> None:
    option = everything(BLOCKS[shape].layers)[0]

    joint = search.joint(BLOCKS[shape], option, prefix(model))
    sequential = search.sequential(BLOCKS[shape], option, prefix(model))

    assert joint.error <= sequential.error
    assert sequential.evaluations <= joint.evaluations


def test_inputs_that_are_not_quantized_are_not_clipped(
    model: GenerativeModel, search: ClipSearch
) -> None:
    precisions = (Precision(3, 4), Precision(4, 16), Precision(16, 16))

    found = search.joint(BLOCKS["one after another"], Option(precisions), prefix(model))

    assert [precision.clip for precision in found.option.precisions[1:]] == [1.0, 1.0]
    assert found.evaluations == len(CLIPS)


def test_the_inputs_of_a_block_come_from_the_prefix(
    model: GenerativeModel, search: ClipSearch
) -> None:
    searched = BLOCKS["two, then one"]
    option = everything(searched.layers)[0]
    coarse = Plan.uniform([layer.name for layer in model.layers], Precision(2, 4))

    after_full = search.error(searched, option, Plan(()))
    after_coarse = search.error(searched, option, coarse)

    assert after_coarse > after_full


def test_a_walk_takes_each_choice_along(model: GenerativeModel, search: ClipSearch) -> None:
    blocks = [block(layer.name, tower=layer.tower) for layer in model.layers[:5]]
    options = {block.name: Option((Precision(4, 4),)) for block in blocks}

    chosen = walk(search, blocks, options)

    before: dict[str, Precision] = {}
    for searched in blocks:
        again = search.joint(searched, options[searched.name], Plan.of(before))
        assert chosen[searched.name] == again
        before[searched.name] = again.option.precisions[0]
    assert len({precision.clip for precision in before.values()}) > 1


def test_nothing_after_the_block_runs(model: GenerativeModel, search: ClipSearch) -> None:
    searched = BLOCKS["one after another"]
    ran: list[str] = []
    with model.watch_inputs(lambda layer, _: ran.append(layer)):
        search.error(searched, everything(searched.layers)[-1], prefix(model))

    names = [layer.name for layer in model.layers]
    assert max(names.index(layer) for layer in ran) == names.index(searched.layers[-1])


def test_the_model_is_left_in_full_precision(model: GenerativeModel, search: ClipSearch) -> None:
    search.joint(BLOCKS["tied"], Option((Precision(2, 4),)), prefix(model))

    tied = model.module.get_parameter("model.language_model.embed_tokens.weight")
    assert tied.equal(model.weight("model.language_model.embed_tokens.weight"))

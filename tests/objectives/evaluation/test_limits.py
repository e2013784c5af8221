"""What a mixture of experts cannot be searched with, and what holds of experts without tokens."""

from pathlib import Path

import pytest

from bitfront.errors import SpecError
from bitfront.quant.inputs import InputRange
from bitfront.spec import JobSpec
from bitfront.vlm import LayeredModel, load_model
from objectives.evaluation.limits import refuse_limits, with_unreached_experts
from tests.support.families import SMALL_MODELS


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> LayeredModel:
    folder: Path = tmp_path_factory.mktemp("model")
    small = next(small for small in SMALL_MODELS if small.name == "Qwen3-VL-MoE")
    small.save(folder)
    return load_model(small.spec(folder))


def job(**sections: object) -> JobSpec:
    content = {
        "study": "mixture",
        "model": {"source": "transformers", "name": "a mixture"},
        "data": {"source": "questions", "path": "questions.jsonl"},
        **sections,
    }
    return JobSpec.model_validate(content)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"profile": {"measure": "gradient"}}, r"^profile\.measure: gradient compares"),
        ({"profile": {"measure": "fisher"}}, r"^profile\.measure: fisher compares"),
        ({"space": {"clips": [0.99, 1.0]}}, r"^space\.clips: .*write one clip$"),
        ({"space": {"recovery": {}}}, r"^space\.p4q "),
        ({"profile": {"vision": {}}}, r"^profile\.vision "),
    ],
)
def test_what_is_not_known_of_a_mixture_is_refused(
    mixture: LayeredModel, sections: dict[str, object], reason: str
) -> None:
    with pytest.raises(SpecError, match=reason):
        refuse_limits(job(**sections), mixture)


def test_a_plain_search_of_a_mixture_is_not_refused(mixture: LayeredModel) -> None:
    refuse_limits(job(space={"clips": [0.99]}), mixture)


def test_an_expert_without_tokens_has_the_range_of_its_siblings(mixture: LayeredModel) -> None:
    experts = [layer.name for layer in mixture.layers if ".experts." in layer.name]
    lost = experts[0]
    known = {
        layer.name: {1.0: InputRange(-1.0 - place, 2.0 + place)}
        for place, layer in enumerate(mixture.layers)
        if layer.name != lost and mixture.multiplying(layer.name)
    }
    alike = [
        name
        for name in experts
        if name.rpartition(".")[0] == lost.rpartition(".")[0] and name in known
    ]

    found, notes = with_unreached_experts(mixture, known)

    assert alike
    assert found[lost][1.0].low == min(known[name][1.0].low for name in alike)
    assert found[lost][1.0].high == max(known[name][1.0].high for name in alike)
    assert {name: found[name] for name in known} == known
    assert [lost in note for note in notes] == [True]


def test_ranges_of_every_layer_need_no_note(mixture: LayeredModel) -> None:
    known = {layer.name: {1.0: InputRange(-1.0, 1.0)} for layer in mixture.layers}

    assert with_unreached_experts(mixture, known) == (known, ())

import math
from dataclasses import replace

import pytest
from pydantic import ValidationError

from bitfront.errors import SpecError
from bitfront.plan import Configuration, Distillation, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import RecoverySpace

PLAN = Plan.of({"a": Precision(4, 8)})


def test_a_configuration_from_before_the_learning_rate_could_be_set_keeps_its_digest() -> None:
    digest = "decd9d4d6dd0ba9e28b323ebc5252efeca54d6e75f654a09e44fc6d6463606e4"

    assert Configuration(PLAN, Recovery()).digest == digest
    assert Configuration(PLAN, Recovery(learning_rate_multiplier=1)).digest == digest


def test_another_learning_rate_is_another_configuration() -> None:
    configuration = Configuration(PLAN, Recovery(learning_rate_multiplier=0.5))

    assert configuration.digest != Configuration(PLAN, Recovery()).digest
    assert Configuration.from_dict(configuration.to_dict()) == configuration


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", None])
def test_a_learning_rate_is_multiplied_with_a_positive_number(value: float) -> None:
    with pytest.raises(SpecError, match="learning_rate_multiplier"):
        Recovery(learning_rate_multiplier=value)


@pytest.mark.parametrize("until", [None, 3])
def test_a_distilled_plan_is_another_configuration_and_comes_back_from_its_json(
    until: int | None,
) -> None:
    distil = Distillation(steps=5, share=0.5, codes=True, until=until)
    configuration = Configuration(replace(PLAN, distil=distil), Recovery())

    assert Configuration.from_dict(configuration.to_dict()) == configuration
    assert configuration.digest != Configuration(PLAN, Recovery()).digest
    assert configuration.plan.digest != PLAN.digest
    assert configuration.plan.rounded == PLAN
    assert "distil" not in Configuration(PLAN).to_dict()


def test_a_part_of_a_distilled_plan_is_all_of_it() -> None:
    plan = replace(Plan.of({"a": Precision(4, 8), "b": Precision(2, 8)}), distil=Distillation())

    assert plan.part(["a"]) == plan
    assert len(plan.rounded.part(["a"])) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("steps", value) for value in (0, -1, 1.5, True, "5", 2**31)),
        *(("until", value) for value in (0, 101, 1.5, True)),
        *(("share", value) for value in (0, -0.1, 1.1, math.nan, "1", True)),
        *(("learning_rate_multiplier", value) for value in (0, -1, math.nan, math.inf, "1", None)),
        *(("codes", value) for value in (0, 1, "yes", None)),
        ("epochs", 3),
    ],
)
def test_a_distillation_that_makes_no_sense_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(
        SpecError,
        match="other settings" if name == "epochs" else "steps|until" if name == "until" else name,
    ):
        Distillation.from_dict({name: value})


def test_a_recovery_that_names_distil_alone_has_no_p4q() -> None:
    alone = RecoverySpace.model_validate({"distil": {}})
    both = RecoverySpace.model_validate({"distil": {"steps": [40]}, "reduction": [2]})

    assert not alone.has_p4q
    assert both.has_p4q
    for space in (alone, both, RecoverySpace()):
        assert RecoverySpace.model_validate(space.model_dump(mode="json")) == space
    assert RecoverySpace().distil is None


@pytest.mark.parametrize(
    "content",
    [
        {"distil": {"steps": []}},
        {"distil": {"share": [0]}},
        {"distil": {"epochs": [1]}},
        {"distil": None, "context_length": [0], "reduction": [0]},
    ],
)
def test_a_recovery_that_can_train_nothing_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RecoverySpace.model_validate(content)

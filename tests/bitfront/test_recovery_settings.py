import math

import pytest

from bitfront.errors import SpecError
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision

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

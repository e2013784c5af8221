"""The shapes that signatures name are checked in tests, however often a function was called."""

import pytest
import torch
from jaxtyping import TypeCheckError

from bitfront.quant.grid import covering_range
from tests.support.shapes import CHECKS_OF_EQUAL_CALLS


def test_a_shape_that_contradicts_the_signature_is_refused_after_any_number_of_right_calls() -> (
    None
):
    low, high = torch.zeros(3), torch.ones(3)
    for _ in range(2 * CHECKS_OF_EQUAL_CALLS):
        covering_range(low, high, bits=4)
    with pytest.raises(TypeCheckError):
        covering_range(low, high[:2], bits=4)
    with pytest.raises(TypeCheckError):
        covering_range(low.double(), high.int(), bits=4)

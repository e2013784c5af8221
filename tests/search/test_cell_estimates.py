import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.plan import Option
from bitfront.precision import Precision
from bitfront.profile import Cell
from search.cell_estimates import corrected, most_used, place_of

BITS = (2, 3, 4, 8)
BLOCKS = ("a", "b", "c")
errors = st.floats(1e-6, 10.0)


def cell(block: str, bits: int, error: float) -> Cell:
    return Cell(block, Option((Precision(bits),)), bits, 0.0, error, bits, is_estimate=True)


@given(
    st.lists(errors, min_size=12, max_size=12),
    st.dictionaries(st.integers(0, 11), errors),
)
def test_scores_are_corrected_by_what_was_measured(
    scores: list[float], known: dict[int, float]
) -> None:
    scored = [
        cell(block, bits, score)
        for (block, bits), score in zip(
            ((block, bits) for block in BLOCKS for bits in BITS), scores, strict=True
        )
    ]
    measured = {
        place_of(scored[n]): replace(scored[n], error=error, is_estimate=False)
        for n, error in known.items()
    }

    found = corrected(scored, measured)

    ratios = {n: math.log(error / scores[n]) for n, error in known.items()}
    mean = sum(ratios.values()) / len(ratios) if ratios else 0.0
    for n, (before, after) in enumerate(zip(scored, found, strict=True)):
        own = [ratio for m, ratio in ratios.items() if m // 4 == n // 4]
        expected = known.get(n, scores[n] * math.exp((sum(own) + mean) / (len(own) + 1)))
        assert after.error == pytest.approx(expected)
        assert after.is_estimate == (n not in known)
        assert replace(after, error=before.error, is_estimate=True) == before


def test_a_score_or_a_measurement_of_zero_has_no_ratio() -> None:
    scored = [cell("a", 2, 0.0), cell("a", 3, 0.4), cell("a", 4, 0.1)]
    measured = {
        place_of(scored[0]): replace(scored[0], error=0.3, is_estimate=False),
        place_of(scored[1]): replace(scored[1], error=0.0, is_estimate=False),
    }

    assert [found.error for found in corrected(scored, measured)] == [0.3, 0.0, 0.1]


def test_estimated_cells_are_counted_over_plans() -> None:
    often, once = cell("a", 2, 0.1), cell("b", 3, 0.2)
    known = replace(cell("b", 4, 0.3), is_estimate=False)

    assert most_used([{"a": often, "b": known}, {"a": often, "b": once}]) == [often, once]

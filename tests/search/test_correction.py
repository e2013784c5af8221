"""Whole plans correct cells: against ridge regression, and where the truth is known."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy.stats import spearmanr

from bitfront.plan import Option
from search import correction
from search.correction import LEAST_PLANS, Place, correct
from search.knapsack_items import Floats

OPTIONS = [Option.parse(text) for text in ("w2a16", "w3a16", "w4a16", "w8a16")]
BLOCKS = [f"b{n}" for n in range(6)]
SIZES = dict(zip(OPTIONS, (2, 3, 4, 8), strict=True))


def drawn(rng: np.random.Generator) -> dict[Place, float]:
    """Cells that quarter with every bit."""
    heights = rng.lognormal(0, 1, len(BLOCKS))
    return {
        (block, option): float(height * 4.0 ** -SIZES[option])
        for block, height in zip(BLOCKS, heights, strict=True)
        for option in OPTIONS
    }


def plans_of(rng: np.random.Generator, count: int) -> list[list[Place]]:
    return [[(b, OPTIONS[int(rng.integers(len(OPTIONS)))]) for b in BLOCKS] for _ in range(count)]


def test_it_is_ridge_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """The posterior mean minimises squared residuals plus squared factors over their spreads."""
    monkeypatch.setattr(correction, "_SPREADS", (0.5,))
    monkeypatch.setattr(correction, "_REMAINDERS", (0.1,))
    rng = np.random.default_rng(0)
    cells, plans = drawn(rng), plans_of(rng, 12)
    divergences = [sum(cells[p] for p in plan) * rng.uniform(0.8, 1.2) for plan in plans]

    found = correct(cells, plans, divergences)

    assert found is not None
    places = list(cells)
    own = np.array([[cells[p] if p in plan else 0.0 for p in places] for plan in plans])
    measured = np.array(divergences)
    scale = np.median(measured / own.sum(axis=1))
    blocks = np.array([[float(name == b) for b in BLOCKS] for name, _ in places])
    design = np.hstack([own @ blocks, own]) * (scale / measured)[:, None]
    residuals = 1 - scale * own.sum(axis=1) / measured
    ridge = np.vstack([design / 0.1, np.eye(design.shape[1]) / 0.5])
    solved, *_ = np.linalg.lstsq(
        ridge, np.concatenate([residuals / 0.1, np.zeros(design.shape[1])]), rcond=None
    )
    factors = 1 + blocks @ solved[: len(BLOCKS)] + solved[len(BLOCKS) :]
    expected = scale * np.array(list(cells.values())) * factors
    assert list(found.errors.values()) == pytest.approx(expected.tolist(), rel=1e-9)
    for left_out in range(3):  # refitted without the plan, with the same scale
        kept = np.arange(len(plans)) != left_out
        ridge = np.vstack([design[kept] / 0.1, np.eye(design.shape[1]) / 0.5])
        wanted = np.concatenate([residuals[kept] / 0.1, np.zeros(design.shape[1])])
        without, *_ = np.linalg.lstsq(ridge, wanted, rcond=None)
        relative = scale * own[left_out].sum() / measured[left_out] + design[left_out] @ without
        assert found.predicted[left_out] == pytest.approx(relative * measured[left_out])


@pytest.mark.parametrize("seed", range(5))
def test_blocks_that_count_for_more_beside_others_are_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = drawn(rng)
    true = dict(zip(BLOCKS, rng.choice([0.2, 1.0, 5.0], len(BLOCKS)), strict=True))

    def divergence(plan: list[Place]) -> float:
        return float(sum(true[place[0]] * cells[place] for place in plan) * rng.normal(1, 0.02))

    plans, fresh = plans_of(rng, 24), plans_of(rng, 200)
    found = correct(cells, plans, [divergence(plan) for plan in plans])

    assert found is not None
    measured = [divergence(plan) for plan in fresh]
    summed = [sum(cells[place] for place in plan) for plan in fresh]
    corrected = [sum(found.errors[place] for place in plan) for plan in fresh]
    before, after = rank(summed, measured), rank(corrected, measured)
    assert after > max(0.98, before)


def rank(first: list[float], second: list[float]) -> float:
    return float(spearmanr(first, second).statistic)


def test_cells_that_add_up_stay_in_their_order() -> None:
    rng = np.random.default_rng(3)
    cells, plans = drawn(rng), plans_of(rng, 24)
    sums = np.array([sum(cells[place] for place in plan) for plan in plans])
    noisy = 3 * sums * rng.normal(1, 0.05, len(plans))

    found = correct(cells, plans, noisy.tolist())

    assert found is not None
    ratios = ratios_of(found.errors, cells)
    assert np.allclose(ratios, 3, rtol=0.2)
    assert found.summed == pytest.approx(sums * np.median(noisy / sums))


def ratios_of(errors: Mapping[Place, float], cells: Mapping[Place, float]) -> Floats:
    return np.array([errors[place] / cells[place] for place in cells])


def test_no_error_becomes_negative() -> None:
    rng = np.random.default_rng(4)
    cells, plans = drawn(rng), plans_of(rng, 40)
    true = dict(zip(BLOCKS, (0.0, 0.0, 0.0, 1.0, 1.0, 30.0), strict=True))
    divergences = [sum(true[p[0]] * cells[p] for p in plan) for plan in plans]

    found = correct(cells, plans, divergences)

    assert found is not None
    assert min(found.errors.values()) > 0


def test_a_block_without_an_error_keeps_none() -> None:
    rng = np.random.default_rng(5)
    cells, plans = drawn(rng), plans_of(rng, 12)
    cells |= {place: 0.0 for place in cells if place[0] == "b0"}

    found = correct(cells, plans, [sum(cells[p] for p in plan) for plan in plans])

    assert found is not None
    assert all(found.errors[place] == 0 for place in cells if place[0] == "b0")


def test_few_plans_and_plans_without_a_divergence_correct_nothing() -> None:
    rng = np.random.default_rng(6)
    cells, plans = drawn(rng), plans_of(rng, LEAST_PLANS)

    assert correct(cells, plans[1:], [1.0] * (LEAST_PLANS - 1)) is None
    assert correct(cells, plans, [0.0, *[1.0] * (LEAST_PLANS - 1)]) is None
    assert correct(cells, plans, [1.0] * LEAST_PLANS) is not None
    assert correct(dict.fromkeys(cells, 0.0), plans, [1.0] * LEAST_PLANS) is None


def test_a_correction_is_better_by_the_plans_that_it_did_not_see() -> None:
    rng = np.random.default_rng(7)
    cells, plans = drawn(rng), plans_of(rng, 24)
    true = dict(zip(BLOCKS, (0.2, 0.2, 1.0, 1.0, 5.0, 5.0), strict=True))
    structured = correct(cells, plans, [sum(true[p[0]] * cells[p] for p in plan) for plan in plans])
    adding_up = correct(cells, plans, [2 * sum(cells[p] for p in plan) for plan in plans])

    assert structured is not None
    assert structured.is_better
    assert adding_up is not None
    assert not adding_up.is_better

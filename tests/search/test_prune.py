"""Pruning is safe: no plan within ε of the optimum is lost, and every removal is proven."""

from dataclasses import replace
from itertools import product
from math import fsum, log10, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfront.errors import InfeasibleBudget
from bitfront.profile import Cell
from search.prune import Proof, budget_axis, prune, verify
from tests.search.test_program import Cells, instances, make_cell

ROUND_OFF = 1e-8  # of errors up to 1e3: what is so close to the threshold may stay


def some_budgets(cells: Cells, count: int) -> list[int]:
    low = sum(min(cell.nbytes for cell in block) for block in cells.values())
    high = sum(max(cell.nbytes for cell in block) for block in cells.values())
    return sorted({int(budget) for budget in np.linspace(low, high, count)})


def all_plans(cells: Cells) -> list[tuple[int, float, tuple[Cell, ...]]]:
    return [
        (sum(cell.nbytes for cell in plan), fsum(cell.error for cell in plan), plan)
        for plan in product(*cells.values())
    ]


@given(instances(), st.sampled_from([0.0, 0.1, 0.5, 2.0]), st.integers(1, 5), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_plan_within_epsilon_of_the_optimum_is_lost_at_any_budget(
    cells: Cells, epsilon: float, count: int, upper_half: bool
) -> None:
    budgets = some_budgets(cells, count)
    budgets = budgets[len(budgets) // 2 :] if upper_half else budgets

    space = prune(cells, budgets, epsilon)

    plans = all_plans(cells)
    for nbytes, error, plan in plans:
        # The optimum only falls as the budget grows: the plan's own size suits it best.
        budget = max(nbytes, budgets[0])
        best = min(e for n, e, _ in plans if n <= budget)
        if budget <= budgets[-1] and error <= (1 + epsilon) * best:
            assert all(cell.option in space.survivors[cell.block] for cell in plan)


@given(instances(), st.sampled_from([0.0, 0.5]))
@settings(max_examples=200, deadline=None)
def test_what_no_such_plan_uses_is_removed_with_a_certificate(cells: Cells, epsilon: float) -> None:
    budgets = some_budgets(cells, 3)

    space = prune(cells, budgets, epsilon)

    assert verify(space, cells)
    plans = all_plans(cells)
    sizes = [nbytes for nbytes, _, _ in plans]
    needed = {
        (cell.block, cell.option)
        for nbytes, error, plan in plans
        for cell in plan
        if error <= (1 + epsilon) * min(e for n, e, _ in plans if n <= nbytes) + ROUND_OFF
    }
    assert {(r.block, r.option) for r in space.removed} >= {
        (cell.block, cell.option) for block in cells.values() for cell in block
    } - needed
    for removal in space.removed:
        assert removal.bounds[0].from_nbytes == min(sizes)
        assert removal.bounds[-1].to_nbytes == budgets[-1]
        for bound in removal.bounds:
            errors = [
                error
                for nbytes, error, plan in plans
                if nbytes <= bound.to_nbytes
                and any(c.block == removal.block and c.option == removal.option for c in plan)
            ]
            if bound.proof is Proof.SIZE:
                assert not errors
            else:
                assert bound.error is not None
                assert min(errors, default=np.inf) >= bound.error * (1 - 1e-9) > bound.threshold
    assert space.log10_before == pytest.approx(log10(prod(map(len, cells.values()))))
    assert space.log10_after == pytest.approx(log10(prod(map(len, space.survivors.values()))))


def test_a_plan_between_two_budgets_keeps_its_options() -> None:
    cells = {
        "b": [make_cell("b", 0, 0, 9.0), make_cell("b", 1, 4, 3.0), make_cell("b", 2, 9, 1.0)],
    }

    space = prune(cells, [0, 10], 0.5)

    assert len(space.survivors["b"]) == 3


def test_a_clearly_useless_option_is_removed() -> None:
    cells = {
        "b": [make_cell("b", 0, 10, 1.0), make_cell("b", 1, 11, 50.0), make_cell("b", 2, 20, 0.1)],
        "c": [make_cell("c", 0, 10, 1.0), make_cell("c", 1, 20, 0.1)],
    }

    space = prune(cells, [20, 30, 40], 0.5)

    assert [(removal.block, removal.option) for removal in space.removed] == [
        ("b", cells["b"][1].option)
    ]


def test_a_certificate_with_a_gap_is_found_out() -> None:
    cells = {
        "b": [make_cell("b", 0, 10, 1.0), make_cell("b", 1, 11, 50.0)],
        "c": [make_cell("c", 0, 10, 1.0), make_cell("c", 1, 90, 0.5)],
    }
    space = prune(cells, [25, 100], 0.5)
    (removal,) = space.removed

    gap = replace(space, removed=(replace(removal, bounds=removal.bounds[1:]),))

    assert verify(space, cells)
    assert not verify(gap, cells)


def test_a_false_certificate_is_found_out() -> None:
    cells = {
        "b": [make_cell("b", 0, 10, 1.0), make_cell("b", 1, 11, 50.0)],
        "c": [make_cell("c", 0, 10, 1.0)],
    }
    space = prune(cells, [25], 0.5)
    assert verify(space, cells)

    cheaper = {**cells, "b": [cells["b"][0], make_cell("b", 1, 11, 1.2)]}

    assert not verify(space, cheaper)


def test_the_budget_axis_runs_from_the_smallest_plan_to_the_best() -> None:
    cells = {
        "b": [make_cell("b", 0, 10, 2.0), make_cell("b", 1, 40, 0.0), make_cell("b", 2, 90, 0.0)]
    }

    assert budget_axis(cells, 4) == [10, 20, 30, 40]
    assert budget_axis(cells, 3, 20, 30) == [20, 25, 30]
    with pytest.raises(InfeasibleBudget):
        budget_axis(cells, 3, None, 9)

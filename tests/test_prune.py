"""Pruning is safe: no plan within ε of the optimum is lost, and every removal is proven."""

from itertools import product
from math import fsum, log10, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfront.errors import InfeasibleBudget
from search.prune import Proof, budget_axis, prune, verify
from tests.test_program import Cells, instances, make_cell


def some_budgets(cells: Cells, count: int) -> list[int]:
    low = sum(min(cell.nbytes for cell in block) for block in cells.values())
    high = sum(max(cell.nbytes for cell in block) for block in cells.values())
    return sorted({int(budget) for budget in np.linspace(low, high, count)})


@given(instances(), st.sampled_from([0.0, 0.1, 0.5, 2.0]), st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_no_plan_within_epsilon_of_the_optimum_is_lost(
    cells: Cells, epsilon: float, count: int
) -> None:
    budgets = some_budgets(cells, count)

    space = prune(cells, budgets, epsilon)

    for budget in budgets:
        fitting = [
            plan for plan in product(*cells.values()) if sum(c.nbytes for c in plan) <= budget
        ]
        best = min(fsum(cell.error for cell in plan) for plan in fitting)
        for plan in fitting:
            if fsum(cell.error for cell in plan) <= (1 + epsilon) * best:
                assert all(cell.option in space.survivors[cell.block] for cell in plan)


@given(instances(), st.sampled_from([0.0, 0.5]))
@settings(deadline=None)
def test_what_no_such_plan_uses_is_removed_with_a_certificate(cells: Cells, epsilon: float) -> None:
    budgets = some_budgets(cells, 3)

    space = prune(cells, budgets, epsilon)

    assert verify(space, cells)
    plans = list(product(*cells.values()))
    for removal in space.removed:
        assert [bound.budget for bound in removal.bounds] == budgets
        for bound in removal.bounds:
            errors = [
                fsum(cell.error for cell in plan)
                for plan in plans
                if sum(cell.nbytes for cell in plan) <= bound.budget
                and any(c.block == removal.block and c.option == removal.option for c in plan)
            ]
            if bound.proof is Proof.SIZE:
                assert not errors
            else:
                assert bound.error is not None
                assert min(errors, default=np.inf) >= bound.error * (1 - 1e-9) > bound.threshold
    assert space.log10_before == pytest.approx(log10(prod(map(len, cells.values()))))
    assert space.log10_after == pytest.approx(log10(prod(map(len, space.survivors.values()))))


def test_a_clearly_useless_option_is_removed() -> None:
    cells = {
        "b": [make_cell("b", 0, 10, 1.0), make_cell("b", 1, 11, 50.0), make_cell("b", 2, 20, 0.1)],
        "c": [make_cell("c", 0, 10, 1.0), make_cell("c", 1, 20, 0.1)],
    }

    space = prune(cells, [20, 30, 40], 0.5)

    assert [(removal.block, removal.option) for removal in space.removed] == [
        ("b", cells["b"][1].option)
    ]


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

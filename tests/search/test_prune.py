"""Pruning is safe: no plan within ε of the optimum is lost, and every removal is proven."""

from dataclasses import replace
from itertools import product
from math import fsum, log10, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfront.errors import InfeasibleBudget
from bitfront.profile import Cell, Resource
from search.program import Program
from search.prune import Proof, budget_axis, prune
from search.resources import Limit
from tests.search.test_program import PRECISIONS, Cells, instances, limit, make_cell, units
from tests.support.certificates import verify

Plan = tuple[Cell, ...]
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
@settings(max_examples=300)
def test_no_plan_within_epsilon_of_the_optimum_is_lost_at_any_budget(
    cells: Cells, epsilon: float, count: int, upper_half: bool
) -> None:
    budgets = some_budgets(cells, count)
    budgets = budgets[len(budgets) // 2 :] if upper_half else budgets

    space = prune(Program.of(cells), budgets, epsilon)

    plans = all_plans(cells)
    for nbytes, error, plan in plans:
        # The optimum only falls as the budget grows: the plan's own size suits it best.
        budget = max(nbytes, budgets[0])
        best = min(e for n, e, _ in plans if n <= budget)
        if budget <= budgets[-1] and error <= (1 + epsilon) * best:
            assert all(cell.option in space.survivors[cell.block] for cell in plan)


@given(instances(), st.sampled_from([0.0, 0.5]))
@settings(max_examples=200)
def test_what_no_such_plan_uses_is_removed_with_a_certificate(cells: Cells, epsilon: float) -> None:
    budgets = some_budgets(cells, 3)

    space = prune(Program.of(cells), budgets, epsilon)

    assert verify(space, Program.of(cells))
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
        assert removal.bounds[0].from_budget == min(sizes)
        assert removal.bounds[-1].to_budget == budgets[-1]
        for bound in removal.bounds:
            errors = [
                error
                for nbytes, error, plan in plans
                if nbytes <= bound.to_budget
                and any(c.block == removal.block and c.option == removal.option for c in plan)
            ]
            if bound.proof is Proof.FLOOR:
                assert not errors
            else:
                assert bound.error is not None
                assert min(errors, default=np.inf) >= bound.error * (1 - 1e-9) > bound.threshold
    assert space.log10_before == pytest.approx(log10(prod(map(len, cells.values()))))
    assert space.log10_after == pytest.approx(log10(prod(map(len, space.survivors.values()))))


@st.composite
def limited_problems(draw: st.DrawFn) -> tuple[Program, list[int], list[tuple[int, float, Plan]]]:
    """A program with limits that some plan holds, budgets, and all plans within the limits."""
    cells = draw(instances())
    plans = list(product(*cells.values()))
    resource, *others = draw(st.permutations(list(Resource)))
    # The limits are those of some plan, so that they can be held together.
    held = draw(st.sampled_from(plans))
    limits = [
        limit(other, units(held, other) + draw(st.integers(0, 1)))
        for other in others[: draw(st.integers(1, 3))]
    ]
    within = [
        (units(plan, resource), fsum(cell.error for cell in plan), plan)
        for plan in plans
        if all(units(plan, one.resource) <= one.most for one in limits)
    ]
    program = Program.of(cells, resource, limits)
    costs = [cost for cost, _, _ in within]
    low, high = min(costs), draw(st.sampled_from(costs))
    budgets = sorted({int(budget) for budget in np.linspace(low, high, draw(st.integers(1, 4)))})
    return program, budgets, within


@given(limited_problems(), st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=150)
def test_no_plan_within_epsilon_and_all_limits_is_lost(
    problem: tuple[Program, list[int], list[tuple[int, float, Plan]]], epsilon: float
) -> None:
    program, budgets, plans = problem

    space = prune(program, budgets, epsilon)

    assert verify(space, program)
    for cost, error, plan in plans:
        budget = max(cost, budgets[0])
        best = min(e for c, e, _ in plans if c <= budget)
        if budget <= budgets[-1] and error <= (1 + epsilon) * best:
            assert all(cell.option in space.survivors[cell.block] for cell in plan)


@given(limited_problems(), st.sampled_from([0.0, 0.5]))
@settings(max_examples=100)
def test_what_no_such_plan_within_the_limits_uses_is_removed(
    problem: tuple[Program, list[int], list[tuple[int, float, Plan]]], epsilon: float
) -> None:
    program, budgets, plans = problem

    space = prune(program, budgets, epsilon)

    needed = {
        (cell.block, cell.option)
        for cost, error, plan in plans
        for cell in plan
        if max(cost, budgets[0]) <= budgets[-1]
        and error
        <= (1 + epsilon) * min(e for c, e, _ in plans if c <= max(cost, budgets[0])) + 1e-6
    }
    every = {(cell.block, cell.option) for cell in program.items.cells}
    assert {(r.block, r.option) for r in space.removed} >= every - needed
    for removal in space.removed:
        for bound in removal.bounds:
            errors = [
                error
                for cost, error, plan in plans
                if cost <= bound.to_budget
                and any((c.block, c.option) == (removal.block, removal.option) for c in plan)
            ]
            if bound.error is None:
                assert not errors
            else:
                assert min(errors, default=np.inf) >= bound.error * (1 - 1e-9) > bound.threshold


def test_an_option_beyond_a_limit_is_removed_and_its_certificate_names_the_limit() -> None:
    cells = {
        "b": [make_cell("b", 0, 10, 1.0, 5), make_cell("b", 1, 11, 0.5, 50)],
        "c": [make_cell("c", 0, 10, 1.0, 5), make_cell("c", 1, 20, 0.1, 6)],
    }
    held = [Limit("max_bit_operations", Resource.BIT_OPERATIONS, 40)]
    program = Program.of(cells, limits=held)

    space = prune(program, [20, 31], 100.0)

    (removal,) = space.removed
    assert removal.option == cells["b"][1].option
    assert [(b.proof, b.exceeds) for b in removal.bounds] == [(Proof.FLOOR, "max_bit_operations")]
    assert verify(space, program)
    assert not verify(space, Program.of(cells))
    wider = Program.of(cells, limits=[replace(held[0], value=60)])
    assert not verify(replace(space, limits=("max_bit_operations 60",)), wider)


def test_limits_that_bind_on_a_real_profile_remove_options_and_every_removal_is_proven() -> None:
    rng = np.random.default_rng(0)
    cells = {}
    for number in range(6):
        name, size, positions = f"b{number}", int(rng.lognormal(10, 1)), int(rng.integers(1, 50))
        sensitivity = rng.lognormal(0, 1)
        cells[name] = [
            make_cell(
                name,
                i,
                size * precision.weight_bits,
                sensitivity * (4.0**-precision.weight_bits + 4.0**-precision.activation_bits),
                float(size * positions * precision.weight_bits * precision.activation_bits),
            )
            for i, precision in enumerate(PRECISIONS)
        ]
    least = sum(min(cell.bit_operations for cell in block) for block in cells.values())
    held = [Limit("max_bit_operations", Resource.BIT_OPERATIONS, 1.5 * least)]
    program = Program.of(cells, limits=held)

    space = prune(program, budget_axis(program, 4), 0.1)

    bounds = [bound for removal in space.removed for bound in removal.bounds]
    assert any(bound.penalties for bound in bounds)
    assert verify(space, program)


def test_a_plan_between_two_budgets_keeps_its_options() -> None:
    cells = {
        "b": [make_cell("b", 0, 0, 9.0), make_cell("b", 1, 4, 3.0), make_cell("b", 2, 9, 1.0)],
    }

    space = prune(Program.of(cells), [0, 10], 0.5)

    assert len(space.survivors["b"]) == 3


def test_a_clearly_useless_option_is_removed() -> None:
    cells = {
        "b": [make_cell("b", 0, 10, 1.0), make_cell("b", 1, 11, 50.0), make_cell("b", 2, 20, 0.1)],
        "c": [make_cell("c", 0, 10, 1.0), make_cell("c", 1, 20, 0.1)],
    }

    space = prune(Program.of(cells), [20, 30, 40], 0.5)

    assert [(removal.block, removal.option) for removal in space.removed] == [
        ("b", cells["b"][1].option)
    ]


def test_a_certificate_with_a_gap_is_found_out() -> None:
    cells = {
        "b": [make_cell("b", 0, 10, 1.0), make_cell("b", 1, 11, 50.0)],
        "c": [make_cell("c", 0, 10, 1.0), make_cell("c", 1, 90, 0.5)],
    }
    space = prune(Program.of(cells), [25, 100], 0.5)
    (removal,) = space.removed

    gap = replace(space, removed=(replace(removal, bounds=removal.bounds[1:]),))

    assert verify(space, Program.of(cells))
    assert not verify(gap, Program.of(cells))


def test_a_false_certificate_is_found_out() -> None:
    cells = {
        "b": [make_cell("b", 0, 10, 1.0), make_cell("b", 1, 11, 50.0)],
        "c": [make_cell("c", 0, 10, 1.0)],
    }
    space = prune(Program.of(cells), [25], 0.5)
    assert verify(space, Program.of(cells))

    cheaper = {**cells, "b": [cells["b"][0], make_cell("b", 1, 11, 1.2)]}

    assert not verify(space, Program.of(cheaper))


def test_the_budget_axis_runs_from_the_smallest_plan_to_the_best() -> None:
    cells = {
        "b": [make_cell("b", 0, 10, 2.0), make_cell("b", 1, 40, 0.0), make_cell("b", 2, 90, 0.0)]
    }

    assert budget_axis(Program.of(cells), 4) == [10, 20, 30, 40]
    assert budget_axis(Program.of(cells), 3, 20, 30) == [20, 25, 30]
    with pytest.raises(InfeasibleBudget):
        budget_axis(Program.of(cells), 3, None, 9)

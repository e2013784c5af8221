"""The greedy walk against its definition in plain Python, and against the exact program."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings

from bitfront.errors import InfeasibleBudget
from bitfront.profile import Cell, Resource
from search.greedy import Greedy
from search.program import Program
from search.resources import Limit, whole_amount
from tests.search.test_program import Cells, instances, limit, make_cell, problems, refusal


def walk(cells: Cells, limits: Mapping[Resource, int]) -> dict[str, Cell] | None:
    """The definition, with exact fractions; None where the walk ends above a limit."""

    def least_error(own: Sequence[Cell]) -> Cell:
        return min(own, key=lambda cell: (cell.error, whole_amount(cell, budgeted)))

    budgeted = next(iter(limits))
    plan = {name: least_error(own) for name, own in cells.items()}
    while True:
        exceeded = [
            resource
            for resource, most in limits.items()
            if sum(whole_amount(cell, resource) for cell in plan.values()) > most
        ]
        if not exceeded:
            return plan
        steps = []
        for number, (name, own) in enumerate(cells.items()):
            now = plan[name]
            narrower = []
            for cell in own:
                taken = {r: whole_amount(now, r) - whole_amount(cell, r) for r in limits}
                saved = sum(Fraction(taken[r], max(limits[r], 1)) for r in exceeded)
                if saved > 0 and min(taken.values()) >= 0:
                    narrower.append((saved, Fraction(cell.error), cell))
            if narrower:
                saved, error, cell = min(narrower, key=lambda one: one[:2])
                steps.append(((error - Fraction(now.error)) / saved, number, cell))
        if not steps:
            return None
        _, _, cell = min(steps, key=lambda step: step[:2])
        plan[cell.block] = cell


def steps_down(block: str, *errors: float) -> list[Cell]:
    """Options of 8, 4, 3 and 2 units, as far as there are errors."""
    sizes = (8, 4, 3, 2)
    return [make_cell(block, n, sizes[n], error) for n, error in enumerate(errors)]


def test_the_block_that_loses_least_for_what_it_saves_moves_first() -> None:
    cells = {"a": steps_down("a", 0, 2, 3), "b": steps_down("b", 0, 1, 9)}
    greedy = Greedy(Program.of(cells))

    sizes = [
        [cell.nbytes for cell in greedy.solve(budget).choice.values()]
        for budget in (16, 15, 11, 7, 6)
    ]

    assert sizes == [[8, 8], [8, 4], [4, 4], [3, 4], [3, 3]]


def test_of_equal_steps_the_first_block_moves() -> None:
    cells = {"a": steps_down("a", 0, 1), "b": steps_down("b", 0, 1)}

    solution = Greedy(Program.of(cells)).solve(12)

    assert [cell.nbytes for cell in solution.choice.values()] == [4, 8]
    assert (solution.error, solution.cost, solution.proven) == (1, 12, False)


def test_a_walk_sees_one_step_ahead_only_and_the_program_all() -> None:
    """Block a loses much with its first step and nothing with its second."""
    cells = {"a": steps_down("a", 0, 5, 5, 5), "b": steps_down("b", 0, 4, 6, 8)}
    program = Program.of(cells)

    assert Greedy(program).solve(10).error == 9
    assert program.solve(10).error == 5


@given(problems())
@settings(max_examples=150, deadline=None)
def test_any_mix_of_limits_has_the_plan_of_the_definition(
    problem: tuple[Cells, Resource, int, list[Limit]],
) -> None:
    cells, resource, budget, limits = problem
    program = Program.of(cells, resource, limits)
    greedy = Greedy(program)
    if (refused := refusal(program, budget)) is not None:
        with pytest.raises(InfeasibleBudget) as raised:
            greedy.solve(budget)
        assert str(raised.value) == str(refused)
        return

    solution = greedy.solve(budget)

    assert solution.error >= program.solve(budget).error * (1 - 1e-9)
    most = {resource: budget}
    for held in limits:
        most[held.resource] = min(held.most, most.get(held.resource, held.most))
    for one, units in most.items():
        assert sum(whole_amount(cell, one) for cell in solution.choice.values()) <= units
    expected = walk(cells, most)
    if expected is None:
        assert solution == program.solve(budget)
        return
    # Fractions tell steps apart that are equal in floating point: then either is right.
    if solution.choice != expected:
        total = sum(cell.error for cell in expected.values())
        assert solution.error == pytest.approx(total, rel=1e-6, abs=1e-9)


@given(instances())
@settings(max_examples=100)
def test_a_smaller_budget_never_has_a_smaller_error_or_a_larger_plan(cells: Cells) -> None:
    greedy = Greedy(Program.of(cells))
    sizes = [sum(cell.nbytes for cell in own) for own in cells.values()]
    budgets = range(greedy.program.floor, sum(sizes) + 1, max(1, sum(sizes) // 7))

    front = [greedy.solve(budget) for budget in budgets]

    assert [solution.cost for solution in front] == sorted(solution.cost for solution in front)


def test_where_saving_one_thing_takes_more_of_another_the_programs_plan_stands_in() -> None:
    cells = {
        "a": [make_cell("a", 0, 8, 0.0, operations=1), make_cell("a", 1, 4, 1.0, operations=2)]
    }
    program = Program.of(cells, limits=[limit(Resource.BIT_OPERATIONS, 2)])

    assert Greedy(program).solve(4) == program.solve(4)

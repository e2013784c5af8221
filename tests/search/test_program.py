"""The integer program against brute force, and against HiGHS where that takes over."""

from collections.abc import Mapping
from itertools import product
from math import fsum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfront.errors import InfeasibleBudget, InvalidMetric, SpecError
from bitfront.plan import Option
from bitfront.precision import Precision
from bitfront.profile import Cell
from search.knapsack_items import KnapsackItems
from search.program import Program, _solve_with_highs

Cells = Mapping[str, list[Cell]]
PRECISIONS = [Precision(w, a) for w in (2, 3, 4, 5, 6, 8) for a in (4, 6, 8)]


def make_cell(block: str, index: int, nbytes: int, error: float, operations: float = 0) -> Cell:
    return Cell(block, Option((PRECISIONS[index],)), nbytes, operations, error)


@st.composite
def instances(draw: st.DrawFn) -> Cells:
    """Few sizes and errors, so that ties, zero errors and dominated cells are frequent."""
    large = draw(st.booleans())
    sizes = st.integers(0, 10**9) if large else st.integers(0, 6)
    errors = st.floats(0, 1e3) | st.sampled_from([0.0, 1e-12, 0.5, 0.25]) | st.integers(0, 4)
    cells = {}
    for number in range(draw(st.integers(1, 4))):
        name = f"b{number}"
        count = draw(st.integers(1, 5))
        cells[name] = [
            make_cell(name, i, draw(sizes), float(draw(errors)), float(draw(st.integers(0, 6))))
            for i in range(count)
        ]
    return cells


def all_plans(cells: Cells) -> list[tuple[int, float, float]]:
    return [
        (
            sum(c.nbytes for c in plan),
            fsum(c.error for c in plan),
            sum(c.bit_operations for c in plan),
        )
        for plan in product(*cells.values())
    ]


@given(instances(), st.floats(0, 1.1))
@settings(max_examples=300, deadline=None)
def test_the_solution_is_the_brute_force_optimum(cells: Cells, share: float) -> None:
    plans = all_plans(cells)
    sizes = [nbytes for nbytes, _, _ in plans]
    budget = int(min(sizes) + share * (max(sizes) - min(sizes)))

    solution = Program(cells).solve(budget)

    best = min((error, nbytes) for nbytes, error, _ in plans if nbytes <= budget)
    assert solution.error == pytest.approx(best[0], rel=1e-12, abs=1e-15)
    assert solution.nbytes <= budget
    assert solution.nbytes == sum(cell.nbytes for cell in solution.choice.values())
    assert set(solution.choice) == set(cells)


@given(instances(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_two_limits_at_once_are_both_held_at_the_optimum(
    cells: Cells, share: float, other: float
) -> None:
    plans = all_plans(cells)
    budget = int(np.quantile([nbytes for nbytes, _, _ in plans], share))
    limit = float(np.quantile([ops for _, _, ops in plans], other)) + 0.5
    fitting = [e for nbytes, e, ops in plans if nbytes <= budget and ops <= limit]

    if not fitting:
        with pytest.raises(InfeasibleBudget):
            Program(cells).solve(budget, max_bit_operations=limit)
        return
    solution = Program(cells).solve(budget, max_bit_operations=limit)

    assert solution.error == pytest.approx(min(fitting), rel=1e-9, abs=1e-9)
    assert solution.nbytes <= budget
    assert solution.bit_operations <= limit


@pytest.mark.parametrize("seed", range(3))
def test_our_search_and_highs_agree_on_instances_beyond_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = {}
    for number in range(40):
        size = int(rng.lognormal(10, 1))
        sensitivity = rng.lognormal(0, 1)
        cells[f"b{number}"] = [
            make_cell(f"b{number}", i, size * bits, sensitivity * 4.0**-bits)
            for i, bits in enumerate((2, 3, 4, 5, 6, 8))
        ]
    program = Program(cells)
    floor, ceiling = program.relaxation.floor_nbytes, program.relaxation.ceiling_nbytes

    for share in (0.1, 0.37, 0.7):
        budget = int(floor + share * (ceiling - floor))
        found = _solve_with_highs(program.items, budget, np.inf)
        assert found is not None
        theirs, proven = found
        assert proven
        assert program.solve(budget).error == pytest.approx(
            program.items.total_error(theirs), rel=1e-9
        )


@given(instances())
@settings(deadline=None)
def test_more_bytes_never_make_it_worse(cells: Cells) -> None:
    program = Program(cells)
    low, high = program.relaxation.floor_nbytes, program.relaxation.ceiling_nbytes
    budgets = sorted({int(b) for b in np.linspace(low, high, 6)})

    errors = [program.solve(budget).error for budget in budgets]

    assert errors == sorted(errors, reverse=True)


def test_ties_are_broken_towards_fewer_bytes() -> None:
    cells = {"b": [make_cell("b", 0, 9, 1.0), make_cell("b", 1, 5, 1.0), make_cell("b", 2, 7, 1.0)]}

    assert Program(cells).solve(100).nbytes == 5


def test_a_budget_below_the_smallest_plan_names_the_floor() -> None:
    cells = {"b": [make_cell("b", 0, 9, 1.0)], "c": [make_cell("c", 0, 4, 1.0)]}

    with pytest.raises(InfeasibleBudget, match=r"budget is 12 bytes, .* smallest plan needs 13"):
        Program(cells).solve(12)


@pytest.mark.parametrize(("limit", "floor"), [(5.0, "10"), (0.0, "10")])
def test_limits_that_only_fail_together_name_the_floor_within_the_bytes(
    limit: float, floor: str
) -> None:
    cells = {"b": [make_cell("b", 0, 1, 1.0, 10.0), make_cell("b", 1, 10, 1.0, 1.0)]}

    with pytest.raises(InfeasibleBudget, match=f"smallest plan needs {floor}$"):
        Program(cells).solve(5, max_bit_operations=limit)


def test_what_cannot_be_proven_within_reason_says_so() -> None:
    rng = np.random.default_rng(0)
    cells = {}
    for number in range(12):  # errors linear in size: a subset-sum problem
        weights = 8 * int(rng.lognormal(17, 1))
        cells[f"b{number}"] = [
            make_cell(f"b{number}", i, weights * bits // 8 + 3 * i, float(weights * (8 - bits)))
            for i, bits in enumerate((2, 3, 4, 5, 6, 8))
        ]
    program = Program(cells)
    floor, ceiling = program.relaxation.floor_nbytes, program.relaxation.ceiling_nbytes
    budget = (floor + ceiling) // 2

    solution = program.solve(budget)

    assert not solution.proven
    assert solution.nbytes <= budget
    relaxed = float(program.relaxation.optimum(np.array([float(budget)]))[0])
    assert relaxed <= solution.error <= relaxed * (1 + 1e-5)


def test_bit_operations_may_reach_their_limit_exactly() -> None:
    cells = {
        name: [make_cell(name, 0, 1, 1.0, 3e11), make_cell(name, 1, 2, 0.1, 7e11 + 1)]
        for name in ("b", "c", "d")
    }

    solution = Program(cells).solve(10, max_bit_operations=13e11 + 1)

    assert solution.bit_operations == 13e11 + 1
    assert solution.error == 2.1


def test_the_optimum_is_exact_beside_errors_many_magnitudes_larger() -> None:
    rng = np.random.default_rng(0)
    cells = {}
    for number in range(7):
        size = int(rng.lognormal(21, 1))
        cells[f"b{number}"] = [
            make_cell(f"b{number}", i, size * bits, 10.0 ** (-3 * i) * rng.lognormal())
            for i, bits in enumerate((2, 3, 4, 6, 8))
        ]
    plans = [(nbytes, error) for nbytes, error, _ in all_plans(cells)]

    for budget in np.quantile([nbytes for nbytes, _ in plans], (0.1, 0.5, 0.9)).astype(int):
        best = min(error for nbytes, error in plans if nbytes <= budget)
        assert Program(cells).solve(int(budget)).error == best


def test_the_proxy_front_does_not_repeat_itself() -> None:
    cells = {"b": [make_cell("b", 0, 10, 2.0), make_cell("b", 1, 20, 1.0)]}

    front = Program(cells).proxy_front([10, 12, 19, 20, 30])

    assert [solution.nbytes for solution in front] == [10, 20]


@pytest.mark.parametrize("error", [float("nan"), float("inf"), -1.0])
def test_an_impossible_error_is_refused(error: float) -> None:
    with pytest.raises(InvalidMetric):
        KnapsackItems.of({"b": [make_cell("b", 0, 1, error)]})


@pytest.mark.parametrize("cells", [{}, {"b": []}])
def test_nothing_to_choose_from_is_refused(cells: Cells) -> None:
    with pytest.raises(SpecError, match="profile the model first"):
        Program(cells)

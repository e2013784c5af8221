"""The integer program against brute force, and against HiGHS where that takes over."""

from collections.abc import Iterable, Mapping
from itertools import product
from math import fsum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfront.errors import InfeasibleBudget, InvalidMetric, SpecError
from bitfront.plan import Option
from bitfront.precision import Precision
from bitfront.profile import Cell, Resource
from search.branch_and_bound import Row, minimise
from search.knapsack_items import KnapsackItems
from search.program import Program
from search.prune import prune
from search.resources import Limit, whole_amount

Cells = Mapping[str, list[Cell]]
PRECISIONS = [Precision(w, a) for w in (2, 3, 4, 5, 6, 8) for a in (4, 6, 8)]


def make_cell(
    block: str,
    index: int,
    nbytes: int,
    error: float,
    operations: float = 0,
    weight_bits: int | None = None,
    latency_s: float | None = None,
    token_s: float | None = None,
    kv_nbytes: int | None = None,
) -> Cell:
    option = Option((PRECISIONS[index],))
    return Cell(
        block, option, nbytes, operations, error, weight_bits, latency_s, token_s, kv_nbytes
    )


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
            make_cell(
                name,
                i,
                draw(sizes),
                float(draw(errors)),
                float(draw(st.integers(0, 6))),
                draw(st.integers(0, 6)),
                draw(st.integers(0, 6)) / 1000,
                draw(st.integers(0, 6)) / 1000,
                draw(st.integers(0, 6)),
            )
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
@settings(max_examples=300)
def test_the_solution_is_the_brute_force_optimum(cells: Cells, share: float) -> None:
    plans = all_plans(cells)
    sizes = [nbytes for nbytes, _, _ in plans]
    budget = int(min(sizes) + share * (max(sizes) - min(sizes)))

    solution = Program.of(cells).solve(budget)

    best = min((error, nbytes) for nbytes, error, _ in plans if nbytes <= budget)
    assert solution.error == pytest.approx(best[0], rel=1e-12, abs=1e-15)
    assert solution.cost <= budget
    assert solution.cost == sum(cell.nbytes for cell in solution.choice.values())
    assert set(solution.choice) == set(cells)


def limit(resource: Resource, units: float, fixed: float = 0.0) -> Limit:
    """A limit of the whole model that leaves so many whole units for the options."""
    amount = units / 1e12 if resource.is_time else units
    return Limit(f"max_{resource}", resource, amount + fixed, fixed)


def units(plan: Iterable[Cell], resource: Resource) -> int:
    return sum(whole_amount(cell, resource) for cell in plan)


def refusal(program: Program, budget: int) -> InfeasibleBudget | None:
    try:
        program.solve(budget)
    except InfeasibleBudget as error:
        return error
    return None


@st.composite
def problems(draw: st.DrawFn) -> tuple[Cells, Resource, int, list[Limit]]:
    """A budget of any resource and limits on any of them, from too low to without effect."""
    cells = draw(instances())
    plans = list(product(*cells.values()))
    resources = draw(st.permutations(list(Resource)))

    def level(resource: Resource) -> int:
        share = draw(st.floats(-0.05, 1))
        amounts = sorted(units(plan, resource) for plan in plans)
        return amounts[0] - 1 if share < 0 else amounts[int(share * (len(amounts) - 1))]

    limited = resources[: draw(st.integers(0, len(resources)))]
    budgeted = draw(st.sampled_from(list(Resource)))
    fixed = draw(st.sampled_from([0.0, 5.0]))
    limits = [limit(resource, level(resource), fixed) for resource in limited]
    return cells, budgeted, level(budgeted), limits


@given(problems())
@settings(max_examples=150)
def test_any_mix_of_limits_is_held_at_the_optimum(
    problem: tuple[Cells, Resource, int, list[Limit]],
) -> None:
    cells, resource, budget, limits = problem
    fitting = [
        fsum(cell.error for cell in plan)
        for plan in product(*cells.values())
        if units(plan, resource) <= budget
        and all(units(plan, held.resource) <= held.most for held in limits)
    ]
    program = Program.of(cells, resource, limits)

    if not fitting:
        with pytest.raises(InfeasibleBudget):
            program.solve(budget)
        return
    solution = program.solve(budget)

    assert solution.proven
    assert solution.error == pytest.approx(min(fitting), rel=1e-9, abs=1e-9)
    assert solution.least_error <= min(fitting) * (1 + 1e-12)
    assert solution.cost == units(solution.choice.values(), resource) <= budget
    for held in limits:
        assert units(solution.choice.values(), held.resource) <= held.most


def test_a_unit_of_a_room_of_a_billion_is_not_lost() -> None:
    def cell(block: str, index: int, nbytes: int, error: float, latency_s: float) -> Cell:
        return make_cell(block, index, nbytes, error, weight_bits=0, latency_s=latency_s)

    cells = {
        "b0": [
            cell("b0", 0, 999_999_983, 0.0, 0.001),
            cell("b0", 1, 999_999_984, 0.0, 0.0),
            cell("b0", 2, 0, 0.0, 0.001),
        ],
        "b1": [
            cell("b1", 0, 1, 1.0, 0.0),
            cell("b1", 1, 0, 1.0, 0.001),
            cell("b1", 2, 5, 0.0, 0.0),
            cell("b1", 3, 3, 0.0, 0.001),
        ],
    }
    limits = [
        Limit("max_nbytes", Resource.NBYTES, 999_999_986),
        Limit("max_latency_s", Resource.LATENCY_S, 0.001),
    ]

    solution = Program.of(cells, Resource.WEIGHT_BITS, limits).solve(0)

    assert solution.error == 0
    assert [chosen.nbytes for chosen in solution.choice.values()] == [0, 5]


def test_a_choice_that_takes_all_of_the_room_is_not_lost() -> None:
    cells = {
        "b0": [
            make_cell("b0", 0, 26_921_442, 0.0, weight_bits=0, latency_s=0.0),
            make_cell("b0", 1, 26_921_439, 1.0, weight_bits=0, latency_s=0.0),
            make_cell("b0", 2, 0, 0.0, weight_bits=0, latency_s=0.001),
        ],
        "b1": [
            make_cell("b1", 0, 0, 1.0, weight_bits=0, latency_s=0.0),
            make_cell("b1", 1, 3, 0.0, weight_bits=0, latency_s=0.0),
        ],
    }
    limits = [
        Limit("max_nbytes", Resource.NBYTES, 26_921_445),
        Limit("max_latency_s", Resource.LATENCY_S, 0.0),
    ]

    solution = Program.of(cells, Resource.NBYTES, limits).solve(26_921_445)

    assert (solution.error, solution.cost) == (0, 26_921_445)


def test_errors_too_small_to_be_scaled_are_solved() -> None:
    cells = {"b": [make_cell("b", 0, 0, 5e-324, weight_bits=0, latency_s=0.0)]}
    held = [Limit("max_weight_bits", Resource.WEIGHT_BITS, 0)]

    assert prune(Program.of(cells, limits=held), [0], 0.0).survivors["b"]


@given(problems())
@settings(max_examples=150)
def test_what_cannot_be_held_is_named_with_the_least_possible_value(
    problem: tuple[Cells, Resource, int, list[Limit]],
) -> None:
    cells, resource, budget, limits = problem
    program = Program.of(cells, resource, limits)
    error = refusal(program, budget)
    if error is None:
        return
    named = {held.name: held for held in limits}
    named[str(resource)] = limit(resource, budget)
    held = [named[text.split()[0]] for text in error.given]
    broken = named[error.limit]
    amounts = [
        units(plan, broken.resource)
        for plan in product(*cells.values())
        if all(units(plan, other.resource) <= other.most for other in held)
    ]

    assert min(amounts) > broken.most
    assert error.least == pytest.approx(broken.total(min(amounts)), rel=1e-12)


@given(problems())
@settings(max_examples=100)
def test_the_floor_is_the_cheapest_plan_within_the_limits_and_the_ceiling_the_best(
    problem: tuple[Cells, Resource, int, list[Limit]],
) -> None:
    cells, resource, _, limits = problem
    fitting = [
        (units(plan, resource), fsum(cell.error for cell in plan))
        for plan in product(*cells.values())
        if all(units(plan, held.resource) <= held.most for held in limits)
    ]
    program = Program.of(cells, resource, limits)

    if not fitting:
        with pytest.raises(InfeasibleBudget):
            _ = program.floor
        return

    assert program.floor == min(cost for cost, _ in fitting)
    best = min(error for _, error in fitting)
    assert program.solve(program.ceiling).error == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_a_fixed_part_leaves_less_for_the_options() -> None:
    cells = {"b": [make_cell("b", 0, 4, 1.0), make_cell("b", 1, 8, 0.5)]}
    roomy = Limit("max_nbytes", Resource.NBYTES, 108, fixed=100)
    tight = Limit("max_nbytes", Resource.NBYTES, 107, fixed=100)

    assert Program.of(cells, limits=[roomy]).solve(1000).cost == 8
    assert Program.of(cells, limits=[tight]).solve(1000).cost == 4
    with pytest.raises(InfeasibleBudget, match=r"^no plan holds max_nbytes 103: .* is 104$"):
        Program.of(cells, limits=[Limit("max_nbytes", Resource.NBYTES, 103, fixed=100)]).solve(9)


def test_a_latency_that_was_not_measured_is_refused() -> None:
    cells = {"b": [make_cell("b", 0, 4, 1.0)]}

    with pytest.raises(SpecError, match="latency_s of w2a4 in b is not measured"):
        Program.of(cells, Resource.LATENCY_S)


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
    program = Program.of(cells)
    floor, ceiling = program.relaxation.floor, program.relaxation.ceiling

    for share in (0.1, 0.37, 0.7):
        budget = int(floor + share * (ceiling - floor))
        theirs = minimise(program.items, program.items.error, [Row(program.items.cost, budget)])
        assert theirs.choice is not None
        assert theirs.proven
        assert program.solve(budget).error == pytest.approx(
            program.items.total_error(theirs.choice), rel=1e-9
        )


@given(instances())
def test_more_bytes_never_make_it_worse(cells: Cells) -> None:
    program = Program.of(cells)
    low, high = program.relaxation.floor, program.relaxation.ceiling
    budgets = sorted({int(b) for b in np.linspace(low, high, 6)})

    errors = [program.solve(budget).error for budget in budgets]

    assert errors == sorted(errors, reverse=True)


def test_ties_are_broken_towards_fewer_bytes() -> None:
    cells = {"b": [make_cell("b", 0, 9, 1.0), make_cell("b", 1, 5, 1.0), make_cell("b", 2, 7, 1.0)]}

    assert Program.of(cells).solve(100).cost == 5


def test_a_budget_below_the_smallest_plan_names_the_floor() -> None:
    cells = {"b": [make_cell("b", 0, 9, 1.0)], "c": [make_cell("c", 0, 4, 1.0)]}

    with pytest.raises(
        InfeasibleBudget, match=r"^no plan holds nbytes 12: the least possible is 13$"
    ):
        Program.of(cells).solve(12)


@pytest.mark.parametrize(("operations", "given"), [(5, " together with nbytes 5"), (0, "")])
def test_limits_that_only_fail_together_name_each_other(operations: int, given: str) -> None:
    cells = {"b": [make_cell("b", 0, 1, 1.0, 10.0), make_cell("b", 1, 10, 1.0, 1.0)]}

    least = 10 if given else 1
    held = [limit(Resource.BIT_OPERATIONS, operations)]
    text = f"^no plan holds max_bit_operations {operations}{given}: the least possible is {least}$"
    with pytest.raises(InfeasibleBudget, match=text):
        Program.of(cells, limits=held).solve(5)


def test_what_cannot_be_proven_within_reason_says_so() -> None:
    rng = np.random.default_rng(0)
    cells = {}
    for number in range(12):  # errors linear in size: a subset-sum problem
        weights = 8 * int(rng.lognormal(17, 1))
        cells[f"b{number}"] = [
            make_cell(f"b{number}", i, weights * bits // 8 + 3 * i, float(weights * (8 - bits)))
            for i, bits in enumerate((2, 3, 4, 5, 6, 8))
        ]
    program = Program.of(cells)
    floor, ceiling = program.relaxation.floor, program.relaxation.ceiling
    budget = (floor + ceiling) // 2

    solution = program.solve(budget)

    assert not solution.proven
    assert solution.cost <= budget
    relaxed = float(program.relaxation.optimum(np.array([float(budget)]))[0])
    assert relaxed <= solution.error <= relaxed * (1 + 1e-5)


def test_bit_operations_may_reach_their_limit_exactly() -> None:
    cells = {
        name: [make_cell(name, 0, 1, 1.0, 3e11), make_cell(name, 1, 2, 0.1, 7e11 + 1)]
        for name in ("b", "c", "d")
    }

    solution = Program.of(cells, limits=[limit(Resource.BIT_OPERATIONS, 13e11 + 1)]).solve(10)

    assert solution.amount(Resource.BIT_OPERATIONS) == 13e11 + 1
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
        assert Program.of(cells).solve(int(budget)).error == best


def test_the_proxy_front_does_not_repeat_itself() -> None:
    cells = {"b": [make_cell("b", 0, 10, 2.0), make_cell("b", 1, 20, 1.0)]}

    front = Program.of(cells).proxy_front([10, 12, 19, 20, 30])

    assert [solution.cost for solution in front] == [10, 20]


@pytest.mark.parametrize("error", [float("nan"), float("inf"), -1.0])
def test_an_impossible_error_is_refused(error: float) -> None:
    with pytest.raises(InvalidMetric):
        KnapsackItems.of({"b": [make_cell("b", 0, 1, error)]})


@pytest.mark.parametrize("cells", [{}, {"b": []}])
def test_nothing_to_choose_from_is_refused(cells: Cells) -> None:
    with pytest.raises(SpecError, match="profile the model first"):
        Program.of(cells)

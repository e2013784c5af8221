"""The program with pair terms against brute force."""

from collections.abc import Sequence
from itertools import pairwise, product
from math import fsum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfront.errors import InfeasibleBudget
from bitfront.profile import Cell, PairTerm, Resource
from search import pairwise as module
from search.branch_and_bound import Answer
from search.pairwise import PairwiseProgram
from search.program import Program
from search.resources import Limit
from tests.search.test_program import Cells, instances, make_cell, problems, refusal, units

Place = tuple[str, object]


def place(cell: Cell) -> Place:
    return cell.block, cell.option


@st.composite
def terms_of(draw: st.DrawFn, cells: Cells) -> list[PairTerm]:
    """Terms of some options of blocks that follow each other, of either sign."""
    return [
        PairTerm(first, second, float(draw(st.integers(-4, 4)) / 4))
        for one, other in pairwise(cells.values())
        for first, second in product(one, other)
        if draw(st.booleans())
    ]


def error_of(plan: Sequence[Cell], terms: Sequence[PairTerm]) -> float:
    known = {(place(term.first), place(term.second)): term.interaction for term in terms}
    pairs = [known.get((place(one), place(other)), 0.0) for one, other in pairwise(plan)]
    return fsum([*(cell.error for cell in plan), *pairs])


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_the_solution_is_the_brute_force_optimum(data: st.DataObject) -> None:
    cells, resource, budget, limits = data.draw(problems())
    terms = data.draw(terms_of(cells))
    program = Program.of(cells, resource, limits)
    paired = PairwiseProgram.of(program, terms)
    if (refused := refusal(program, budget)) is not None:
        with pytest.raises(InfeasibleBudget) as raised:
            paired.solve(budget)
        assert str(raised.value) == str(refused)
        return

    solution = paired.solve(budget)

    def fits(plan: Sequence[Cell]) -> bool:
        return units(plan, resource) <= budget and all(
            units(plan, held.resource) <= held.most for held in limits
        )

    best = min(error_of(plan, terms) for plan in product(*cells.values()) if fits(plan))
    chosen = [solution.choice[name] for name in cells]
    assert fits(chosen)
    assert solution.proven
    assert solution.cost == units(chosen, resource)
    assert solution.error == pytest.approx(error_of(chosen, terms), rel=1e-12, abs=1e-12)
    assert solution.error == pytest.approx(best, rel=1e-9, abs=1e-9)


@given(instances(), st.floats(0, 1.1))
@settings(max_examples=50, deadline=None)
def test_without_terms_it_is_the_program(cells: Cells, share: float) -> None:
    program = Program.of(cells)
    budget = int(program.floor + share * (program.ceiling - program.floor))

    expected = program.solve(budget).error

    assert PairwiseProgram.of(program, []).solve(budget).error == pytest.approx(
        expected, rel=1e-9, abs=1e-9
    )


def pair_of_blocks() -> Cells:
    return {
        "a": [make_cell("a", 0, 2, 3.0), make_cell("a", 1, 4, 1.0)],
        "b": [make_cell("b", 0, 2, 3.0), make_cell("b", 1, 4, 1.5)],
    }


def test_what_cancels_is_chosen_together() -> None:
    """Alone, a at 4 and b at 2 is the best plan of 6; both at 2 cancel."""
    cells = pair_of_blocks()
    program = Program.of(cells)
    cancelling = PairTerm(cells["a"][0], cells["b"][0], -5.0)

    solution = PairwiseProgram.of(program, [cancelling]).solve(6)

    assert [cell.nbytes for cell in program.solve(6).choice.values()] == [4, 2]
    assert [cell.nbytes for cell in solution.choice.values()] == [2, 2]
    assert solution.error == 1.0


def test_terms_of_options_that_are_out_are_left_out() -> None:
    cells = pair_of_blocks()
    gone = PairTerm(make_cell("a", 5, 1, 0.0), cells["b"][0], -5.0)

    assert PairwiseProgram.of(Program.of(cells), [gone]).pairs == ()


@pytest.mark.parametrize("found", [None, [0, 2]])
def test_where_time_runs_out_the_better_of_both_plans_is_taken_and_not_called_proven(
    monkeypatch: pytest.MonkeyPatch, found: list[int] | None
) -> None:
    cells = pair_of_blocks()
    program = Program.of(cells, Resource.NBYTES, [Limit("max_nbytes", Resource.NBYTES, 6)])
    choice = None if found is None else np.array(found)
    monkeypatch.setattr(module, "minimise", lambda *_: Answer(choice, proven=False))

    solution = PairwiseProgram.of(program, []).solve(6)

    assert [cell.nbytes for cell in solution.choice.values()] == [4, 2]
    assert not solution.proven

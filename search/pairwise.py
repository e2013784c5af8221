"""The program with pair terms: neighbouring blocks count for what they do together."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum

import numpy as np

from bitfront.profile import PairTerm
from search.allocator import Allocator, Solution
from search.branch_and_bound import Answer, Pair, minimise
from search.knapsack_items import Integers
from search.program import Program


@dataclass(frozen=True, eq=False)
class PairwiseProgram(Allocator):
    """The quadratic program of CLADO (arXiv:2307.05657) over neighbouring blocks.

    With `E_b(o)` the error of option `o` of block `b` alone and `E_bc(o, p)` that of options of
    two blocks, it minimises

        sum_b E_b(o_b) + sum_bc (E_bc(o_b, o_c) - E_b(o_b) - E_c(o_c))

    within a budget and the limits. CLADO takes all pairs of layers; here they are the
    neighbours, whose dependency is what Q-VLM partitions by (Eqs 4 and 6). IMPQ
    (arXiv:2509.15455) has such terms too, as Shapley values. The products of choices are
    linearised, and HiGHS solves the program exactly. A summed error can be below zero.

    Where HiGHS' time runs out, the better one of what it found and the plan without pair terms is
    taken, and the solution says that it is not proven.

    Attributes:
        program: The cells and the limits.
        pairs: The terms of each pair of blocks; zero where nothing was measured.
    """

    program: Program
    pairs: tuple[Pair, ...]

    @classmethod
    def of(cls, program: Program, terms: Iterable[PairTerm]) -> "PairwiseProgram":
        """The program with some terms; those of cells that it does not have are left out."""
        items = program.items
        blocks = {name: number for number, name in enumerate(items.names)}
        places = {(cell.block, cell.option): number for number, cell in enumerate(items.cells)}
        found: dict[tuple[int, int], Pair] = {}
        for term in terms:
            cells = [places.get((cell.block, cell.option)) for cell in (term.first, term.second)]
            if None in cells:
                continue
            first, second = blocks[term.first.block], blocks[term.second.block]
            sizes = [int(items.first[block + 1] - items.first[block]) for block in (first, second)]
            pair = found.setdefault((first, second), Pair(first, second, np.zeros(sizes)))
            row, column = np.array(cells) - items.first[[first, second]]
            pair.terms[row, column] = term.interaction
        return cls(program, tuple(found.values()))

    def solve(self, budget: int) -> Solution:
        """The optimum within a budget and the limits, with the pair terms in its error.

        Raises:
            InfeasibleBudget: No plan is within them.
        """
        items = self.program.items
        answer = minimise(items, items.error, self.program.rows(budget), self.pairs)
        plain = self.program.solve(budget) if not answer.proven or answer.choice is None else None
        if plain is not None:
            answer = self._better(answer, plain)
        assert answer.choice is not None
        solution = Solution.of(items, answer.choice, proven=answer.proven, tolerance=np.inf)
        return replace(solution, error=self.error(answer.choice))

    def error(self, choice: Integers) -> float:
        """The summed error of a choice of cell numbers, with its pair terms."""
        items = self.program.items
        return fsum([items.total_error(choice), *(pair.of(items, choice) for pair in self.pairs)])

    def _better(self, answer: Answer, plain: Solution) -> Answer:
        choice = np.array([self._places[name, cell.option] for name, cell in plain.choice.items()])
        if answer.choice is not None and self.error(answer.choice) <= self.error(choice):
            return answer
        return Answer(choice, proven=False)

    @cached_property
    def _places(self) -> dict[tuple[str, object], int]:
        return {(c.block, c.option): number for number, c in enumerate(self.program.items.cells)}

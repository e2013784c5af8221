"""From cells to the search: the proxy front, the pruned space, the seeds, and the review."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict

from bitfront.layers import Block
from bitfront.objective import Objective
from bitfront.plan import Configuration, Option, Plan
from bitfront.profile import Profile
from bitfront.spec import JobSpec
from bitfront.trial import Origin, Proposal, Trial, TrialState
from search.correlation import rank_correlation
from search.knapsack_items import by_block
from search.options import undominated
from search.program import Program, Solution
from search.prune import PrunedSpace, budget_axis, prune
from search.seeds import full_precision, uniform_plans, with_recoveries
from search.space import SearchSpace
from storage.records import OptionRecord

logger = logging.getLogger(__name__)

# How much larger epsilon becomes where the proxy is not to be trusted.
_WIDER = 4.0


class ProxySearch:
    """What the proxy says is worth measuring.

    Attributes:
        solutions: The proxy front: the program's optimum at each budget.
        pruned: The surviving options, with the certificate of those removed.
        space: What the sampler searches.
    """

    def __init__(self, spec: JobSpec, profile: Profile) -> None:
        self._spec = spec
        self._profile = profile
        self._counts_operations = not {Objective.ERROR, Objective.NBYTES}.issuperset(
            spec.objectives
        )
        self._cells = {
            name: undominated(cells, bit_operations=self._counts_operations)
            for name, cells in by_block(profile.cells).items()
        }
        self._errors = {(cell.block, cell.option): cell.error for cell in profile.cells}
        self._budgets = self._axis()
        self.solutions = Program(self._cells).proxy_front(self._budgets)
        self.pruned = self._prune(spec.search.epsilon)
        self.space = self._space(self.pruned)

    def _axis(self) -> list[int]:
        """The budgets in bytes of the searched layers, as the job gives them in bits a weight."""
        search, fixed = self._spec.search, self._profile.fixed_nbytes
        weights = sum(layer.weights for layer in self._profile.layers)
        low = None if search.from_bits is None else int(search.from_bits * weights / 8)
        high = None if search.to_bits is None else int(search.to_bits * weights / 8)
        limit = self._spec.constraints.max_nbytes
        if limit is not None:
            high = limit - fixed if high is None else min(high, limit - fixed)
        axis = budget_axis(self._cells, search.budgets, low, high)
        baselines = [size for size in self._uniform_nbytes() if axis[0] <= size <= axis[-1]]
        return sorted({*axis, *baselines})

    def _uniform_nbytes(self) -> list[int]:
        """The sizes of the uniform plans that lie in the space: there the program competes."""
        sizes = {(c.block, c.option): c.nbytes for c in self._profile.cells}
        found = []
        for plan in uniform_plans(self._profile.layers, self._spec.space):
            places = [(block.name, _option(plan, block)) for block in self._profile.blocks]
            if all(place in sizes for place in places):
                found.append(sum(sizes[place] for place in places))
        return found

    def _prune(self, epsilon: float) -> PrunedSpace | None:
        # The bounds are about bytes: with a further objective they would drop what it needs.
        if not self._spec.search.prune or self._counts_operations:
            return None
        return prune(self._cells, self._budgets, epsilon)

    def _space(self, pruned: PrunedSpace | None) -> SearchSpace:
        options: dict[str, list[Option]] = {}
        for name, cells in self._cells.items():
            kept = cells
            if pruned is not None:
                survivors = set(pruned.survivors[name])
                kept = [cell for cell in cells if cell.option in survivors]
            ordered = sorted(kept, key=lambda cell: (cell.nbytes, -cell.error))
            options[name] = [cell.option for cell in ordered]
        return SearchSpace(self._profile.blocks, options, {}, self._spec.space.recovery)

    def seeds(self) -> list[Proposal]:
        """Full precision, the uniform baselines, the proxy front, then what recovery adds."""
        layers = self._profile.layers
        plans = [self._plan(solution) for solution in self.solutions]
        uniform = uniform_plans(layers, self._spec.space)
        seeds = [Proposal(full_precision(layers), Origin.BASELINE)]
        seeds += [Proposal(Configuration(plan), Origin.BASELINE) for plan in uniform]
        seeds += self.program_seeds()
        recovered = with_recoveries(plans, self.space.seed_recoveries())
        seeds += [Proposal(configuration, Origin.PROGRAM) for configuration in recovered]
        return seeds

    def program_seeds(self) -> list[Proposal]:
        """The proxy front, smallest first."""
        return [
            Proposal(Configuration(self._plan(solution)), Origin.PROGRAM)
            for solution in self.solutions
        ]

    def _plan(self, solution: Solution) -> Plan:
        return Plan.from_options(
            (block, solution.choice[block.name].option) for block in self._profile.blocks
        )

    def proxy_error(self, plan: Plan) -> float | None:
        """The summed error of a plan's cells; None where one was not measured."""
        total = 0.0
        for block in self._profile.blocks:
            error = self._errors.get((block.name, _option(plan, block)))
            if error is None:
                return None
            total += error
        return total

    def correlation(self, trials: Sequence[Trial]) -> float | None:
        """Spearman's rank correlation of proxy and measured error, over trials without recovery.

        None where fewer than four trials have both, or where one of the two does not vary.
        """
        pairs = [
            (proxy, trial.values["error"])
            for trial in trials
            if trial.state is TrialState.COMPLETE and trial.configuration.recovery is None
            if (proxy := self.proxy_error(trial.configuration.plan)) is not None
        ]
        if len(pairs) < 4:
            return None
        return rank_correlation([proxy for proxy, _ in pairs], [error for _, error in pairs])

    def widened(self) -> SearchSpace:
        """The space under a larger epsilon, for where the proxy misleads."""
        self.pruned = self._prune(self._spec.search.epsilon * _WIDER)
        self.space = self._space(self.pruned)
        return self.space

    @property
    def log10_sizes(self) -> tuple[float, float]:
        """Plans before and after pruning, as logarithms."""
        before = sum(math.log10(len(cells)) for cells in by_block(self._profile.cells).values())
        return before, self.space.log10_size

    def option_records(self) -> list[OptionRecord]:
        """Every measured option, whether it survives, and the proof where it does not."""
        removed = (
            {}
            if self.pruned is None
            else {(removal.block, removal.option): removal for removal in self.pruned.removed}
        )
        kept = {
            (name, option) for name, options in self.space.options.items() for option in options
        }
        records = []
        for cell in self._profile.cells:
            place = (cell.block, cell.option)
            removal = removed.get(place)
            if removal is not None:
                certificate: dict[str, object] = asdict(removal)
                certificate.pop("block")
                certificate["option"] = str(cell.option)
            elif place in kept:
                certificate = {}
            else:
                certificate = {"kind": "dominated"}
            records.append(OptionRecord(cell, place in kept, certificate))
        return records


def _option(plan: Plan, block: Block) -> Option:
    """What a plan gives a block."""
    return Option(tuple(plan.precision(layer) for layer in block.layers))

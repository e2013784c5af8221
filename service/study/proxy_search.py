"""From cells to the search: the proxy front, the pruned space, the seeds, and the review."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from bitfront.choices import kept_width
from bitfront.errors import UnavailableDevice
from bitfront.plan import Configuration, Option, Plan
from bitfront.profile import Cell, Profile, Resource
from bitfront.samples import SampleResults
from bitfront.spec import AllocatorKind, JobSpec
from bitfront.trial import Origin, Proposal, Trial, TrialState
from search.allocator import Allocator, Solution
from search.cell_estimates import place_of
from search.correction import Correction, Place, correct
from search.correlation import rank_correlation, rank_interval
from search.greedy import Greedy
from search.knapsack_items import KnapsackItems, by_block
from search.options import undominated
from search.pairwise import PairwiseProgram
from search.program import Program
from search.prune import PrunedSpace, budget_axis, prune
from search.refine import MeasuredPlan, Refiner
from search.relaxation import Relaxation
from search.resources import (
    Limit,
    axis_resource,
    counted_resources,
    job_limits,
    measured_cells,
    whole_amount,
)
from search.seeds import full_baseline, uniform_plans, with_recoveries
from search.space import SearchSpace
from storage.records import OptionRecord

logger = logging.getLogger(__name__)

# How much larger epsilon becomes where the proxy is not to be trusted.
_WIDER = 4.0
# Plans that differ by less in what they take are not told apart.
_LEAST_GAP = 2e-3
# Cells are corrected anew when so many times as many further plans have been made.
_GROWTH = 1.25


@dataclass(frozen=True, slots=True)
class ProxyCorrelation:
    """How well the proxy ranks trials, with the ends of the 95 % interval."""

    value: float
    low: float
    high: float


class ProxySearch:
    """What the proxy says is worth measuring.

    Attributes:
        solutions: The proxy front: the program's optimum at each budget.
        pruned: The surviving options, with the certificate of those removed.
        space: What the sampler searches.
    """

    def __init__(self, spec: JobSpec, profile: Profile) -> None:
        """Solves and prunes at once.

        Raises:
            InfeasibleBudget: No plan holds the job's limits.
            UnavailableDevice: No option of some block has a kernel, where latency counts.
        """
        self._spec = spec
        self._profile = profile
        self._resources = counted_resources(spec)
        self._axis_resource = axis_resource(spec.objectives)
        self._cells = self._worthy()
        self._errors = {(cell.block, cell.option): cell.error for cell in profile.cells}
        self._interactions = {
            (place_of(pair.first), place_of(pair.second)): pair.interaction
            for pair in profile.pairs
        }
        self._limits = job_limits(spec, profile)
        self._program = Program.of(self._cells, self._axis_resource, self._limits)
        self._budgets = self._axis()
        self.solutions = self._allocator(self._program).proxy_front(self._budgets)
        self.pruned = self._prune(spec.search.epsilon)
        self.space = self._space(self.pruned)

    def _allocator(self, program: Program) -> Allocator:
        """Who makes plans of a program's cells."""
        match self._spec.search.allocator:
            case AllocatorKind.GREEDY:
                return Greedy(program)
            case AllocatorKind.PAIRWISE:
                return PairwiseProgram.of(program, self._profile.pairs)
            case AllocatorKind.PROGRAM:
                return program

    def _worthy(self) -> dict[str, list[Cell]]:
        """The cells that no other one of their block beats in all that the job counts."""
        found = {}
        for name, cells in by_block(self._profile.cells).items():
            measured = measured_cells(cells, self._resources)
            if not measured:
                raise UnavailableDevice(
                    f"no option of block {name} has kernels on this device: search precisions "
                    "that have one, or limit or minimise bit_operations in place of latency_s"
                )
            found[name] = undominated(measured, self._resources)
        return found

    def _axis(self) -> list[int]:
        """The budgets in whole units of the axis; the job bounds them in bits of a weight."""
        search = self._spec.search
        low = None if search.from_bits is None else self._least_at(search.from_bits)
        high = None if search.to_bits is None else self._best_at(search.to_bits)
        axis = budget_axis(self._program, search.budgets, low, high)
        baselines = [cost for cost in self._uniform_costs() if axis[0] <= cost <= axis[-1]]
        return sorted({*axis, *baselines})

    def _mean_bits(self, name: str, bits: float) -> Limit:
        """A limit on the mean width of the searched weights: kept layers do not count."""
        space = self._spec.space
        widths = [(layer.weights, kept_width(layer, space)) for layer in self._profile.layers]
        kept = sum(weights * width for weights, width in widths if width is not None)
        searched = sum(weights for weights, width in widths if width is None)
        return Limit(name, Resource.WEIGHT_BITS, bits, -float(kept), float(max(searched, 1)))

    def _best_at(self, bits: float) -> int:
        """What the best plan takes whose searched weights have at most so many bits."""
        limit = self._mean_bits("search.to_bits", bits)
        program = Program.of(self._cells, Resource.WEIGHT_BITS, [limit])
        return self._cost(program.solve(limit.most).choice.values())

    def _least_at(self, bits: float) -> int:
        """A bound of what any plan takes whose searched weights have at least so many bits."""
        limit = self._mean_bits("search.from_bits", bits)
        widths = KnapsackItems.of(self._cells, Resource.WEIGHT_BITS)
        widest = -widths.least(-widths.cost.astype(np.float64)).astype(np.int64)
        items = replace(
            widths,
            cost=widest[widths.block] - widths.cost,  # the bits that a plan may lack
            error=self._program.items.cost.astype(np.float64),
        )
        lacking = max(int(widest.sum()) - limit.most, 0)
        relaxed = Relaxation(items).optimum(np.array([lacking], dtype=np.float64))
        return int(relaxed[0])

    def _cost(self, cells: Iterable[Cell]) -> int:
        return sum(whole_amount(cell, self._axis_resource) for cell in cells)

    def _uniform_costs(self) -> list[int]:
        """What the uniform plans take that lie in the space: there the program competes."""
        measured = measured_cells(self._profile.cells, self._resources)
        known = {(cell.block, cell.option): cell for cell in measured}
        found = []
        for plan in uniform_plans(self._profile.layers, self._spec.space, self._spec.quantizer):
            places = [(block.name, plan.option(block)) for block in self._profile.blocks]
            if all(place in known for place in places):
                found.append(self._cost(known[place] for place in places))
        return found

    @property
    def notes(self) -> list[str]:
        """What a person should know of the space."""
        if self._spec.search.prune and not self._is_prunable:
            return [
                "options are not pruned: with more than one objective beside the error, or one "
                "that is not a sum over layers, no bound proves that an option is not needed"
            ]
        return []

    @property
    def _is_prunable(self) -> bool:
        """Whether the axis and the limits are all that plans are compared by.

        Bounds are about one budget: a further objective needs options that they would drop.
        """
        _, *costs = self._spec.objectives
        return len(costs) == 1 and costs[0].value == self._axis_resource.value

    def _prune(self, epsilon: float) -> PrunedSpace | None:
        if not self._spec.search.prune or not self._is_prunable:
            return None
        return prune(self._program, self._budgets, epsilon)

    def _space(self, pruned: PrunedSpace | None) -> SearchSpace:
        options: dict[str, list[Option]] = {}
        for name, cells in self._cells.items():
            kept = cells
            if pruned is not None:
                survivors = set(pruned.survivors[name])
                kept = [cell for cell in cells if cell.option in survivors]
            ordered = sorted(kept, key=lambda cell: (cell.nbytes, cell.kv_nbytes or 0, -cell.error))
            options[name] = [cell.option for cell in ordered]
        return SearchSpace(self._profile.blocks, options, {}, self._spec.space.recovery)

    def seeds(self) -> list[Proposal]:
        """Full precision, the uniform baselines, the proxy front, then what training adds to it.

        Where plans may be distilled, P4Q is tried on the distilled ones.
        """
        layers = self._profile.layers
        plans = [self._plan(solution) for solution in self.solutions]
        uniform = uniform_plans(layers, self._spec.space, self._spec.quantizer)
        seeds = [Proposal(full_baseline(layers, self._spec.space), Origin.BASELINE)]
        seeds += [Proposal(Configuration(plan), Origin.BASELINE) for plan in uniform]
        seeds += self.program_seeds()
        distil = self.space.seed_distillation()
        if distil is not None:
            plans = [replace(plan, distil=distil) for plan in plans]
            seeds += [Proposal(Configuration(plan), Origin.PROGRAM) for plan in plans]
        recovered = with_recoveries(plans, self.space.seed_recoveries())
        seeds += [Proposal(configuration, Origin.PROGRAM) for configuration in recovered]
        return seeds

    def program_seeds(self) -> list[Proposal]:
        """The proxy front, smallest first."""
        return [self._proposal(solution) for solution in self.solutions]

    def further_seeds(
        self, trials: Callable[[], Sequence[Trial]] = lambda: ()
    ) -> Iterator[Proposal]:
        """The program's plans by what the trials teach of its cells: again, then at more budgets.

        First come the budgets of the proxy front, then those between them, the widest gap first.
        A gap is the share by which its upper end exceeds its lower one; it is halved until it is
        smaller than `_LEAST_GAP` or no plan lies in it.

        Args:
            trials: Reads the study's trials, from which the cells are corrected before each
                plan, or where there are many, after a few; see `search.correction`.
        """
        costs = [solution.cost for solution in self.solutions]
        program, is_corrected = self._corrected_program(trials)
        allocator = self._allocator(program)
        if is_corrected:
            for cost in costs:
                yield self._proposal(allocator.solve(cost))
        gaps = [_gap(low, high) for low, high in pairwise(costs)]
        heapify(gaps)
        made, learns_at = 0, 0
        while gaps:
            share, low, high = heappop(gaps)
            if -share < _LEAST_GAP or high - low < 2:
                continue
            middle = min(max(round(math.sqrt(max(low, 1) * high)), low + 1), high - 1)
            if made >= learns_at:
                allocator = self._allocator(self._corrected_program(trials)[0])
                learns_at = max(made + 1, math.ceil(made * _GROWTH))
            solution = allocator.solve(middle)
            if solution.cost > low:
                heappush(gaps, _gap(low, solution.cost))
                made += 1
                yield self._proposal(solution)
            heappush(gaps, _gap(middle, high))

    def refinements(
        self,
        trials: Callable[[], Sequence[Trial]],
        samples: Callable[[], Mapping[int, SampleResults]],
    ) -> Iterator[Proposal]:
        """Swaps around the best plans within the job's limits, or at every budget in turn.

        Args:
            trials: Reads the study's trials.
            samples: Reads what came out for each sample of them, by their numbers.
        """
        refiner = Refiner(self._all_cells(), self._resources, self._targets())
        tried: set[Plan] = set()
        errors: Mapping[Place, float] | None = None
        learns_at = 0
        while True:
            known = [
                trial
                for trial in trials()
                if not trial.configuration.trained_by and trial.state is not TrialState.OUTDATED
            ]
            tried |= {trial.configuration.plan for trial in known}
            measured = self._measured_plans(known, samples())
            if len(measured) >= learns_at:
                correction = self._corrected(known)
                errors = correction.errors if correction and correction.is_better else None
                learns_at = max(len(measured) + 1, math.ceil(len(measured) * _GROWTH))
            plans = (
                Plan.from_options((block, choice[block.name]) for block in self._profile.blocks)
                for choice in refiner.propose(measured, errors)
            )
            plan = next((plan for plan in plans if plan not in tried), None)
            if plan is None:
                return
            tried.add(plan)
            yield Proposal(Configuration(plan), Origin.REFINEMENT)

    def _all_cells(self) -> dict[str, list[Cell]]:
        """The cells of every block whose resources are known."""
        return by_block(measured_cells(self._profile.cells, self._resources))

    def _targets(self) -> list[list[int]]:
        """What refined plans may take of each resource: the limits, or what each solution takes."""
        limits = {limit.resource: limit.most for limit in self._limits}
        largest = self.solutions[-1:] if limits else self.solutions
        found = []
        for solution in largest:
            taken = {
                resource: sum(whole_amount(cell, resource) for cell in solution.choice.values())
                for resource in self._resources
            }
            most = taken | {
                resource: min(most, self._budgets[-1]) if resource is self._axis_resource else most
                for resource, most in limits.items()
            }
            found.append([max(most[resource], taken[resource]) for resource in self._resources])
        return found

    def _measured_plans(
        self, trials: Sequence[Trial], samples: Mapping[int, SampleResults]
    ) -> list[MeasuredPlan]:
        """The complete plans that have cells, in the order of their numbers."""
        return [
            MeasuredPlan(dict(places), samples[trial.number], trial.origin is Origin.REFINEMENT)
            for trial in sorted(trials, key=lambda trial: trial.number)
            if trial.number in samples
            if (places := self._places(trial.configuration.plan)) is not None
        ]

    def correction(self, trials: Sequence[Trial]) -> Correction | None:
        """What the complete trials without recovery say of the cells.

        None where the job does not ask for it, or where they are too few.
        """
        return self._corrected(trials) if self._spec.search.correct_cells else None

    def _corrected(self, trials: Sequence[Trial]) -> Correction | None:
        plans = [
            (places, trial.values["divergence"])
            for trial in trials
            if trial.state is TrialState.COMPLETE and not trial.configuration.trained_by
            if "divergence" in trial.values
            if (places := self._places(trial.configuration.plan)) is not None
        ]
        return correct(self._errors, [places for places, _ in plans], [d for _, d in plans])

    def _corrected_program(self, trials: Callable[[], Sequence[Trial]]) -> tuple[Program, bool]:
        """The program on corrected cells, or as it is; whether it is corrected."""
        if not self._spec.search.correct_cells:
            return self._program, False
        correction = self.correction(trials())
        if correction is None or not correction.is_better:
            return self._program, False
        cells = {
            name: undominated(
                [replace(cell, error=correction.errors[name, cell.option]) for cell in own],
                self._resources,
            )
            for name, own in self._cells.items()
        }
        return Program.of(cells, self._axis_resource, self._limits), True

    def _proposal(self, solution: Solution) -> Proposal:
        return Proposal(Configuration(self._plan(solution)), Origin.PROGRAM)

    def _plan(self, solution: Solution) -> Plan:
        return Plan.from_options(
            (block, solution.choice[block.name].option) for block in self._profile.blocks
        )

    def proxy_error(self, plan: Plan) -> float | None:
        """The summed error of a plan's cells and pairs; None where a cell was not measured."""
        places = self._places(plan)
        if places is None:
            return None
        pairs = (self._interactions.get(pair, 0.0) for pair in pairwise(places))
        return sum(self._errors[place] for place in places) + sum(pairs)

    def _places(self, plan: Plan) -> list[Place] | None:
        """The cells of a plan by block and option; None where one was not measured."""
        places = [(block.name, plan.option(block)) for block in self._profile.blocks]
        return places if all(place in self._errors for place in places) else None

    def correlation(
        self, trials: Sequence[Trial], estimates: Mapping[int, float] = MappingProxyType({})
    ) -> ProxyCorrelation | None:
        """Spearman's rank correlation of proxy and error, over trials without recovery.

        None where fewer than four trials have both, or where one of the two does not vary.

        Args:
            trials: Of the study.
            estimates: The estimated errors that are known, by number; they stand for the measured.
        """
        pairs = [
            (proxy, estimates.get(trial.number, trial.values["error"]))
            for trial in trials
            if trial.state is TrialState.COMPLETE and not trial.configuration.trained_by
            if (proxy := self.proxy_error(trial.configuration.plan)) is not None
        ]
        if len(pairs) < 4:
            return None
        value = rank_correlation([proxy for proxy, _ in pairs], [error for _, error in pairs])
        if value is None:
            return None
        return ProxyCorrelation(value, *rank_interval(value, len(pairs)))

    def widened(self) -> SearchSpace:
        """The space under a larger epsilon, for where the proxy misleads."""
        self.pruned = self._prune(self._spec.search.epsilon * _WIDER)
        self.space = self._space(self.pruned)
        return self.space

    def option_records(self) -> list[OptionRecord]:
        """Every option with a cell, whether it survives, and the proof where it does not."""
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
                certificate |= self._conditions()
            elif place in kept:
                certificate = {}
            elif not measured_cells([cell], self._resources):
                certificate = {"kind": "no_kernel"}
            else:
                certificate = {"kind": "dominated"}
            if cell.is_estimate:
                certificate["estimated_by"] = self._spec.profile.score.value
            records.append(OptionRecord(cell, place in kept, certificate))
        return records

    def _conditions(self) -> dict[str, object]:
        """What all certificates are about: the resource of the budgets, and the limits."""
        assert self.pruned is not None
        return {"resource": self.pruned.resource, "limits": list(self.pruned.limits)}


def _gap(low: int, high: int) -> tuple[float, int, int]:
    """A gap between two costs, as a heap of the widest first holds it."""
    return -math.log(max(high, 1) / max(low, 1)), low, high

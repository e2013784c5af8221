"""What a study evaluates next: its seeds, then what program, swaps and sampler propose."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from bitfront.spec import JobSpec
from bitfront.trial import Origin, Proposal, Trial, TrialState
from search.sampler import Proposer
from search.shares import Shares
from search.space import SearchSpace


class Proposals:
    """The seeds, further plans, and a sampler that knows all trials; none comes twice.

    Attributes:
        is_exhausted: Whether no configuration is found that is new.
    """

    def __init__(
        self,
        spec: JobSpec,
        space: SearchSpace,
        seeds: Iterable[Proposal],
        review: Callable[[Sequence[Trial]], SearchSpace | None],
        further: Mapping[Origin, Iterable[Proposal]] = MappingProxyType({}),
    ) -> None:
        """Takes what there is to choose from.

        Args:
            spec: The job.
            space: What the sampler may choose.
            seeds: What comes first, in this order.
            review: Called once, with all trials, when every seed has been handed out and
                none is running; returns a wider space, or None to continue.
            further: What others propose after the seeds, such as the program its plans at further
                budgets: they share the trials with the sampler, see `search.shares`.
        """
        self._further = {origin: iter(proposals) for origin, proposals in further.items()}
        self._shares = Shares()
        self._search = spec.search
        self._objectives = [objective.value for objective in spec.objectives]
        self._seeds = deque(seeds)
        self._review = review
        self._is_reviewed = False
        self._known: set[str] = set()
        self.is_exhausted = False
        self._proposer = self._make_proposer(space)

    def _make_proposer(self, space: SearchSpace) -> Proposer:
        search = self._search
        return Proposer(
            space, self._objectives, search.sampler, search.seed, history=search.history
        )

    @property
    def has_seeds(self) -> bool:
        """Whether there are seeds left."""
        return bool(self._seeds)

    def restore(self, trials: Sequence[Trial]) -> None:
        """Takes in all trials of an earlier driver that can be compared, in their order."""
        trials = _comparable(trials)
        self._known |= {trial.configuration.digest for trial in trials}
        self._restore_proposer(trials)
        for trial in trials:
            self._shares.propose(trial.origin)
            if trial.state is not TrialState.RUNNING:
                self._finish(trial)

    def _restore_proposer(self, trials: Sequence[Trial]) -> None:
        self._proposer.restore([trial for trial in trials if trial.state.is_measured])
        for trial in trials:
            if trial.state is TrialState.RUNNING:
                self._proposer.start(trial.configuration)
            elif not trial.state.is_measured:
                self._proposer.tell(trial)

    def next(self, *, is_running: bool, trials: Callable[[], Sequence[Trial]]) -> Proposal | None:
        """The next proposal; None if there is none now.

        Args:
            is_running: Whether any trial runs.
            trials: Reads all trials of the study, for the review.
        """
        while self._seeds:
            seed = self._seeds.popleft()
            if seed.configuration.digest not in self._known:
                return self._started(seed)
        if not self._is_reviewed:
            if is_running:
                return None
            self._look_back(trials())
        proposal = self._propose()
        if proposal is None and not is_running:
            self.is_exhausted = True
        return proposal

    def _propose(self) -> Proposal | None:
        """What somebody proposes: whoever's turn it is, or the next one, if nothing is new."""
        asked = [*self._further, Origin.SAMPLER]
        while asked:
            origin = self._shares.next(asked)
            asked.remove(origin)
            further = self._further.get(origin)
            if further is None:
                proposal = self._proposer.propose()
            else:
                proposal = self._next_new(origin, further)
            if proposal is not None:
                return proposal
        return None

    def _next_new(self, origin: Origin, further: Iterator[Proposal]) -> Proposal | None:
        """The next of some proposals that is new; after the last one nobody is asked again."""
        for proposal in further:
            if proposal.configuration.digest not in self._known:
                return self._started(proposal)
        del self._further[origin]
        return None

    def _started(self, proposal: Proposal) -> Proposal:
        """A proposal that is not the sampler's, with its parameters; the sampler hears of it."""
        self._proposer.start(proposal.configuration)
        params = self._proposer.space.params(proposal.configuration) or {}
        return replace(proposal, params=params)

    def _finish(self, trial: Trial) -> None:
        is_feasible = trial.state is TrialState.COMPLETE and trial.is_feasible
        values = [trial.values[name] for name in self._objectives] if is_feasible else None
        self._shares.finish(trial.origin, values)

    def _look_back(self, trials: Sequence[Trial]) -> None:
        """Lets the space be widened once the seeds have been measured."""
        self._is_reviewed = True
        wider = self._review(trials)
        if wider is not None:
            self._proposer = self._make_proposer(wider)
            self._restore_proposer(_comparable(trials))

    def start(self, trial: Trial) -> None:
        """Takes in that a trial was made of a proposal."""
        self._known.add(trial.configuration.digest)
        self._shares.propose(trial.origin)

    def tell(self, trial: Trial) -> None:
        """Takes in how a trial ended."""
        self._proposer.tell(trial)
        self._finish(trial)


def _comparable(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state is not TrialState.OUTDATED]

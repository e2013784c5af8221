"""What a study evaluates next: first its seeds, then what the sampler proposes."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from bitfront.spec import JobSpec
from bitfront.trial import Proposal, Trial, TrialState
from search.sampler import Proposer
from search.space import SearchSpace


class Proposals:
    """The seeds, and a sampler that knows all trials; no configuration comes twice.

    Attributes:
        is_exhausted: Whether the sampler finds no configuration that is new.
    """

    def __init__(
        self,
        spec: JobSpec,
        space: SearchSpace,
        seeds: Iterable[Proposal],
        review: Callable[[Sequence[Trial]], SearchSpace | None],
    ) -> None:
        """Takes what there is to choose from.

        Args:
            spec: The job.
            space: What the sampler may choose.
            seeds: What comes first, in this order.
            review: Called once, with all trials, when every seed has been handed out and
                none is running; returns a wider space, or None to continue.
        """
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
        """Tells the sampler everything that can be compared, in the order of the trials."""
        trials = [trial for trial in trials if trial.state is not TrialState.OUTDATED]
        self._known |= {trial.configuration.digest for trial in trials}
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
                self._proposer.start(seed.configuration)
                params = self._proposer.space.params(seed.configuration) or {}
                return replace(seed, params=params)
        if not self._is_reviewed:
            if is_running:
                return None
            self._look_back(trials())
        proposal = self._proposer.propose()
        if proposal is None and not is_running:
            self.is_exhausted = True
        return proposal

    def _look_back(self, trials: Sequence[Trial]) -> None:
        """Lets the space be widened once the seeds have been measured."""
        self._is_reviewed = True
        wider = self._review(trials)
        if wider is not None:
            self._proposer = self._make_proposer(wider)
            self.restore(trials)

    def start(self, trial: Trial) -> None:
        """Takes in that a trial was made of a proposal."""
        self._known.add(trial.configuration.digest)

    def tell(self, trial: Trial) -> None:
        """Takes in how a trial ended."""
        self._proposer.tell(trial)

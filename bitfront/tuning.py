"""Tuning: one experiment over the settings of a recovery for one plan, sample by sample."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bitfront.plan import Configuration, Plan, Recovery
from bitfront.trial import TrialState


@dataclass(frozen=True, slots=True)
class TuningSample:
    """One recovery that an experiment trains.

    A pruned sample was stopped at a rung, since others had done better there; a failed one
    will not be tried again.

    Attributes:
        number: Counts from 0 within the experiment; used once.
        recovery: Its settings.
        nbytes: What the plan takes with it.
        state: Where it stands.
        attempt: Counts from 1; goes up with every driver that starts it again.
        errors: Optimiser step to the error on the selection split, in rising order.
        test_error: On the test split; only of the sample that was chosen in the end.
        message: Why it failed; None otherwise.
    """

    number: int
    recovery: Recovery
    nbytes: int
    state: TrialState = TrialState.RUNNING
    attempt: int = 1
    errors: Mapping[int, float] = field(default_factory=dict)
    test_error: float | None = None
    message: str | None = None

    def on(self, plan: Plan) -> Configuration:
        """The configuration that the sample evaluates."""
        return Configuration(plan, self.recovery)

    @property
    def step(self) -> int:
        """The step of its last error; 0 before there is one."""
        return max(self.errors, default=0)

    @property
    def error(self) -> float | None:
        """The error that it showed last."""
        return self.errors.get(self.step)


def best_sample(samples: Mapping[int, TuningSample]) -> TuningSample | None:
    """The complete sample of the lowest error; of several, the smallest."""
    complete = [s for s in samples.values() if s.state is TrialState.COMPLETE]
    return min(complete, key=_preference, default=None)


def _preference(sample: TuningSample) -> tuple[float, int, int]:
    assert sample.error is not None
    return sample.error, sample.nbytes, sample.number


def rungs(longest: int, reduction_factor: int, grace_steps: int) -> tuple[int, ...]:
    """The steps at which samples are compared: those of successive halving, the last excluded.

    Args:
        longest: The most steps that a sample takes.
        reduction_factor: Of the samples at a rung, one in so many goes on.
        grace_steps: The first rung.
    """
    steps = []
    step = grace_steps
    while step < longest:
        steps.append(step)
        step *= reduction_factor
    return tuple(steps)

"""Trials made up for tests and benchmarks of samplers, without a stored study."""

from collections.abc import Sequence

from bitfront.plan import Configuration
from bitfront.trial import Origin, Trial, TrialState

OBJECTIVES = ("error", "nbytes")


def complete(configuration: Configuration, values: Sequence[float]) -> Trial:
    """A complete trial with its values, in the order of `OBJECTIVES`."""
    named = dict(zip(OBJECTIVES, values, strict=True))
    return Trial(
        "benchmark", 0, configuration, Origin.SAMPLER, state=TrialState.COMPLETE, values=named
    )


def pruned(configuration: Configuration) -> Trial:
    """A trial that stopped early."""
    return Trial("benchmark", 0, configuration, Origin.SAMPLER, state=TrialState.PRUNED)

"""Attempts at trials: what is asked of a worker, what it shows, and how the attempt ends."""

from dataclasses import dataclass, field

from bitfront.plan import Configuration
from bitfront.trial import Cause, Evaluation, Trial


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a trial, ready to be handed to a worker.

    Attributes:
        trial: The trial, as it runs.
        evaluation_key: Names the configuration's evaluation in the shared cache.
        halvings: How often the batch is halved, since memory ran out before.
    """

    trial: Trial
    evaluation_key: str
    halvings: int = 0

    @property
    def number(self) -> int:
        """Counts from 1 within the trial."""
        return self.trial.attempts

    @property
    def configuration(self) -> Configuration:
        """What is evaluated."""
        return self.trial.configuration


@dataclass(frozen=True, slots=True)
class IntermediateValue:
    """What a recovery in training shows after some optimiser steps.

    Attributes:
        step: Steps taken; 0 is the plan without recovery.
        value: The error on the selection split.
    """

    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """What is known of every attempt that ended.

    Attributes:
        seconds: How long it took.
        worker: Who made it; empty where that is unknown.
        digest: Of the configuration; empty where the attempt came back by itself.
    """

    seconds: float = 0.0
    worker: str = ""
    digest: str = ""

    def is_of(self, configuration: Configuration) -> bool:
        """Whether it may be this configuration's: after a restored backup, a file may not be."""
        return self.digest in ("", configuration.digest)


@dataclass(frozen=True, slots=True)
class Evaluated(_Result):
    """An attempt that completes its trial.

    Attributes:
        evaluation: What was measured.
        is_cached: Whether it came from the cache of evaluations.
    """

    evaluation: Evaluation
    is_cached: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Failed(_Result):
    """An attempt that yielded nothing.

    Attributes:
        cause: The kind of failure, which decides whether the trial is tried again.
        message: The error in one line.
        traceback: Where it was raised; empty where there is none.
        is_final: Whether another attempt would end in the same way.
    """

    cause: Cause
    message: str
    traceback: str = ""
    is_final: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Pruned(_Result):
    """An attempt that stopped early: its trial could not reach the front any more."""


AttemptResult = Evaluated | Failed | Pruned
"""How an attempt ended."""

"""What a scheduler hands out, and what it is given to begin with."""

from dataclasses import dataclass

from bitfront.plan import Configuration
from bitfront.trial import Origin


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt at a trial, ready to be handed to a worker.

    Attributes:
        number: The trial's.
        attempt: Counts from 1.
        configuration: What is evaluated.
        halvings: How often the batch is halved, since memory ran out before.
    """

    number: int
    attempt: int
    configuration: Configuration
    halvings: int = 0


@dataclass(frozen=True, slots=True)
class Seed:
    """A configuration that is evaluated before the sampler is asked."""

    configuration: Configuration
    origin: Origin

"""What a tuning asks of its workers; `workers/cluster/ray_tuning.py` does it on a Ray cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bitfront.layers import Layer
from bitfront.plan import Configuration, Plan, Recovery
from workers.scheduling.placement import Footprint
from workers.scheduling.sample_scheduler import SampleScheduler
from workers.scheduling.spool import Spool


@dataclass(frozen=True, slots=True)
class RecoveryShape:
    """The settings that a recovery's bytes depend on."""

    context_length: int
    class_specific: bool
    reduction: int
    adapter_bits: int

    @classmethod
    def of(cls, recovery: Recovery) -> "RecoveryShape":
        """The shape of a recovery."""
        return cls(
            recovery.context_length,
            recovery.class_specific,
            recovery.reduction,
            recovery.adapter_bits,
        )


@dataclass(frozen=True, slots=True)
class TuningInfo:
    """What the driver must know of model, data and plan; the model itself stays on a worker.

    Attributes:
        layers: The model's.
        footprint: The memory that it was seen to take.
        model: The model's identity.
        weights: The identity of its weights alone.
        identity: The hash of all that a recovery depends on, beside its settings.
        knows_classes: Whether it tells classes apart; a generative model knows none.
        nbytes: What the plan takes with a recovery of each shape that the model can have.
    """

    layers: tuple[Layer, ...]
    footprint: Footprint
    model: str
    weights: str
    identity: str
    knows_classes: bool
    nbytes: Mapping[RecoveryShape, int]


@dataclass(frozen=True, slots=True)
class TunedRecovery:
    """A finished recovery: the files of its folder, and how it does.

    Attributes:
        files: Name to content, in the order in which they are written.
        nbytes: The bytes of the packed checkpoint, part by part.
        selection_error: `full_precision`, `quantized` and `tuned`.
        test_error: The same on the test split.
    """

    files: Mapping[str, bytes]
    nbytes: Mapping[str, int]
    selection_error: Mapping[str, float]
    test_error: Mapping[str, float]


class TuningPool(Protocol):
    """All the work of a tuning. A method raises `Interrupted` when it is to end."""

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know of where the work is placed."""

    def use_bounds(self, bounds: Mapping[str, object]) -> None:
        """Tells all later work the learned bounds."""

    def look_at(self, plan: Plan, shapes: Sequence[RecoveryShape]) -> TuningInfo:
        """Loads the model on a worker; all later work asks for the memory that it took."""

    def run_samples(
        self, scheduler: SampleScheduler, spool: Spool, epoch: int, is_over: Callable[[], bool]
    ) -> None:
        """Trains samples until the scheduler has no more.

        Raises:
            BitfrontError: What the scheduler raised: a lost lease, a database that is away.
        """

    def finish(self, configuration: Configuration, number: int, spool: Spool) -> TunedRecovery:
        """The recovery of a complete sample, with its errors on both splits."""

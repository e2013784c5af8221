"""The worker configuration: what a worker process needs to know of a job."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from bitfront.spec import JobSpec


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The job, and what earlier stages found for all workers.

    Equal by content and hashable: a worker that has seen an equal one has the model loaded.

    Attributes:
        spec: The job.
        bounds: Learned bounds of the vision tower's inputs, as JSON content; empty without.
    """

    spec: JobSpec
    bounds: Mapping[str, object] = field(default_factory=dict)

    def __hash__(self) -> int:
        # The fields hold mappings. Bounds are learnt once a job, so its own digest is enough.
        return hash(self.spec.digest)

    def with_halved_batch(self, times: int) -> Self:
        """The configuration with a smaller batch, for an attempt after memory ran out."""
        return replace(self, spec=self.spec.with_halved_batch(times))

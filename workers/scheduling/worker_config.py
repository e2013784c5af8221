"""A work order: what a worker process needs to know of a job, as one text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Self

from bitfront.plan import canonical_json
from bitfront.spec import JobSpec


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The job, and what earlier stages found for all workers.

    Attributes:
        spec: The job.
        bounds: Learned bounds of the vision tower's inputs, as JSON content; empty without.
    """

    spec: JobSpec
    bounds: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> str:
        """One text for equal orders: a worker that has seen it has the model loaded."""
        return canonical_json(
            {"spec": self.spec.model_dump(mode="json"), "bounds": dict(self.bounds)}
        )

    def with_halved_batch(self, times: int) -> Self:
        """The order with a smaller batch, for an attempt after memory ran out."""
        data = self.spec.data
        batch_size = max(1, data.batch_size >> times)
        smaller = data.model_copy(update={"batch_size": batch_size})
        return replace(self, spec=self.spec.model_copy(update={"data": smaller}))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The order that `to_json` wrote."""
        content = json.loads(text)
        return cls(JobSpec.model_validate(content["spec"]), content["bounds"])

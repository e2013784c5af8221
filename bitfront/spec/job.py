"""A whole job."""

from typing import Final, Self

from pydantic import Field, model_validator

from bitfront.objective import CACHE_SIZES, TIMES, Objective
from bitfront.plan import digest
from bitfront.spec.data import DataSource, DataSpec
from bitfront.spec.model import ModelSource, ModelSpec
from bitfront.spec.profile import PartitionSpec, ProfileSpec
from bitfront.spec.quantizer import QuantizerSpec
from bitfront.spec.resources import ResourcesSpec
from bitfront.spec.search import ConstraintSpec, SearchSpec, StopSpec
from bitfront.spec.section import Section
from bitfront.spec.space import SpaceSpec
from bitfront.spec.tracking import TrackingSpec
from bitfront.targets import DeploymentTarget, target_named
from bitfront.tasks import TaskKind, meant_tasks

MOST_TOKENS: Final = 1 << 30
STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class JobSpec(Section):
    """A whole search job.

    `target` is the runtime that the results are for: what it has no kernel for is refused,
    latencies are measured in it, and for gguf bytes are counted and inputs rounded as llama.cpp
    does it. `context_tokens` is how many tokens of one sequence `kv_nbytes` and `memory_nbytes` are
    counted for.
    """

    study: str = Field(pattern=STUDY_NAME)
    model: ModelSpec
    data: DataSpec
    quantizer: QuantizerSpec = QuantizerSpec()
    space: SpaceSpec = SpaceSpec()
    partition: PartitionSpec = PartitionSpec()
    profile: ProfileSpec = ProfileSpec()
    objectives: tuple[Objective, ...] = (Objective.ERROR, Objective.NBYTES)
    constraints: ConstraintSpec = ConstraintSpec()
    search: SearchSpec = SearchSpec()
    stop: StopSpec = StopSpec()
    tracking: TrackingSpec = TrackingSpec()
    resources: ResourcesSpec = ResourcesSpec()
    target: DeploymentTarget = DeploymentTarget.ANY
    context_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)

    @model_validator(mode="after")
    def _has_objectives(self) -> Self:
        if len(self.objectives) < 2 or self.objectives[0] is not Objective.ERROR:
            raise ValueError("objectives must start with error and name at least one more")
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError("objectives name one twice")
        return self

    def needs(self, objective: Objective) -> bool:
        """Whether the job minimises or limits it, and so has to measure it."""
        return objective in self.objectives or objective in self.constraints.limits

    @property
    def counts_cache(self) -> bool:
        """Whether the bytes of the KV cache are minimised or limited, alone or with others."""
        return any(map(self.needs, CACHE_SIZES))

    @property
    def is_timed(self) -> bool:
        """Whether the job has to measure a time."""
        return any(map(self.needs, TIMES))

    @property
    def timed_in(self) -> DeploymentTarget | None:
        """The target that latencies are measured in; None for torch's kernels, or for none."""
        target = target_named(self.target)
        return self.target if target is not None and target.is_timed and self.is_timed else None

    @property
    def is_blocked(self) -> bool:
        """Whether bytes are counted and inputs rounded in blocks, as the target does it."""
        target = target_named(self.target)
        return target is not None and target.is_blocked

    def with_halved_batch(self, times: int) -> Self:
        """The job as an attempt runs it after memory ran out so many times."""
        batch_size = max(1, self.data.batch_size >> times)
        smaller = self.data.model_copy(update={"batch_size": batch_size})
        return self.model_copy(update={"data": smaller})

    @property
    def asks(self) -> bool:
        """Whether the model is known, without loading it, to answer questions."""
        return self.model.asks is True or any(x.asks for x in self._named)

    @property
    def compares(self) -> bool:
        """Whether the model is known, without loading it, to compare images with texts."""
        return self.model.asks is False or any(x.asks is False for x in self._named)

    @property
    def tasks(self) -> tuple[TaskKind, ...]:
        """The tasks that may be meant, as far as is known without loading the model.

        None where task, source and model do not go together.
        """
        data = self.data
        return meant_tasks(data.source, data.task, asks=self.model.asks)

    @property
    def task(self) -> TaskKind | None:
        """The task that is meant; None where only the loaded model decides."""
        return self.tasks[0] if len(self.tasks) == 1 else None

    def may_be(self, task: TaskKind) -> bool:
        """Whether a task may be meant, as far as is known without loading the model."""
        return task in self.tasks

    @property
    def _named(self) -> tuple[TaskKind, ...]:
        """The task that the data are for, whatever the model; none where they leave a choice."""
        found = meant_tasks(self.data.source, self.data.task, asks=None)
        return found if len(found) == 1 else ()

    @property
    def is_bundled(self) -> bool:
        """Whether model and data are bitfront's own, so that nothing of a person's is read."""
        return (
            self.model.source is ModelSource.REFERENCE and self.data.source is DataSource.REFERENCE
        )

    @property
    def digest(self) -> str:
        """The hash of the whole specification."""
        return digest(self.model_dump(mode="json"))

"""Models of any kind at a task of a person's own."""

from dataclasses import dataclass
from typing import Self

from bitfront.spec import DataSpec, JobSpec
from bitfront.tasks import own_task
from bitfront.vlm import DualEncoder, LayeredModel, PlanSwitch
from objectives.cost.latency import LatencyMeter, LatencyTable
from objectives.data.own import InstalledPackageTask, load_own
from objectives.evaluation.families.family import Family
from objectives.evaluation.families.retrieval import image_meter
from objectives.evaluation.own_scorer import OwnScorer
from objectives.evaluation.scorer import ScoringContext, refuse_recovery


@dataclass(frozen=True)
class OwnFamily(Family):
    """A model at what an installed package does with it."""

    task: InstalledPackageTask

    @classmethod
    def load(cls, spec: DataSpec, model: LayeredModel) -> Self:
        """The family with the task that a job names.

        Raises:
            BitfrontError: As `load_own` does.
        """
        return cls(load_own(spec, model))

    def scorer(self, context: ScoringContext) -> OwnScorer:
        """The scorer of the task's own errors."""
        return OwnScorer(self.task, context)

    def check(self, spec: JobSpec) -> None:
        """Refuses P4Q, which has no loss here.

        Raises:
            SpecError: The job asks for it.
        """
        if spec.space.p4q is not None:
            refuse_recovery(own_task(self.task.package.name))

    def latency_meters(
        self, switch: PlanSwitch, spec: JobSpec, table: LatencyTable
    ) -> tuple[LatencyMeter, ...]:
        """What times an image of a dual encoder in torch.

        Raises:
            SpecError: The model is of another kind.
        """
        model = self.task.model
        if not isinstance(model, DualEncoder):
            return super().latency_meters(switch, spec, table)
        return (image_meter(model, switch, spec, table),)

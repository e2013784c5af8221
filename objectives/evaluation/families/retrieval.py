"""Dual encoders that find images by captions, and captions by images."""

from dataclasses import dataclass
from typing import Self

from bitfront.spec import DataSpec, JobSpec
from bitfront.tasks import RETRIEVAL
from bitfront.vlm import DualEncoder, PlanSwitch
from objectives.cost.latency import LatencyMeter, LatencyTable
from objectives.cost.runtimes.choose import choose_runtime
from objectives.cost.runtimes.stages import image_stage
from objectives.data.inspection import Inspector
from objectives.data.retrieval import RetrievalTask, load_retrieval
from objectives.evaluation.families.family import Family
from objectives.evaluation.retrieval_scorer import RetrievalScorer
from objectives.evaluation.scorer import ScoringContext, refuse_recovery


@dataclass(frozen=True)
class RetrievalFamily(Family):
    """A dual encoder at image-text retrieval."""

    task: RetrievalTask

    @classmethod
    def load(cls, spec: DataSpec, model: DualEncoder, inspector: Inspector) -> Self:
        """The family with the images and captions of a job.

        Raises:
            BitfrontError: As `load_retrieval` does.
        """
        return cls(load_retrieval(spec, model, inspector))

    def scorer(self, context: ScoringContext) -> RetrievalScorer:
        """The scorer of recall in both directions."""
        return RetrievalScorer(self.task, context)

    def check(self, spec: JobSpec) -> None:
        """Refuses P4Q, which has no loss here.

        Raises:
            SpecError: The job asks for it.
        """
        if spec.space.p4q is not None:
            refuse_recovery(RETRIEVAL)

    def latency_meters(
        self, switch: PlanSwitch, spec: JobSpec, table: LatencyTable
    ) -> tuple[LatencyMeter, ...]:
        """What times an image: captions that are searched are encoded once.

        Raises:
            UnavailableDevice: The job's target is not installed.
        """
        return (image_meter(self.task.model, switch, spec, table),)


def image_meter(
    model: DualEncoder, switch: PlanSwitch, spec: JobSpec, table: LatencyTable
) -> LatencyMeter:
    """What times an image in the job's target, or in torch, in batches of the job's size.

    Raises:
        UnavailableDevice: The target is not installed.
    """
    runtime = choose_runtime(spec, model, switch)
    stage = image_stage(model, runtime, spec.data.batch_size)
    return LatencyMeter(model, switch, stage, runtime, spec.quantizer, table)

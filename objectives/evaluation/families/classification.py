"""Dual encoders that tell classes apart."""

from dataclasses import dataclass
from typing import ClassVar, Self

from bitfront.spec import DataSpec, JobSpec
from bitfront.vlm import DualEncoder, PlanSwitch
from objectives.cost.latency import LatencyMeter, LatencyTable
from objectives.cost.runtimes.choose import choose_runtime
from objectives.cost.runtimes.stages import image_stage
from objectives.data.classification import ClassificationTask, load_classification
from objectives.data.inspection import Inspector
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.families.family import Family
from objectives.evaluation.scorer import ScoringContext


@dataclass(frozen=True)
class ClassificationFamily(Family):
    """A dual encoder at zero-shot classification."""

    task: ClassificationTask
    knows_classes: ClassVar[bool] = True

    @classmethod
    def load(cls, spec: DataSpec, model: DualEncoder, inspector: Inspector) -> Self:
        """The family with the classes and images of a job.

        Raises:
            BitfrontError: As `load_classification` does.
        """
        return cls(load_classification(spec, model, inspector))

    def scorer(self, context: ScoringContext) -> ClassificationScorer:
        """The scorer of zero-shot classification."""
        return ClassificationScorer(self.task, context)

    def check(self, spec: JobSpec) -> None:
        """Refuses nothing: what a device cannot time shows when it is timed."""

    def latency_meters(
        self, switch: PlanSwitch, spec: JobSpec, table: LatencyTable
    ) -> tuple[LatencyMeter, ...]:
        """What times an image: the captions are encoded once for a task.

        Raises:
            UnavailableDevice: The job's target is not installed.
        """
        model, task = self.task.model, self.task
        runtime = choose_runtime(spec, model, switch, task.class_count)
        stage = image_stage(model, runtime, task.batch_size)
        return (LatencyMeter(model, switch, stage, runtime, spec.quantizer, table),)

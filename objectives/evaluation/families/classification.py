"""Dual encoders that tell classes apart."""

from dataclasses import dataclass
from typing import Self

from bitfront.plan import Configuration
from bitfront.spec import DataSpec, JobSpec, QuantizerSpec
from bitfront.vlm import DualEncoder, PlanSwitch
from objectives.cost.latency import LatencyTable, measure_latency
from objectives.data.classification import ClassificationTask, load_classification
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.families.family import Family
from objectives.evaluation.scorer import ScoringContext


@dataclass(frozen=True)
class ClassificationFamily(Family):
    """A dual encoder at zero-shot classification."""

    task: ClassificationTask

    @classmethod
    def load(cls, spec: DataSpec, model: DualEncoder) -> Self:
        """The family with the classes and images of a job.

        Raises:
            BitfrontError: As `load_classification` does.
        """
        return cls(load_classification(spec, model))

    def scorer(self, context: ScoringContext) -> ClassificationScorer:
        """The scorer of zero-shot classification."""
        return ClassificationScorer(self.task, context)

    def check(self, spec: JobSpec) -> None:
        """Refuses nothing: what a device cannot time shows when it is timed."""

    def latency_s(
        self,
        configuration: Configuration,
        switch: PlanSwitch,
        quantizer: QuantizerSpec,
        table: LatencyTable,
    ) -> float:
        """The seconds for an image: the captions are encoded once for a task."""
        return measure_latency(
            self.task.model,
            configuration,
            switch,
            batch_size=self.task.batch_size,
            quantizer=quantizer,
            table=table,
        )

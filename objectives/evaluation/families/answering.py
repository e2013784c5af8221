"""Generative models that answer questions about pictures."""

from dataclasses import dataclass
from typing import Self

from bitfront.errors import SpecError
from bitfront.files import SharedPath
from bitfront.objective import Objective
from bitfront.quant.inputs import LearnedBounds
from bitfront.spec import DataSpec, JobSpec, QuantizerSpec, VisionSpec
from bitfront.vlm import GenerativeModel
from objectives.data.inspection import Inspector
from objectives.data.questions import QuestionTask, load_questions
from objectives.evaluation.answer_scorer import AnswerScorer, refuse_class_settings
from objectives.evaluation.families.family import Family
from objectives.evaluation.scorer import ScoringContext
from objectives.profiling.calibration import Ranges
from objectives.profiling.vision import optimise_vision


@dataclass(frozen=True)
class AnsweringFamily(Family):
    """A generative model at visual question answering."""

    task: QuestionTask

    @classmethod
    def load(cls, spec: DataSpec, model: GenerativeModel, inspector: Inspector) -> Self:
        """The family with the questions of a job.

        Raises:
            BitfrontError: As `load_questions` does.
        """
        return cls(load_questions(spec, model, inspector))

    def scorer(self, context: ScoringContext) -> AnswerScorer:
        """The scorer of greedy answers."""
        return AnswerScorer(self.task, context)

    def check(self, spec: JobSpec) -> None:
        """Refuses a latency, and a recovery's settings that need classes or augmented views.

        Raises:
            SpecError: The job asks for them.
        """
        if spec.needs(Objective.LATENCY_S):
            raise SpecError(
                "latency_s is not measured for a generative model: "
                "put bit_operations in its place among the objectives"
            )
        if spec.space.p4q is not None:
            refuse_class_settings(spec.space.p4q)

    def optimise_vision(
        self,
        ranges: Ranges,
        quantizer: QuantizerSpec,
        spec: VisionSpec,
        seed: int,
        checkpoint: SharedPath | None = None,
    ) -> LearnedBounds:
        """The bounds that lower the language model's loss on the calibration questions."""
        return optimise_vision(
            self.task.model, self.task, ranges, quantizer, spec, seed, checkpoint=checkpoint
        )

"""Generative models that answer questions about pictures."""

from dataclasses import dataclass
from typing import Self

from bitfront.files import SharedPath
from bitfront.objective import Objective
from bitfront.quant.inputs import LearnedBounds
from bitfront.spec import DataSpec, JobSpec, QuantizerSpec, VisionSpec
from bitfront.vlm import GenerativeModel, PlanSwitch
from objectives.cost.latency import LatencyMeter, LatencyTable
from objectives.cost.runtimes.choose import choose_runtime
from objectives.cost.runtimes.stages import prompt_stage, token_stage
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
        """Refuses a recovery's settings that need classes or augmented views.

        Raises:
            SpecError: The job asks for them.
        """
        if spec.space.p4q is not None:
            refuse_class_settings(spec.space.p4q)

    def latency_meters(
        self, switch: PlanSwitch, spec: JobSpec, table: LatencyTable
    ) -> tuple[LatencyMeter, ...]:
        """What times reading a prompt in batches of the job's size, and writing one token.

        Raises:
            UnavailableDevice: The job has no target, or it is not installed.
        """
        model = self.task.model
        runtime = choose_runtime(spec, model, switch)
        stages = []
        if spec.needs(Objective.LATENCY_S):
            stages.append(prompt_stage(model, runtime, spec.data.batch_size))
        if spec.needs(Objective.TOKEN_S):
            stages.append(token_stage(model, runtime))
        return tuple(
            LatencyMeter(model, switch, stage, runtime, spec.quantizer, table) for stage in stages
        )

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

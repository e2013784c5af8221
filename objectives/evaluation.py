"""Evaluating configurations, with nothing done twice: what a trial is worth on a split."""

import math
from types import MappingProxyType
from typing import Self

from bitfront.errors import InvalidMetric, SpecError
from bitfront.plan import Configuration
from bitfront.quant.inputs import LearnedBounds
from bitfront.spec import JobSpec, Objective
from bitfront.trial import Evaluation
from bitfront.vlm import DualEncoder, GenerativeModel, LayeredModel, PlanSwitch, load_model
from objectives.answer_judge import AnswerJudge
from objectives.calibration import Ranges, calibrate
from objectives.classification import ClassificationTask
from objectives.classification_judge import ClassificationJudge, Judge
from objectives.cost import bit_operations, bits_per_weight, configuration_nbytes
from objectives.latency import LatencyTable, measure_latency
from objectives.load import load_task
from objectives.questions import QuestionTask
from objectives.stopwatch import Stopwatch
from objectives.task import SplitName, Task


class Evaluator:
    """Evaluates the configurations of one job.

    It keeps quantized weights, the activations between transformer blocks, the features of
    each tower by its own part of the plan, and finished recoveries. None of it changes a
    result: values are equal to the last bit whatever was evaluated before.

    Args:
        spec: The job.
        model: Its model; the evaluator puts plans onto it.
        task: Its task.
        ranges: What `calibrate` returned for the job's clips.
        cache_nbytes: How much of the activations between blocks to keep; 0 keeps neither
            them nor features nor recoveries.
        bounds: What visual-encoder optimisation learned.

    Attributes:
        spec: The job.
        model: Its model.
        task: Its task.
        ranges: The static input ranges.
        switch: The model's switch.
        judge: What measures how well a configuration does.
    """

    def __init__(
        self,
        spec: JobSpec,
        model: LayeredModel,
        task: Task,
        ranges: Ranges,
        *,
        cache_nbytes: int = 1 << 30,
        bounds: LearnedBounds = MappingProxyType({}),
    ) -> None:
        self.spec = spec
        self.model = model
        self.task = task
        self.ranges = ranges
        self.switch = PlanSwitch(model, spec.quantizer, ranges, bounds=bounds)
        self._stopwatch = Stopwatch(model.device)
        self.judge = self._build_judge(cache_nbytes)
        self._latencies = LatencyTable()

    def _build_judge(self, cache_nbytes: int) -> Judge:
        if isinstance(self.task, ClassificationTask):
            assert isinstance(self.model, DualEncoder)
            return ClassificationJudge(
                self.spec, self.model, self.task, self.switch, self._stopwatch, cache_nbytes
            )
        assert isinstance(self.task, QuestionTask)
        assert isinstance(self.model, GenerativeModel)
        if self._wants_latency:
            raise SpecError(
                "latency_s is not measured for a generative model: "
                "put bit_operations in its place among the objectives"
            )
        if self.spec.space.recovery is not None:
            raise SpecError(
                "a generative model has no recovery yet: leave space.recovery out of the job"
            )
        return AnswerJudge(self.model, self.task, self.switch, self._stopwatch, cache_nbytes)

    @classmethod
    def from_spec(cls, spec: JobSpec, bounds: LearnedBounds = MappingProxyType({})) -> Self:
        """Loads a job's model and task, and calibrates the model for every clip of the job.

        Raises:
            BitfrontError: The model or the data cannot be loaded.
        """
        model = load_model(spec.model)
        task = load_task(spec.data, model)
        clips = sorted({1.0, *spec.space.clips})
        return cls(spec, model, task, calibrate(model, task, clips), bounds=bounds)

    def evaluate(
        self, configuration: Configuration, split: SplitName = SplitName.SELECTION
    ) -> Evaluation:
        """The job's objectives for a configuration, and further figures.

        `error` is the share of the split's samples that come out wrong: an image whose own
        class is not the nearest among all, or a question whose greedy answer is not among the
        right ones. The metrics hold every figure that is known, objectives included: `error`,
        `loss_nats` and what else the judge measures, `nbytes` with its parts,
        `bits_per_weight`, `bit_operations`, the seconds of each stage, and what came from the
        caches (1 or 0).

        Raises:
            InvalidMetric: A figure is not finite.
            SpecError: The plan names an unknown layer or a clip that was not calibrated, or
                the configuration has a recovery that the model cannot have.
            UnavailableDevice: The job asks for a latency that cannot be measured here.
        """
        self._stopwatch.reset()
        quality = self.judge.figures(configuration, split)
        nbytes = configuration_nbytes(self.model, configuration, self.spec.quantizer)
        figures = {
            **quality,
            Objective.NBYTES.value: float(sum(nbytes.values())),
            "bits_per_weight": bits_per_weight(self.model, configuration),
            Objective.BIT_OPERATIONS.value: bit_operations(self.model, configuration),
        }
        if self._wants_latency:
            figures[Objective.LATENCY_S.value] = self._latency_s(configuration)
        for name, value in figures.items():
            if not math.isfinite(value):
                raise InvalidMetric(name, str(value))
        values = {objective.value: figures[objective.value] for objective in self.spec.objectives}
        figures |= {f"nbytes.{part}": float(count) for part, count in nbytes.items()}
        return Evaluation(values, figures | self._stopwatch.figures())

    @property
    def _wants_latency(self) -> bool:
        is_limited = self.spec.constraints.max_latency_s is not None
        return Objective.LATENCY_S in self.spec.objectives or is_limited

    def _latency_s(self, configuration: Configuration) -> float:
        assert isinstance(self.model, DualEncoder)
        assert isinstance(self.task, ClassificationTask)
        with self._stopwatch.timed("latency"):
            return measure_latency(
                self.model,
                configuration,
                self.switch,
                batch_size=self.task.batch_size,
                quantizer=self.spec.quantizer,
                table=self._latencies,
            )

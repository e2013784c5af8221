"""What a model family is: one factory for the task, the scorer and the trainings of a job."""

from abc import ABC, abstractmethod
from typing import ClassVar

from bitfront.errors import SpecError
from bitfront.files import SharedPath
from bitfront.quant.inputs import LearnedBounds
from bitfront.spec import JobSpec, QuantizerSpec, VisionSpec
from bitfront.vlm import PlanSwitch
from objectives.cost.latency import LatencyMeter, LatencyTable
from objectives.data.task import Task
from objectives.evaluation.scorer import Scorer, ScoringContext
from objectives.profiling.calibration import Ranges


class Family(ABC):
    """A loaded model at its task.

    A new family is a subclass in a file of its own, and an entry in the registry beside it. It
    must have a task and a scorer, which trains recoveries; what else it can do replaces a
    refusal here.

    Attributes:
        task: The samples, with the model that they run through.
        knows_classes: Whether a recovery's settings about classes mean something.
    """

    task: Task
    knows_classes: ClassVar[bool] = False

    @abstractmethod
    def scorer(self, context: ScoringContext) -> Scorer:
        """What measures configurations and trains their recoveries."""

    @abstractmethod
    def check(self, spec: JobSpec) -> None:
        """Refuses a job that asks for what the family cannot measure or train.

        Raises:
            SpecError: It does.
        """

    def latency_meters(
        self, switch: PlanSwitch, spec: JobSpec, table: LatencyTable
    ) -> tuple[LatencyMeter, ...]:
        """What times configurations and layers: one meter for each time that the job needs.

        Raises:
            SpecError: The family's times are not measured.
            UnavailableDevice: The job's target is not installed.
        """
        del switch, spec, table
        raise SpecError(
            "no time is measured for this kind of model: "
            "put bit_operations in its place among the objectives"
        )

    def optimise_vision(
        self,
        ranges: Ranges,
        quantizer: QuantizerSpec,
        spec: VisionSpec,
        seed: int,
        checkpoint: SharedPath | None = None,
    ) -> LearnedBounds:
        """The bounds of the vision tower's inputs that training finds.

        Raises:
            SpecError: The family has no loss to train them on, or the settings do not fit.
            InvalidModel: The loss is not finite, or the checkpoint cannot be used.
        """
        del ranges, quantizer, spec, seed, checkpoint
        raise SpecError(
            "profile.vision needs a generative model: it trains on the language model's loss"
        )

"""What every scorer can do: measure a configuration, and train its recovery."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NoReturn, Self, TypeVar

from cachetools import LRUCache
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.objective import Objective
from bitfront.plan import Configuration, Plan
from bitfront.samples import SampleResults
from bitfront.spec import JobSpec
from bitfront.tasks import TaskKind
from bitfront.vlm import PlanSwitch
from objectives.data.split_name import SplitName
from objectives.execution.feature_store import FeatureStore
from objectives.execution.stopwatch import Stopwatch
from objectives.recovery.checkpointed_training import advance
from objectives.recovery.training import Training

KEPT_RECOVERIES = 256

Finished = TypeVar("Finished")


@dataclass(frozen=True, slots=True)
class ScoringContext:
    """What a scorer of any family works with.

    Attributes:
        spec: The job.
        switch: Puts plans onto the model.
        stopwatch: Is told how long stages take, and what was known.
        features: Keeps what towers give.
        cache_nbytes: How much of the activations between blocks to keep; 0 keeps no recoveries
            either.
    """

    spec: JobSpec
    switch: PlanSwitch
    stopwatch: Stopwatch
    features: FeatureStore
    cache_nbytes: int


@dataclass(frozen=True, slots=True)
class Score:
    """What a configuration makes of a split.

    Attributes:
        figures: `error`, `divergence`, their standard errors and what else is measured, by name;
            NaN where the model's output is not finite.
        samples: What comes out for each sample; None where the model's output is not finite.
    """

    figures: Mapping[str, float]
    samples: SampleResults | None

    @classmethod
    def of(
        cls,
        errors: Float[Tensor, " n"],
        divergence: Float[Tensor, " n"],
        further: Mapping[str, float],
    ) -> Self:
        """The score of a split's samples.

        Args:
            errors: Each one's share in the error: their mean is the split's.
            divergence: Each one's share in the divergence from full precision, in nats: their mean
                is the split's. What is below 0 by round-off becomes 0.
            further: Other figures, by name.
        """
        nats = divergence.clamp_min(0)
        if not bool(nats.isfinite().all()):
            unknown = dict.fromkeys((Objective.ERROR.value, Objective.DIVERGENCE.value), math.nan)
            return cls({**unknown, **further}, None)
        samples = SampleResults.of_shares(errors.tolist(), nats.tolist())
        figures = {
            Objective.ERROR.value: float(errors.double().mean()),
            Objective.DIVERGENCE.value: float(nats.mean()),
        }
        return cls({**figures, **samples.standard_errors, **further}, samples)


@dataclass(frozen=True, slots=True)
class PartialScore:
    """What a configuration makes of some samples of a split.

    Attributes:
        places: The places of the samples in the split.
        divergence: Each one's share in the divergence, in nats, on the CPU.
    """

    places: Int[Tensor, " n"]
    divergence: Float[Tensor, " n"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a configuration does behind the layers of its model.

    Attributes:
        adapt: What image features go through; None without an adapter.
        classes: The names of the classes; empty where there are none.
        text_features: `(classes, d)` of the classes, of length 1; None where there are none.
    """

    adapt: Callable[[Tensor], Tensor] | None = None
    classes: tuple[str, ...] = ()
    text_features: Float[Tensor, "classes d"] | None = None


class Scorer(ABC):
    """Measures how well a configuration does its task, and trains its recovery."""

    @abstractmethod
    def score(self, configuration: Configuration, split: SplitName) -> Score:
        """What comes out for a split's samples.

        A recovery that is not known is trained from its start to its end.
        """

    def course(self, plan: Plan, split: SplitName) -> Iterator[PartialScore]:
        """What comes out for more and more samples of a split, as long as there are more.

        `score` then runs only the rest. Nothing where all is known already, where there are too
        few batches for parts, and where samples do not count for themselves.
        """
        del plan, split
        yield from ()

    def figures(self, configuration: Configuration, split: SplitName) -> dict[str, float]:
        """`error`, `loss_nats`, `divergence`, and what else is measured; a figure may be NaN."""
        return dict(self.score(configuration, split).figures)

    @abstractmethod
    def begin(self, configuration: Configuration) -> Training:
        """The training of the configuration's recovery, at its start, with the plan on."""

    @abstractmethod
    def keep(self, configuration: Configuration, stored: Mapping[str, Tensor]) -> None:
        """Takes a recovery as known, as `Training.stored` gave it.

        Raises:
            InvalidModel: It does not fit the configuration.
        """

    @abstractmethod
    def stored(self, configuration: Configuration) -> dict[str, Tensor]:
        """The tensors of a configuration's recovery, which is trained if it is not known."""

    def outputs(self, configuration: Configuration) -> Outputs:
        """What the configuration does behind the layers of its model.

        A recovery that is not known is trained.

        Raises:
            SpecError: Its recovery works inside of a model of this kind.
        """
        if configuration.recovery is not None:
            raise SpecError(
                "the P4Q recovery of a generative model works inside of its decoder, and cannot be "
                "put onto a loaded model: 'bitfront build' writes a model with it"
            )
        return Outputs()

    def classify(
        self, configuration: Configuration, pictures: Sequence[Image], top: int
    ) -> list[list[tuple[str, float]]]:
        """The `top` most likely classes of every picture with their shares, the best first.

        Raises:
            SpecError: The model does not tell classes apart.
        """
        del configuration, pictures, top
        raise SpecError("the model of this study does not tell classes apart: use 'bitfront ask'")

    def answer(self, configuration: Configuration, question: str, picture: Image | None) -> str:
        """The model's greedy answer.

        Raises:
            SpecError: The model does not answer questions.
            InvalidSample: The model cannot read the question.
        """
        del configuration, question, picture
        raise SpecError(
            "the model of this study does not answer questions: use 'bitfront classify'"
        )


class PlanScorer(Scorer):
    """Measures plans alone: P4Q has no loss for the task.

    Args:
        kind: The task.
    """

    def __init__(self, kind: TaskKind) -> None:
        self._kind = kind

    def begin(self, configuration: Configuration) -> Training:
        """Refuses a recovery."""
        del configuration
        refuse_recovery(self._kind)

    def keep(self, configuration: Configuration, stored: Mapping[str, Tensor]) -> None:
        """Refuses a recovery."""
        del configuration, stored
        refuse_recovery(self._kind)

    def stored(self, configuration: Configuration) -> dict[str, Tensor]:
        """Refuses a recovery."""
        del configuration
        refuse_recovery(self._kind)

    def _plan(self, configuration: Configuration) -> Plan:
        """What there is to measure of a configuration.

        Raises:
            SpecError: It has a recovery.
        """
        if configuration.recovery is not None:
            refuse_recovery(self._kind)
        return configuration.plan


def refuse_recovery(kind: TaskKind) -> NoReturn:
    """Refuses P4Q for a task that it has no loss for.

    Raises:
        SpecError: Always.
    """
    raise SpecError(
        f"space.recovery: {kind.without_recovery}: write recovery: {{distil: {{}}}}, or leave it "
        "out"
    )


class Recoveries(Generic[Finished]):
    """The recoveries that are known, of which those used last stay.

    Args:
        begin: Starts a configuration's training, with its plan on.
        load: Reads what a finished training stored.
        stopwatch: Is told how long training takes, and what was known.
        limit: Recoveries to keep.
    """

    def __init__(
        self,
        begin: Callable[[Configuration], Training],
        load: Callable[[Configuration, Mapping[str, Tensor]], Finished],
        stopwatch: Stopwatch,
        limit: int,
    ) -> None:
        self._begin = begin
        self._load = load
        self._stopwatch = stopwatch
        self._kept: LRUCache[str, tuple[Finished, dict[str, Tensor]]] = LRUCache(limit)

    def get(self, configuration: Configuration) -> Finished | None:
        """The configuration's recovery, known already or trained now; None if it has none."""
        if configuration.recovery is None:
            return None
        return self._known(configuration)[0]

    def stored(self, configuration: Configuration) -> dict[str, Tensor]:
        """The tensors of the configuration's recovery, known already or trained now."""
        return dict(self._known(configuration)[1])

    def keep(self, configuration: Configuration, stored: Mapping[str, Tensor]) -> Finished:
        """Takes a recovery as known."""
        finished = self._load(configuration, stored)
        if self._kept.maxsize:
            self._kept[configuration.digest] = finished, dict(stored)
        return finished

    def _known(self, configuration: Configuration) -> tuple[Finished, dict[str, Tensor]]:
        key = configuration.digest
        known = self._kept.get(key)
        self._stopwatch.hit("recovery", known is not None)
        if known is not None:
            return known
        training = self._begin(configuration)
        with self._stopwatch.timed("recovery"):
            advance(training, training.recovery.steps)
        stored = training.stored()
        return self.keep(configuration, stored), stored

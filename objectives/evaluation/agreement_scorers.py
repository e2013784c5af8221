"""How far a configuration agrees with full precision, where nothing else is known to be right."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitfront.plan import Configuration
from bitfront.tasks import TaskMeasure
from objectives.data.classification import ClassificationTask
from objectives.data.split_name import SplitName
from objectives.data.written import WrittenTask
from objectives.evaluation.answer_scorer import AnswerScorer
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.scorer import Score, ScoringContext
from objectives.execution.similarity import divergences_nats, is_highest, loss_nats


class ClassAgreementScorer(ClassificationScorer):
    """Scores a dual encoder by the classes that it gives to images without labels.

    The class of the highest score in full precision counts as right, for recoveries too.
    """

    def __init__(self, task: ClassificationTask, context: ScoringContext) -> None:
        super().__init__(task, context)
        self._measure = task.measure

    def labels(self, split: SplitName) -> Int[Tensor, " n"]:
        """The class of the highest score in full precision."""
        return self._full_scores(split).argmax(dim=-1)

    def errors(self, scores: Float[Tensor, "n classes"], split: SplitName) -> Float[Tensor, " n"]:
        """`1 - exp(-KL)` of each image, or whether another class has the highest score."""
        return disagreement(self._full_scores(split), scores, self._measure)

    def _further(self, scores: Float[Tensor, "n classes"], split: SplitName) -> dict[str, float]:
        return {"agreement": agreement(self._full_scores(split), scores)}


class WrittenScorer(AnswerScorer):
    """Scores a generative model by the tokens that the full model writes.

    They are given to it one after the other, and what it would have written in the place of
    each is compared.
    """

    def __init__(self, task: WrittenTask, context: ScoringContext) -> None:
        super().__init__(task, context)
        self._measure = task.measure

    def score(self, configuration: Configuration, split: SplitName) -> Score:
        """`1 - exp(-KL)` of each token, or whether another one is the most probable.

        A question's share in the error is that of its tokens, as in the divergence. `agreement` is
        the share of tokens that are the most probable ones in full precision and under the
        configuration, `loss_nats` the mean cross-entropy of what full precision writes.
        """
        full = self._full_logits(split)
        recovered = self._recoveries.get(configuration)
        questions = self._task.split(split)
        features = None if recovered is None else self._projected(configuration.plan, questions)
        with self._stopwatch.timed("answers"):
            logits = self._logits(configuration.plan, recovered, features, split)
        further = {
            "loss_nats": loss_nats(logits, self._targets(split)),
            "agreement": agreement(full, logits),
        }
        divergence = self._by_question(divergences_nats(full, logits), split)
        return Score.of(self.errors(logits, split), divergence, further)

    def errors(
        self, logits: Float[Tensor, "tokens vocabulary"], split: SplitName
    ) -> Float[Tensor, " questions"]:
        """Each question's share in the error of a split, by the logits at the written tokens."""
        tokens = disagreement(self._full_logits(split), logits, self._measure)
        return self._by_question(tokens, split)


def disagreement(
    full: Float[Tensor, "n classes"], found: Float[Tensor, "n classes"], measure: TaskMeasure
) -> Float[Tensor, " n"]:
    """How far each prediction is from that of full precision, from 0 to 1.

    `1 - exp(-KL)` bounds the square of the total variation distance (Bretagnolle and Huber,
    Seminaire de probabilites XII (1978) 342-363), and orders plans as the divergence does where
    that is small.
    """
    if measure is TaskMeasure.AGREEMENT:
        return (~is_highest(found, full.argmax(dim=-1))).double()
    return -torch.expm1(-divergences_nats(full, found).clamp_min(0))


def agreement(full: Float[Tensor, "n classes"], found: Float[Tensor, "n classes"]) -> float:
    """The share of predictions whose most probable class is that of full precision."""
    return float(is_highest(found, full.argmax(dim=-1)).double().mean())

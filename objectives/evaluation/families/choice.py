"""Generative models that choose among options."""

from dataclasses import dataclass
from typing import Self

from bitfront.spec import DataSpec
from bitfront.vlm import GenerativeModel
from objectives.data.choices import ChoiceTask, load_choices
from objectives.data.inspection import Inspector
from objectives.evaluation.choice_scorer import ChoiceScorer
from objectives.evaluation.families.answering import AnsweringFamily
from objectives.evaluation.scorer import ScoringContext


@dataclass(frozen=True)
class ChoiceFamily(AnsweringFamily):
    """A generative model at multiple choice; it learns and is calibrated on the right answers."""

    task: ChoiceTask

    @classmethod
    def load(cls, spec: DataSpec, model: GenerativeModel, inspector: Inspector) -> Self:
        """The family with the questions and options of a job.

        Raises:
            BitfrontError: As `load_choices` does.
        """
        return cls(load_choices(spec, model, inspector))

    def scorer(self, context: ScoringContext) -> ChoiceScorer:
        """The scorer of chosen options."""
        return ChoiceScorer(self.task, context)

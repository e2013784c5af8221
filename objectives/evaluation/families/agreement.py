"""Models without labels: they are to agree with themselves in full precision."""

from dataclasses import dataclass
from typing import Self

from bitfront.spec import DataSpec
from bitfront.vlm import GenerativeModel
from objectives.data.inspection import Inspector
from objectives.data.written import WrittenTask, load_written
from objectives.evaluation.agreement_scorers import ClassAgreementScorer, WrittenScorer
from objectives.evaluation.families.answering import AnsweringFamily
from objectives.evaluation.families.classification import ClassificationFamily
from objectives.evaluation.scorer import ScoringContext


@dataclass(frozen=True)
class ClassAgreementFamily(ClassificationFamily):
    """A dual encoder at telling apart what unlabelled images show."""

    def scorer(self, context: ScoringContext) -> ClassAgreementScorer:
        """The scorer of agreement in classes."""
        return ClassAgreementScorer(self.task, context)


@dataclass(frozen=True)
class TextAgreementFamily(AnsweringFamily):
    """A generative model at writing what it writes in full precision."""

    task: WrittenTask

    @classmethod
    def load(cls, spec: DataSpec, model: GenerativeModel, inspector: Inspector) -> Self:
        """The family with the pictures of a job.

        Raises:
            BitfrontError: As `load_written` does.
        """
        return cls(load_written(spec, model, inspector))

    def scorer(self, context: ScoringContext) -> WrittenScorer:
        """The scorer of agreement in tokens."""
        return WrittenScorer(self.task, context)

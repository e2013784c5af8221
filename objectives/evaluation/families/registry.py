"""The known families, and which of them a loaded model belongs to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from bitfront.errors import SpecError
from bitfront.spec import DataSource, DataSpec
from bitfront.tasks import (
    ANSWERING,
    CHOICE,
    CLASS_AGREEMENT,
    CLASSIFICATION,
    RETRIEVAL,
    TEXT_AGREEMENT,
    TaskKind,
)
from bitfront.vlm import DualEncoder, GenerativeModel, LayeredModel
from objectives.data.inspection import Inspector
from objectives.evaluation.families.agreement import (
    ClassAgreementFamily,
    TextAgreementFamily,
)
from objectives.evaluation.families.answering import AnsweringFamily
from objectives.evaluation.families.choice import ChoiceFamily
from objectives.evaluation.families.classification import ClassificationFamily
from objectives.evaluation.families.family import Family
from objectives.evaluation.families.own import OwnFamily
from objectives.evaluation.families.retrieval import RetrievalFamily

Model = TypeVar("Model", bound=LayeredModel)


@dataclass(frozen=True, slots=True)
class Registration(Generic[Model]):
    """How a family is found.

    Attributes:
        task: What it does.
        model_type: The kind of model that it is for.
        load: Makes the family of such a model, with the data that a job names.
    """

    task: TaskKind
    model_type: type[Model]
    load: Callable[[DataSpec, Model, Inspector], Family]

    def load_for(self, spec: DataSpec, model: LayeredModel, inspector: Inspector) -> Family | None:
        """The family of the model; None if the model is of another kind.

        Raises:
            BitfrontError: The measure is not for the task, or the data cannot be loaded.
        """
        if not isinstance(model, self.model_type):
            return None
        if spec.measure is not None and spec.measure not in self.task.measures:
            raise SpecError(
                f"data.measure: {spec.measure} is not for {self.task.name}: write "
                f"{' or '.join(self.task.measures)}, or leave it out"
            )
        return self.load(spec, model, inspector)

    def is_for(self, spec: DataSpec) -> bool:
        """Whether data of the job's source are for it."""
        return spec.source in self.task.sources


FAMILIES: Final[Sequence[Registration[DualEncoder] | Registration[GenerativeModel]]] = (
    Registration(CLASSIFICATION, DualEncoder, ClassificationFamily.load),
    Registration(RETRIEVAL, DualEncoder, RetrievalFamily.load),
    Registration(ANSWERING, GenerativeModel, AnsweringFamily.load),
    Registration(CHOICE, GenerativeModel, ChoiceFamily.load),
    Registration(CLASS_AGREEMENT, DualEncoder, ClassAgreementFamily.load),
    Registration(TEXT_AGREEMENT, GenerativeModel, TextAgreementFamily.load),
)


def load_family(spec: DataSpec, model: LayeredModel, inspector: Inspector | None = None) -> Family:
    """The family of a model, with the samples of a job prepared as the model wants them.

    It is that of the job's task, or the first one that the source is for.

    Raises:
        MissingData: There is nothing at the path, or too little.
        InvalidSample: A sample cannot be used.
        SpecError: The data do not fit the model, the measure does not fit the task, or no family is
            for the model's kind.
    """
    if spec.source is DataSource.PACKAGE:
        return OwnFamily.load(spec, model)
    named = [x for x in FAMILIES if spec.task in (None, x.task.name)]
    for registration in sorted(named, key=lambda x: not x.is_for(spec)):
        family = registration.load_for(spec, model, inspector or Inspector())
        if family is not None:
            return family
    kind = type(model).__name__
    if spec.task is not None:
        raise SpecError(f"data.task: {spec.task} is not for a {kind}: leave it out")
    raise SpecError(f"no model family is for a {kind}: register one")

"""The known families, and which of them a loaded model belongs to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from bitfront.errors import SpecError
from bitfront.spec import DataSpec
from bitfront.vlm import DualEncoder, GenerativeModel, LayeredModel
from objectives.data.inspection import Inspector
from objectives.evaluation.families.answering import AnsweringFamily
from objectives.evaluation.families.classification import ClassificationFamily
from objectives.evaluation.families.family import Family

Model = TypeVar("Model", bound=LayeredModel)


@dataclass(frozen=True, slots=True)
class Registration(Generic[Model]):
    """How a family is found.

    Attributes:
        model_type: The kind of model that it is for.
        load: Makes the family of such a model, with the data that a job names.
    """

    model_type: type[Model]
    load: Callable[[DataSpec, Model, Inspector], Family]

    def load_for(self, spec: DataSpec, model: LayeredModel, inspector: Inspector) -> Family | None:
        """The family of the model; None if the model is of another kind."""
        return self.load(spec, model, inspector) if isinstance(model, self.model_type) else None


FAMILIES: Final[Sequence[Registration[DualEncoder] | Registration[GenerativeModel]]] = (
    Registration(DualEncoder, ClassificationFamily.load),
    Registration(GenerativeModel, AnsweringFamily.load),
)


def load_family(spec: DataSpec, model: LayeredModel, inspector: Inspector | None = None) -> Family:
    """The family of a model, with the samples of a job prepared as the model wants them.

    Raises:
        MissingData: There is nothing at the path, or too little.
        InvalidSample: A sample cannot be used.
        SpecError: The data do not fit the model, or no family is for its kind.
    """
    for registration in FAMILIES:
        family = registration.load_for(spec, model, inspector or Inspector())
        if family is not None:
            return family
    raise SpecError(f"no model family is for a {type(model).__name__}: register one")

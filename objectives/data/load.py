"""Loads the task of a job: classes to tell apart, or questions to answer, as its model does."""

from bitfront.spec import DataSpec
from bitfront.vlm import DualEncoder, GenerativeModel
from objectives.data.classification import load_classification
from objectives.data.questions import load_questions
from objectives.data.task import Task


def load_task(spec: DataSpec, model: DualEncoder | GenerativeModel) -> Task:
    """The task of a job, with its samples prepared as the model wants them.

    Raises:
        MissingData: There is nothing at the path, or too little.
        InvalidSample: A sample cannot be used.
        SpecError: The data do not fit the model.
    """
    if isinstance(model, GenerativeModel):
        return load_questions(spec, model)
    return load_classification(spec, model)

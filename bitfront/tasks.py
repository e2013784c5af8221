"""The tasks that a model may be searched at: what each is for, and what its `error` may be of."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class TaskName(StrEnum):
    """What a model does with the samples."""

    CLASSIFICATION = "classification"
    ANSWERING = "answering"


class TaskMeasure(StrEnum):
    """What `error` is 1 less."""

    ACCURACY = "accuracy"
    MEAN_PER_CLASS_ACCURACY = "mean_per_class_accuracy"
    EXACT_MATCH = "exact_match"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKind:
    """A task.

    Attributes:
        name: As a job names it.
        asks: Whether it is for models that write answers; others compare images with texts.
        sources: Of data, by name. Of several tasks for a source the first of `TASKS` is meant
            where a job names none.
        measures: What the error may be of; the first is the usual one.
    """

    name: TaskName
    asks: bool
    sources: tuple[str, ...]
    measures: tuple[TaskMeasure, ...]

    def measure(self, chosen: TaskMeasure | None) -> TaskMeasure:
        """What the error is of, for a job that chose something or nothing."""
        return chosen or self.measures[0]


CLASSIFICATION: Final = TaskKind(
    name=TaskName.CLASSIFICATION,
    asks=False,
    sources=("reference", "image_folder", "datasets"),
    measures=(TaskMeasure.ACCURACY, TaskMeasure.MEAN_PER_CLASS_ACCURACY),
)
ANSWERING: Final = TaskKind(
    name=TaskName.ANSWERING,
    asks=True,
    sources=("reference", "questions", "datasets"),
    measures=(TaskMeasure.EXACT_MATCH,),
)
TASKS: Final = (CLASSIFICATION, ANSWERING)


def tasks_for(source: str, *, name: TaskName | None, asks: bool | None) -> tuple[TaskKind, ...]:
    """The tasks that may be meant.

    Args:
        source: Of the data.
        name: The task that a job names; None where it names none.
        asks: Whether the model writes answers; None where that is not known yet.
    """
    return tuple(
        task
        for task in TASKS
        if source in task.sources and name in (None, task.name) and asks in (None, task.asks)
    )

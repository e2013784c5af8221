"""The tasks that a model may be searched at: what each is for, and what its `error` may be of."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class TaskName(StrEnum):
    """What a model does with the samples."""

    CLASSIFICATION = "classification"
    RETRIEVAL = "retrieval"
    ANSWERING = "answering"
    CHOICE = "choice"
    AGREEMENT = "agreement"


class TaskMeasure(StrEnum):
    """What `error` is 1 less."""

    ACCURACY = "accuracy"
    MEAN_PER_CLASS_ACCURACY = "mean_per_class_accuracy"
    RECALL_AT_1 = "recall_at_1"
    RECALL_AT_5 = "recall_at_5"
    RECALL_AT_10 = "recall_at_10"
    EXACT_MATCH = "exact_match"
    LIKELIHOOD = "likelihood"
    LETTER = "letter"
    DIVERGENCE = "divergence"
    AGREEMENT = "agreement"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKind:
    """A task.

    Attributes:
        name: As a job names it; that of an installed package's task is any other.
        asks: Whether it is for models that write answers; others compare images with texts. None
            for either.
        sources: Of data, by name. Of several tasks for a source the first of `TASKS` is meant
            where a job names none.
        measures: What the error may be of; the first is the usual one. None where that is the
            task's own matter.
        recovers: Whether P4Q has a loss for it. Plans of every task can be distilled.
        is_built: Whether `bitfront build` writes models for it.
    """

    name: str
    asks: bool | None
    sources: tuple[str, ...]
    measures: tuple[TaskMeasure, ...]
    recovers: bool = True
    is_built: bool = True

    @property
    def without_recovery(self) -> str:
        """Why P4Q is not trained for the task, where it is not."""
        return f"P4Q is trained on classes or on answers, and {self.name} has neither"

    @property
    def without_artefact(self) -> str:
        """Why nothing is built for the task, where nothing is."""
        return (
            f"models for {self.name} are not built yet: put a configuration onto a loaded model "
            "with 'apply', as docs/python.md shows"
        )

    def measure(self, chosen: TaskMeasure | None) -> TaskMeasure:
        """What the error is of, for a job that chose something or nothing."""
        return chosen or self.measures[0]


CLASSIFICATION: Final = TaskKind(
    name=TaskName.CLASSIFICATION,
    asks=False,
    sources=("reference", "image_folder", "datasets", "table", "webdataset"),
    measures=(TaskMeasure.ACCURACY, TaskMeasure.MEAN_PER_CLASS_ACCURACY),
)
RETRIEVAL: Final = TaskKind(
    name=TaskName.RETRIEVAL,
    asks=False,
    sources=("captions", "reference", "table", "webdataset"),
    measures=(TaskMeasure.RECALL_AT_1, TaskMeasure.RECALL_AT_5, TaskMeasure.RECALL_AT_10),
    recovers=False,
)
ANSWERING: Final = TaskKind(
    name=TaskName.ANSWERING,
    asks=True,
    sources=("reference", "questions", "datasets"),
    measures=(TaskMeasure.EXACT_MATCH,),
)
CHOICE: Final = TaskKind(
    name=TaskName.CHOICE,
    asks=True,
    sources=("reference", "questions"),
    measures=(TaskMeasure.LIKELIHOOD, TaskMeasure.LETTER),
)
CLASS_AGREEMENT: Final = TaskKind(
    name=TaskName.AGREEMENT,
    asks=False,
    sources=("images", "reference"),
    measures=(TaskMeasure.DIVERGENCE, TaskMeasure.AGREEMENT),
)
TEXT_AGREEMENT: Final = TaskKind(
    name=TaskName.AGREEMENT,
    asks=True,
    sources=("images", "reference"),
    measures=(TaskMeasure.DIVERGENCE, TaskMeasure.AGREEMENT),
)
TASKS: Final = (
    CLASSIFICATION,
    RETRIEVAL,
    ANSWERING,
    CHOICE,
    CLASS_AGREEMENT,
    TEXT_AGREEMENT,
)


PACKAGE: Final = "package"
"""The source of data that an installed package's task brings itself."""


def own_task(name: str) -> TaskKind:
    """A task that an installed package brings."""
    return TaskKind(
        name=name, asks=None, sources=(PACKAGE,), measures=(), recovers=False, is_built=False
    )


def fitting_tasks(source: str, *, asks: bool | None) -> tuple[TaskKind, ...]:
    """The tasks that data of a source are for.

    Args:
        source: By name.
        asks: Whether the model writes answers; None where that is not known yet.
    """
    return tuple(x for x in TASKS if source in x.sources and asks in (None, x.asks))


def meant_tasks(source: str, name: str | None, *, asks: bool | None) -> tuple[TaskKind, ...]:
    """The tasks that are meant: one, or one for each kind of model where that is not known yet.

    Args:
        source: Of the data, by name.
        name: The task that a job names; None where it names none.
        asks: Whether the model writes answers; None where that is not known yet.
    """
    if source == PACKAGE:
        return () if name is None or name in set(TaskName) else (own_task(name),)
    found = fitting_tasks(source, asks=asks)
    if name is not None:
        return tuple(task for task in found if task.name == name)
    first = {task.asks: task for task in reversed(found)}
    return tuple(task for task in found if first[task.asks] is task)

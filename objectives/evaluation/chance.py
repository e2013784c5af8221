"""Whether a model at full precision tells its classes apart at all."""

import math

from bitfront.errors import InvalidModel
from bitfront.vlm.models.distinct import class_problems
from objectives.data.captions import fill
from objectives.data.classification import ClassificationTask
from objectives.data.split_name import SplitName
from objectives.data.task import Task

_SIGMAS = 2


def refuse_like_classes(task: Task) -> None:
    """Refuses classes whose captions have the same tokens, or the same features.

    Raises:
        InvalidModel: Two classes cannot be told apart; the message names them.
    """
    if not isinstance(task, ClassificationTask):
        return
    captions = [[fill(template, name) for name in task.classes] for template in task.templates]
    problems = class_problems(task.model, task.classes, captions)
    if problems:
        raise InvalidModel("; ".join(problems))


def chance_warnings(task: Task, error: float) -> tuple[str, ...]:
    """A warning where full precision is no better than guessing.

    Args:
        task: The task.
        error: The error at full precision on the selection split.
    """
    if not isinstance(task, ClassificationTask):
        return ()
    chance = 1 - 1 / task.class_count
    count = len(task.split(SplitName.SELECTION))
    if error < chance - _SIGMAS * math.sqrt(chance * (1 - chance) / count):
        return ()
    return (
        f"at full precision {error:.1%} of the selection split are wrong, and guessing among "
        f"{task.class_count} classes gives {chance:.1%}: check the class names, data.templates "
        "and the weights",
    )

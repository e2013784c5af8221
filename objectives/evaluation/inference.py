"""A configuration at work on a person's own pictures."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image

from bitfront.errors import InvalidSample, SpecError
from bitfront.plan import Configuration
from bitfront.vlm import DualEncoder
from objectives.data.classification import ClassificationTask
from objectives.data.sources import decode_image
from objectives.evaluation.answer_scorer import AnswerScorer
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.evaluator import Evaluator


def open_picture(path: Path) -> Image:
    """The picture of a file, in RGB.

    Raises:
        InvalidSample: There is none, or it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidSample(f"the picture {path} cannot be read: {error.strerror}") from error
    return decode_image(content, str(path))


def classify(
    evaluator: Evaluator, configuration: Configuration, pictures: Sequence[Image], top: int
) -> list[list[tuple[str, float]]]:
    """The `top` most likely classes of every picture with their shares, the best first.

    Raises:
        SpecError: The job's model tells no classes apart.
    """
    model, task, scorer = evaluator.model, evaluator.task, evaluator.scorer
    if not isinstance(scorer, ClassificationScorer):
        raise SpecError(
            "the model of this study answers questions and tells no classes apart: "
            "use 'bitfront ask'"
        )
    assert isinstance(model, DualEncoder)
    assert isinstance(task, ClassificationTask)
    pixels = torch.stack([model.preprocess(picture) for picture in pictures])
    shares, places = scorer.probabilities(configuration, pixels).topk(min(top, len(task.classes)))
    return [
        [(task.classes[place], share) for place, share in zip(row, own, strict=True)]
        for row, own in zip(places.tolist(), shares.tolist(), strict=True)
    ]


def ask(
    evaluator: Evaluator, configuration: Configuration, picture: Image | None, question: str
) -> str:
    """The model's greedy answer.

    Raises:
        SpecError: The job's model answers no questions.
        InvalidSample: The model cannot read the question.
    """
    if not isinstance(evaluator.scorer, AnswerScorer):
        raise SpecError(
            "the model of this study tells classes apart and answers no questions: "
            "use 'bitfront classify'"
        )
    return evaluator.scorer.text(configuration, question, picture)

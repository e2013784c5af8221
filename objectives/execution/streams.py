"""Streams: samples that run through a model, always cut into the same batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitfront.layers import Tower
from bitfront.vlm import DualEncoder, GenerativeModel, QuestionBatch

Rows = slice | Tensor
"""Some samples of a batch: a slice, or their places."""

ALL: Final = slice(None)
"""All samples of a batch."""


class Stream(ABC):
    """Samples that run through some towers of a model, batch by batch.

    Attributes:
        key: What tells them from others.
        towers: The towers that they run through.
        sizes: Samples in each batch.
        rows: Rows of each batch's output.
        are_independent: Whether a row of the output counts for itself: true of images and of
            questions, but not of captions that all images share, nor of what is retrieved.
    """

    key: str
    towers: frozenset[Tower]
    sizes: tuple[int, ...]
    rows: tuple[int, ...]
    are_independent: bool = True

    @abstractmethod
    def run(
        self, batch: int, *, rows: Rows = ALL, stand_in: bool = False
    ) -> Float[Tensor, "rows d"]:
        """What the model gives for a batch; gradients flow where they are enabled.

        Args:
            batch: Its number.
            rows: Which of its samples.
            stand_in: The first blocks are skipped: what only they would look at may be
                empty, and so needs no decoding.
        """


class ImageStream(Stream):
    """Images through the vision tower of a dual encoder."""

    towers = frozenset({Tower.VISION})

    def __init__(
        self,
        model: DualEncoder,
        key: str,
        sizes: Sequence[int],
        read: Callable[[int], Tensor],
        *,
        are_independent: bool = True,
    ) -> None:
        """Takes the sizes of the batches, and what reads one's pixels by its number."""
        self._model = model
        self._read = read
        self.key = key
        self.are_independent = are_independent
        self.sizes = self.rows = tuple(sizes)

    def run(self, batch: int, *, rows: Rows = ALL, stand_in: bool = False) -> Tensor:
        """The image features, not normalised."""
        if not stand_in:
            return self._model.encode_images(self._read(batch)[rows])
        size = len(torch.empty(self.sizes[batch], 0)[rows])
        return self._model.encode_images(torch.zeros(size, *self._model.image_shape))


class CaptionStream(Stream):
    """Captions through the text tower of a dual encoder."""

    key = "captions"
    towers = frozenset({Tower.TEXT})
    are_independent = False

    def __init__(self, model: DualEncoder, batches: Sequence[Tensor], key: str = key) -> None:
        """Takes the captions' tokens, batch by batch, and what tells them from others."""
        self._model = model
        self.key = key
        self._batches = batches
        self.sizes = self.rows = tuple(map(len, batches))

    def run(
        self,
        batch: int,
        *,
        rows: Rows = ALL,
        stand_in: bool = False,  # noqa: ARG002 - the positions of tokens always count
    ) -> Tensor:
        """The text features, not normalised."""
        return self._model.encode_texts(self._batches[batch][rows])


class QuestionStream(Stream):
    """Questions with their answers through a generative model."""

    towers = frozenset({Tower.VISION, Tower.PROJECTOR, Tower.LANGUAGE})

    def __init__(
        self,
        model: GenerativeModel,
        key: str,
        shapes: Sequence[tuple[int, int]],
        read: Callable[[int], QuestionBatch],
    ) -> None:
        """Takes each batch's questions and tokens an answer, and what reads one by its number."""
        self._model = model
        self._read = read
        self.key = key
        self.sizes = tuple(size for size, _ in shapes)
        self.rows = tuple(size * length for size, length in shapes)

    def run(self, batch: int, *, rows: Rows = ALL, stand_in: bool = False) -> Tensor:
        """The logits `(questions * answer tokens, vocabulary)` at the answers' tokens."""
        questions = self._questions(batch, rows, stand_in=stand_in)
        return self._model.answer_logits(questions).flatten(0, 1)

    def _questions(self, batch: int, rows: Rows, *, stand_in: bool) -> QuestionBatch:
        questions = self._read(batch).pick(rows)
        return questions.without_pixels() if stand_in else questions


class StreamPart(Stream):
    """Some batches of a stream."""

    def __init__(self, whole: Stream, batches: Sequence[int]) -> None:
        """Takes the stream, and the numbers of its batches in rising order."""
        self.batches = tuple(batches)
        self._whole = whole
        self.key = f"{whole.key}{list(self.batches)}"
        self.towers = whole.towers
        self.are_independent = whole.are_independent
        self.sizes = tuple(whole.sizes[batch] for batch in self.batches)
        self.rows = tuple(whole.rows[batch] for batch in self.batches)

    def run(self, batch: int, *, rows: Rows = ALL, stand_in: bool = False) -> Tensor:
        """As of the whole stream."""
        return self._whole.run(self.batches[batch], rows=rows, stand_in=stand_in)


class OptionStream(QuestionStream):
    """Questions with options as their answers, for the likelihood of each token."""

    def run(self, batch: int, *, rows: Rows = ALL, stand_in: bool = False) -> Tensor:
        """The log-probabilities `(questions * answer tokens, 1)` of the answers' tokens."""
        questions = self._questions(batch, rows, stand_in=stand_in)
        return token_log_p(self._model.answer_logits(questions), questions.answers)


def token_log_p(
    logits: Float[Tensor, "n answer vocabulary"], answers: Int[Tensor, "n answer"]
) -> Float[Tensor, "rows 1"]:
    """The log-probability of each token of the answers, question by question."""
    log_p = logits.float().log_softmax(dim=-1)
    return log_p.gather(-1, answers.to(log_p.device)[..., None]).flatten(0, 1)

"""Where a person's own questions with options come from: a JSON Lines file."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Protocol, Self

from pydantic import StrictInt, model_validator

from bitfront.spec import DataSpec
from objectives.data.answers import normalise
from objectives.data.question_sources import ListedQuestions, QuestionLine, QuestionSource

_EXAMPLE = '{"image": "cat.jpg", "question": "...", "options": ["...", "..."], "answer": "A"}'


class ChoiceSource(QuestionSource, Protocol):
    """Questions with options, of which one is right."""

    def options(self, index: int) -> Sequence[str]:
        """The options of a question."""

    def right(self, index: int) -> int:
        """The place of the right one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line(QuestionLine):
    """A question with options, of which one is right."""

    options: tuple[str, ...]
    answer: StrictInt | str

    @model_validator(mode="after")
    def _has_an_answer(self) -> Self:
        words = list(map(normalise, self.options))
        if not 2 <= len(words) <= len(ascii_uppercase) or not all(words):
            raise ValueError("options must be 2 to 26 texts")
        if len(set(words)) < len(words):
            raise ValueError("two options are the same")
        if self.right is None:
            raise ValueError(
                f"answer {self.answer!r} is none of the options: write an option, its letter, or "
                "its place from 0 on"
            )
        return self

    @property
    def right(self) -> int | None:
        """The place of the right option: named by its words, its letter or its place."""
        words = list(map(normalise, self.options))
        if isinstance(self.answer, int):
            place = self.answer
        elif normalise(self.answer) in words:
            place = words.index(normalise(self.answer))
        else:
            letter = self.answer.strip(" ().").upper()
            place = ascii_uppercase.find(letter) if len(letter) == 1 else -1
        return place if 0 <= place < len(words) else None


class ListedChoices(ListedQuestions[_Line]):
    """A JSON Lines file: `{"image": ..., "question": ..., "options": [...], "answer": ...}` a line.

    `answer` is an option, its letter, or its place from 0 on.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec, _Line, _EXAMPLE)
        self.names = [f"{line.image}/{line.question}/{line.options}" for line in self._lines]

    def answers(self, index: int) -> Sequence[str]:
        """The right option."""
        return (self.options(index)[self.right(index)],)

    def options(self, index: int) -> Sequence[str]:
        """The options as they are in the file."""
        return self._lines[index].options

    def right(self, index: int) -> int:
        """The place of the right one."""
        right = self._lines[index].right
        assert right is not None
        return right

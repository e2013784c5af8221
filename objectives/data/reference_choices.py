"""The bundled questions about digits with options, drawn anew."""

from collections.abc import Sequence
from functools import cached_property

from bitfront.reference.questions import draw_options
from bitfront.reference.scenes import SplitTitle
from objectives.data.reference_questions import ReferenceQuestions


class ReferenceChoices(ReferenceQuestions):
    """Digit questions, each with its right answer among others of its kind."""

    def __init__(self, split: SplitTitle, count: int, seed: int) -> None:
        super().__init__(split, count, seed)
        self.title = "digit questions with options"

    @cached_property
    def _choices(self) -> Sequence[tuple[str, ...]]:
        return draw_options(self.drawn, self._split, self._seed)

    def options(self, index: int) -> Sequence[str]:
        """The options."""
        return self._choices[index]

    def right(self, index: int) -> int:
        """The place of the right one."""
        return self._choices[index].index(self.answers(index)[0])

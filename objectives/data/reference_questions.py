"""The bundled questions about digits, drawn anew."""

from collections.abc import Sequence
from functools import cached_property

from PIL import Image

from bitfront.reference.questions import Questions, draw_questions
from bitfront.reference.scenes import SplitTitle, picture
from objectives.data.decoded import DecodedImages
from objectives.data.sample import Sample


class ReferenceQuestions:
    """Digit questions, drawn anew from a split's own scans."""

    def __init__(self, split: SplitTitle, count: int, seed: int) -> None:
        self.title = "digit questions"
        self._split = split
        self._count = count
        self._seed = seed
        self.names = [str(index) for index in range(count)]

    @cached_property
    def drawn(self) -> Questions:
        """The questions with their pictures."""
        return draw_questions(self._split, self._count, self._seed)

    def question(self, index: int) -> str:
        """The question."""
        return self.drawn.questions[index]

    def answers(self, index: int) -> Sequence[str]:
        """The only right answer."""
        return (self.drawn.answers[index],)

    def image(self, index: int, images: DecodedImages) -> Image.Image:  # noqa: ARG002 - drawn
        """The picture, in grey values."""
        return self._drawn_picture(index)

    def group(self, index: int) -> str:
        """The question: each one stands alone."""
        return self.names[index]

    def sample(self, index: int) -> Sample | None:  # noqa: ARG002 - drawn, never read
        """None: the picture is drawn, and can always be."""
        return None

    def content(self, index: int) -> bytes:
        """The picture's pixels."""
        return self._drawn_picture(index).tobytes()

    def where(self, index: int) -> str:
        """The question's number."""
        return f"digit question {index} of {self._split}"

    def _drawn_picture(self, index: int) -> Image.Image:
        return picture(self.drawn.images[index])

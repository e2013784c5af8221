"""Where a person's own questions come from: a JSON Lines file, or a saved dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from PIL import Image

from bitfront.errors import SpecError
from bitfront.spec import DataSource, DataSpec
from objectives.data.decoded import DecodedImages
from objectives.data.listing import Listing
from objectives.data.sample import Sample
from objectives.data.sources import encoded, load_dataset, undecoded_images
from objectives.data.splits import Source

if TYPE_CHECKING:
    from datasets import Dataset

_EXAMPLE = '{"image": "cat.jpg", "question": "...", "answers": ["..."]}'


class QuestionSource(Source, Protocol):
    """Questions with their answers, images read one by one when they are needed."""

    def question(self, index: int) -> str:
        """The question's text."""

    def answers(self, index: int) -> Sequence[str]:
        """The right answers."""

    def image(self, index: int, images: DecodedImages) -> Image.Image | None:
        """The image in RGB, opened by `images`; None for a question without one.

        Raises:
            InvalidSample: It cannot be read.
        """

    def content(self, index: int) -> bytes:
        """The encoded image; nothing for a question without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionLine:
    """One line of a question file; further keys are welcome and not read."""

    question: str
    image: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line(QuestionLine):
    """A question with its right answers."""

    answers: tuple[str, ...]


Line = TypeVar("Line", bound="QuestionLine")


class ListedQuestions(Generic[Line]):
    """The questions of a JSON Lines file, whatever is right for them.

    `image` is a path from the file's own folder or from `data.images`, inside of it; a line without
    one is a question without an image.
    """

    def __init__(self, spec: DataSpec, kind: type[Line], example: str) -> None:
        self._listing = Listing(spec, "question")
        self.title = f"question file {self._listing.path}"
        found = list(self._listing.lines(kind, example))
        self._lines = [line for _, line in found]
        self._numbers = [number for number, _ in found]
        self.names = [f"{line.image}/{line.question}" for line in self._lines]
        self._background = spec.background

    def question(self, index: int) -> str:
        """The question as it is in the file."""
        return self._lines[index].question

    def image(self, index: int, images: DecodedImages) -> Image.Image | None:
        """The image beside the file."""
        sample = self.sample(index)
        if sample is None:
            return None
        return images.open(sample, self.where(index), self._background)

    def group(self, index: int) -> str:
        """The image that the question is about; the question itself where it has none."""
        return self._lines[index].image or self.names[index]

    def sample(self, index: int) -> Sample | None:
        """The image file, which must lie in the folder of the images."""
        name = self._lines[index].image
        if name is None:
            return None
        return self._listing.image(name, self.where(index))

    def content(self, index: int) -> bytes:
        """The image file as it is on disk."""
        sample = self.sample(index)
        return b"" if sample is None else sample.read()

    def where(self, index: int) -> str:
        """The line in the file."""
        return f"line {self._numbers[index]} of {self._listing.path}"


class JsonQuestions(ListedQuestions[_Line]):
    """A JSON Lines file: `{"image": "cat.jpg", "question": "...", "answers": ["..."]}` a line."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec, _Line, _EXAMPLE)

    def answers(self, index: int) -> Sequence[str]:
        """The answers as they are in the file."""
        return self._lines[index].answers


class DatasetQuestions:
    """A `datasets` dataset saved to disk, with columns for image, question and answers."""

    def __init__(self, spec: DataSpec) -> None:
        dataset = load_dataset(spec, (spec.image_column, spec.question_column, spec.answer_column))
        self.title = f"dataset {spec.path}"
        self._questions = _texts(dataset, spec.question_column, self.title)
        self._answers = _answers(dataset, spec.answer_column, self.title)
        self._cells = undecoded_images(dataset, spec.image_column, self.title)
        self.names = [str(index) for index in range(len(self._questions))]
        self._background = spec.background

    def question(self, index: int) -> str:
        """The question column."""
        return self._questions[index]

    def answers(self, index: int) -> Sequence[str]:
        """The answer column: a text, or a list of them."""
        return self._answers[index]

    def image(self, index: int, images: DecodedImages) -> Image.Image | None:
        """The image column; a row without one is a question without an image."""
        sample = self.sample(index)
        if sample is None:
            return None
        return images.open(sample, self.where(index), self._background)

    def group(self, index: int) -> str:
        """The row: each one stands alone."""
        return self.names[index]

    def sample(self, index: int) -> Sample | None:
        """The encoded image of a row, if it has one."""
        cell = self._cells(index)
        return None if cell is None else Sample(encoded(cell), self.where(index))

    def content(self, index: int) -> bytes:
        """The encoded image: from the dataset, or from the file that it names."""
        sample = self.sample(index)
        return b"" if sample is None else sample.read()

    def where(self, index: int) -> str:
        """The row of the dataset."""
        return f"row {index} of {self.title}"


def _texts(dataset: "Dataset", column: str, title: str) -> list[str]:
    values = list(dataset[column][:])
    if not all(isinstance(value, str) for value in values):
        raise SpecError(f"the column {column!r} of {title} must hold texts")
    return values


def _answers(dataset: "Dataset", column: str, title: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for value in dataset[column][:]:
        answers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(answer, str) for answer in answers):
            raise SpecError(f"the column {column!r} of {title} must hold texts, or lists of texts")
        found.append(tuple(answers))
    return found


def open_question_source(spec: DataSpec) -> QuestionSource:
    """The questions of a job's own data, their images not read.

    Raises:
        MissingData: There is nothing at the path.
        InvalidSample: A line of the file is not a question.
        SpecError: A column is missing, or holds something else than texts.
    """
    return JsonQuestions(spec) if spec.source is DataSource.QUESTIONS else DatasetQuestions(spec)

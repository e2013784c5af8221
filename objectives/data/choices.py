"""Multiple choice: questions with options, of which one is right."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Final

from PIL.Image import Image

from bitfront.spec import DataSource, DataSpec
from bitfront.tasks import CHOICE, TaskMeasure
from bitfront.vlm import GenerativeModel
from objectives.data.answers import normalise
from objectives.data.choice_sources import ChoiceSource, ListedChoices
from objectives.data.decoded import DecodedImages
from objectives.data.inspection import Inspector
from objectives.data.questions import (
    REFERENCE_PROMPT,
    QuestionSplit,
    QuestionTask,
    check_prompt,
    refuse_long_answers,
)
from objectives.data.reference_choices import ReferenceChoices
from objectives.data.sample import Sample
from objectives.data.split_name import SplitName
from objectives.data.splits import chosen_sources
from objectives.execution.streams import OptionStream

_LETTER: Final = re.compile(
    r"(?:the )?(?:answer is:? ?|answer: ?|option )?\(?([a-z])\)?(?:$|[.):,])"
)


class Asked:
    """The questions of a source as they are put to a model, with the one answer that it is taught.

    Args:
        source: The questions.
        listing: What lists an option behind the question, with its letter; empty lists none. Where
            options are listed, a letter is the right answer, and elsewhere the option.
    """

    def __init__(self, source: ChoiceSource, listing: str) -> None:
        self._source = source
        self._listing = listing
        self.title, self.names = source.title, source.names

    def question(self, index: int) -> str:
        """The question, with its options where they are listed."""
        options = zip(ascii_uppercase, self._source.options(index), strict=False)
        listed = (
            self._listing.replace("{letter}", letter).replace("{option}", text)
            for letter, text in options
        )
        return self._source.question(index) + "".join(listed)

    def answers(self, index: int) -> Sequence[str]:
        """The right letter or option."""
        right = self._source.right(index)
        return (ascii_uppercase[right] if self._listing else self._source.options(index)[right],)

    def image(self, index: int, images: DecodedImages) -> Image | None:
        """As in the source."""
        return self._source.image(index, images)

    def group(self, index: int) -> str:
        """As in the source."""
        return self._source.group(index)

    def sample(self, index: int) -> Sample | None:
        """As in the source."""
        return self._source.sample(index)

    def content(self, index: int) -> bytes:
        """The image with all options, on which the right answer's letter depends."""
        options = "\0".join(self._source.options(index))
        return self._source.content(index) + options.encode()

    def where(self, index: int) -> str:
        """As in the source."""
        return self._source.where(index)


class Options(Asked):
    """Every option of every question as an answer, question by question."""

    def __init__(self, source: ChoiceSource, indices: Sequence[int]) -> None:
        super().__init__(source, "")
        self.places = [
            (index, option) for index in indices for option in range(len(source.options(index)))
        ]
        self.names = [f"{index}/{option}" for index, option in self.places]

    def question(self, index: int) -> str:
        """The question of an option."""
        return super().question(self.places[index][0])

    def answers(self, index: int) -> Sequence[str]:
        """The option."""
        place, option = self.places[index]
        return (self._source.options(place)[option],)

    def image(self, index: int, images: DecodedImages) -> Image | None:
        """The question's image."""
        return super().image(self.places[index][0], images)

    def where(self, index: int) -> str:
        """The question's place."""
        return super().where(self.places[index][0])


@dataclass(frozen=True)
class ChoiceTask(QuestionTask):
    """Multiple choice.

    Attributes:
        measure: Whether an option is chosen by its likelihood, or by what the model writes.
        choices: Each split's options and which of them is right, in the order of its questions.
        options: Each split's options as answers, question by question.
    """

    measure: TaskMeasure
    choices: Mapping[SplitName, Sequence[tuple[Sequence[str], int]]]
    options: Mapping[SplitName, QuestionSplit]

    def judge(self, name: SplitName, place: int, answer: str | None) -> bool | None:
        """Whether what the model wrote is the right option; None where it is none of them."""
        options, right = self.choices[name][place]
        chosen = chosen_option(answer, options)
        return None if chosen is None else chosen == right

    def option_stream(self, name: SplitName) -> OptionStream:
        """Every option of a split's questions as the answer, for the likelihood of its tokens."""
        split = self.options[name]
        return OptionStream(self.model, split.key, split.shapes, split.read)


def chosen_option(answer: str | None, options: Sequence[str]) -> int | None:
    """The place of the option that a parsed answer names, by its words or its letter."""
    if answer is None:
        return None
    words = list(map(normalise, options))
    if answer in words:
        return words.index(answer)
    found = _LETTER.match(answer)
    place = ord(found[1]) - ord("a") if found else len(options)
    return place if place < len(options) else None


def load_choices(
    spec: DataSpec, model: GenerativeModel, inspector: Inspector | None = None
) -> ChoiceTask:
    """The questions of a job with their options, as the model wants them.

    Raises:
        MissingData: There is nothing at the path, or the samples are fewer than the splits ask
            for.
        InvalidSample: A line of the file is no question with options.
        SpecError: The prompt has no image token, or right letters are longer than answers may be.
    """
    measure = CHOICE.measure(spec.measure)
    inspector = inspector or Inspector()
    if spec.source is DataSource.REFERENCE:
        changes = {
            name: own
            for name, own in (("prompt", REFERENCE_PROMPT), ("option_format", ""))
            if getattr(spec, name) == DataSpec.model_fields[name].default
        }
        spec = spec.model_copy(update=changes)
    else:
        check_prompt(spec, model)
    sources: dict[SplitName, tuple[ChoiceSource, Sequence[int]]] = chosen_sources(
        spec, inspector, ReferenceChoices, ListedChoices
    )
    writes = measure is TaskMeasure.LETTER
    listing = spec.option_format if writes else ""
    splits, choices, options = {}, {}, {}
    for name, (source, indices) in sources.items():
        asked = Asked(source, listing)
        splits[name] = QuestionSplit(name, model, asked, indices, spec, inspector.images)
        choices[name] = [(source.options(index), source.right(index)) for index in indices]
        every = Options(source, indices)
        places = range(len(every.places))
        options[name] = QuestionSplit(
            name, model, every, places, spec, inspector.images, key=f"{name}/options"
        )
        if writes and spec.answer_pattern is None and name in (SplitName.SELECTION, SplitName.TEST):
            refuse_long_answers(name, model, asked, indices, spec.answer_tokens)
    return ChoiceTask(
        model, splits, spec.answer_pattern, spec.answer_tokens, measure, choices, options
    )

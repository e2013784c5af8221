"""Questions about images with their answers, in four disjoint splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from bitfront.errors import InvalidSample, SpecError
from bitfront.plan import digest
from bitfront.spec import DataSource, DataSpec
from bitfront.vlm import GenerativeModel, QuestionBatch
from bitfront.vlm.models.generative import Prompt
from objectives.data.answers import is_right, normalise
from objectives.data.decoded import DecodedImages
from objectives.data.images import READING
from objectives.data.inspection import Inspector
from objectives.data.kept import Kept
from objectives.data.question_sources import (
    QuestionSource,
    open_question_source,
)
from objectives.data.reference_questions import ReferenceQuestions
from objectives.data.split_name import SplitName
from objectives.data.splits import HELD_NBYTES, fingerprint, sources_of, split_samples
from objectives.data.task import Task
from objectives.execution.streams import QuestionStream, Stream

_WITHOUT_QUESTIONS: Final = {
    DataSource.IMAGE_FOLDER: "a folder of images",
    DataSource.CAPTIONS: "a caption file",
    DataSource.TABLE: "a table of labels or captions",
    DataSource.WEBDATASET: "a webdataset",
}
REFERENCE_PROMPT = "<image> {}"


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the questions of one batch have in common."""

    prompt: int
    answer: int
    pixels: tuple[int, ...]


class QuestionSplit:
    """The questions of one split, cut into batches of equal lengths.

    Questions are prepared when they are first used. Their pixels are kept in memory up to
    `HELD_NBYTES` a split, and in a file beyond; where it is full they are read again.
    """

    def __init__(
        self,
        name: SplitName,
        model: GenerativeModel,
        source: QuestionSource,
        indices: Sequence[int],
        spec: DataSpec,
        images: DecodedImages,
        key: str = "",
    ) -> None:
        self.name = name
        self.key = key or name.value
        self._model = model
        self._source = source
        self._indices = indices
        self._spec = spec
        self._images = images
        self._pixels = Kept(images.file, HELD_NBYTES)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def template(self) -> str:
        """What makes a prompt of a question, in the place of `{}`."""
        return self._spec.prompt

    @cached_property
    def accepted(self) -> list[tuple[str, ...]]:
        """The right answers of every question; the first one is what the model is taught.

        Raises:
            InvalidSample: A question has none.
        """
        found = []
        for index in self._indices:
            answers = tuple(answer for answer in self._source.answers(index) if normalise(answer))
            if not answers:
                raise InvalidSample(
                    f"{self._source.where(index)} has no answer: give it one, or remove it"
                )
            found.append(answers)
        return found

    @cached_property
    def answers(self) -> list[Int[Tensor, " length"]]:
        """The tokens of every question's first answer, with its end."""
        return [self._model.encode_answer(answers[0]) for answers in self.accepted]

    @cached_property
    def batches(self) -> list[Int[Tensor, " n"]]:
        """The places of the questions in each batch, which are of one shape.

        Those with images come first: what a first batch shows of a model holds for all towers.
        """
        groups: dict[_Shape, list[int]] = {}
        for place, (prompt, answer) in enumerate(zip(self._prompts, self.answers, strict=True)):
            pixels = () if prompt.pixels is None else tuple(prompt.pixels.shape)
            groups.setdefault(_Shape(len(prompt.tokens), len(answer), pixels), []).append(place)
        ordered = sorted(groups.items(), key=lambda group: not group[0].pixels)
        return [
            part
            for _, places in ordered
            for part in torch.split(torch.tensor(places), self._spec.batch_size)
        ]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The questions and the tokens of an answer in each batch."""
        return [(len(part), len(self.answers[int(part[0])])) for part in self.batches]

    @property
    def has_images(self) -> bool:
        """Whether some question has an image."""
        return any(prompt.pixels is not None for prompt in self._prompts)

    def read(self, batch: int, *, with_pixels: bool = True) -> QuestionBatch:
        """The questions of a batch, on the CPU; without their pixels where none will look."""
        places = self.batches[batch].tolist()
        prompts = [self._with_pixels(p) if with_pixels else self._prompts[p] for p in places]
        answers = torch.stack([self.answers[place] for place in places])
        return QuestionBatch.of(prompts, answers, with_pixels=with_pixels)

    @cached_property
    def identity(self) -> str:
        """The hash of the prompt and of all samples: images, questions, answers, in order."""
        contents = [
            fingerprint(
                self._source.content(index),
                digest([self._source.question(index), *self._source.answers(index)]),
            )
            for index in self._indices
        ]
        form: list[object] = [
            self._spec.prompt,
            self._spec.answer_pattern,
            self._spec.answer_tokens,
        ]
        if self._spec.source is not DataSource.REFERENCE:  # whose pictures are drawn, not read
            form += [READING, self._spec.background]
        return digest([self.name, form, contents])

    @cached_property
    def _prompts(self) -> list[Prompt]:
        """Of pixels only the shape: they are kept apart."""
        prompts: list[Prompt] = []
        for place in range(len(self)):
            prompt = self._prepare(place)
            if prompt.pixels is not None:
                self._pixels.put(place, prompt.pixels)
                prompt = replace(prompt, pixels=prompt.pixels.to("meta"))
            prompts.append(prompt)
        return prompts

    def _with_pixels(self, place: int) -> Prompt:
        prompt = self._prompts[place]
        if prompt.pixels is None:
            return prompt
        pixels = self._pixels.get(place)
        return self._prepare(place) if pixels is None else replace(prompt, pixels=pixels)

    def prepare(self, question: str, image: Image | None) -> Prompt:
        """Any question as the job puts it to the model; without an image, without its token.

        Raises:
            InvalidSample: The model cannot read it.
        """
        template = self._spec.prompt
        if image is None:
            token = self._model.image_token
            template = template.replace(f"{token}\n", "").replace(token, "").strip()
        return self._model.prepare(template.replace("{}", question), image)

    def _prepare(self, place: int) -> Prompt:
        index = self._indices[place]
        image = self._source.image(index, self._images)
        try:
            return self.prepare(self._source.question(index), image)
        except InvalidSample as error:
            raise InvalidSample(f"{self._source.where(index)}: {error}") from error


@dataclass(frozen=True)
class QuestionTask(Task):
    """Visual question answering, scored by exact match.

    Attributes:
        model: The generative model that answers.
        splits: The four splits.
        answer_pattern: What finds the answer in the model's text; None takes all of it.
        answer_tokens: Tokens that a greedy answer may take, its end included.
    """

    model: GenerativeModel
    splits: Mapping[SplitName, QuestionSplit]
    answer_pattern: str | None
    answer_tokens: int

    @property
    def class_count(self) -> int:
        """Zero: an answer is free text."""
        return 0

    def split(self, name: SplitName) -> QuestionSplit:
        """The split of that name."""
        return self.splits[name]

    def judge(self, name: SplitName, place: int, answer: str | None) -> bool | None:
        """Whether a parsed answer is right; None where nothing that can be was parsed.

        Args:
            name: The split.
            place: The question's place in it.
            answer: What was parsed of the model's text; None for nothing.
        """
        return None if answer is None else is_right(answer, self.splits[name].accepted[place])

    def streams(self, name: SplitName) -> tuple[Stream, ...]:
        """The questions of a split with their answers.

        Raises:
            InvalidSample: A question cannot be used, or those for calibration are all without
                an image: then nothing is known of the vision tower.
        """
        split = self.splits[name]
        if name is SplitName.CALIBRATION and not split.has_images:
            raise InvalidSample(
                f"none of the {len(split)} questions for calibration has an image, so the vision "
                "tower's inputs cannot be measured: add images, or raise data.samples.calibration"
            )
        return (QuestionStream(self.model, split.key, split.shapes, split.read),)

    def scores(self, outputs: Mapping[str, Tensor]) -> Float[Tensor, "tokens vocabulary"]:
        """The logits at the tokens of all answers."""
        (logits,) = outputs.values()
        return logits

    def split_identity(self, name: SplitName) -> str:
        """The hash of the prompt and of the split's samples."""
        return self.splits[name].identity


def load_questions(
    spec: DataSpec, model: GenerativeModel, inspector: Inspector | None = None
) -> QuestionTask:
    """The questions of a job, as the model wants them.

    Raises:
        MissingData: There is nothing at the path, or the samples are fewer than the splits ask
            for.
        InvalidSample: A line of the file is not a question. (A sample whose image or answer is
            missing raises it when its split is used.)
        SpecError: A column is missing, the source has classes instead of questions, the
            prompt has no image token, or right answers are longer than answers may be.
    """
    inspector = inspector or Inspector()
    if spec.source is DataSource.REFERENCE:
        is_default = spec.prompt == DataSpec.model_fields["prompt"].default
        if is_default:
            spec = spec.model_copy(update={"prompt": REFERENCE_PROMPT})
        splits = {}
        for name in SplitName:
            count = int(getattr(spec.samples, name.value))
            drawn = ReferenceQuestions(name.value, count, spec.seed)
            splits[name] = QuestionSplit(name, model, drawn, range(count), spec, inspector.images)
        return QuestionTask(model, splits, spec.answer_pattern, spec.answer_tokens)
    if spec.source in _WITHOUT_QUESTIONS:
        raise SpecError(
            f"{_WITHOUT_QUESTIONS[spec.source]} has no questions, but the model is generative: "
            "set data.source to questions or datasets"
        )
    sources = sources_of(spec, open_question_source)
    check_prompt(spec, model)
    found = split_samples(sources, spec, inspector).indices
    splits = {
        name: QuestionSplit(name, model, sources[name], indices, spec, inspector.images)
        for name, indices in found.items()
    }
    if spec.answer_pattern is None:  # with one, the answer is a part of what may be said
        for name in (SplitName.SELECTION, SplitName.TEST):
            refuse_long_answers(name, model, sources[name], found[name], spec.answer_tokens)
    return QuestionTask(model, splits, spec.answer_pattern, spec.answer_tokens)


def check_prompt(spec: DataSpec, model: GenerativeModel) -> None:
    """Refuses a prompt in which no image has a place.

    Raises:
        SpecError: It has no image token.
    """
    if model.image_token not in spec.prompt:
        raise SpecError(
            f"data.prompt has no {model.image_token}: put it where the image goes, as in "
            f"{DataSpec.model_fields['prompt'].default!r}"
        )


def refuse_long_answers(
    name: SplitName,
    model: GenerativeModel,
    source: QuestionSource,
    indices: Sequence[int],
    answer_tokens: int,
) -> None:
    """Refuses questions that no answer of the allowed length can be right for.

    Raises:
        SpecError: There are some; the message names the first one.
    """
    least = {
        index: min(len(model.encode_answer(answer)) for answer in answers)
        for index in indices
        if (answers := [one for one in source.answers(index) if normalise(one)])
    }
    long = [index for index, length in least.items() if length > answer_tokens]
    if long:
        raise SpecError(
            f"data.answer_tokens: {len(long)} of the {len(indices)} questions for {name} have no "
            f"right answer of at most {answer_tokens} tokens, its end included, such as "
            f"{source.where(long[0])}, which takes {least[long[0]]}: raise it to "
            f"{max(least.values())}, or give shorter answers"
        )

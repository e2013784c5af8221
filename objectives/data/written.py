"""Pictures without answers: what the model in full precision writes about them is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from bitfront.spec import DataSource, DataSpec
from bitfront.tasks import TEXT_AGREEMENT, TaskMeasure
from bitfront.vlm import GenerativeModel, PlanSwitch, QuestionBatch
from objectives.data.inspection import Inspector
from objectives.data.pictures import PictureSource
from objectives.data.question_sources import QuestionSource
from objectives.data.questions import (
    REFERENCE_PROMPT,
    QuestionSplit,
    QuestionTask,
    check_prompt,
)
from objectives.data.reference_questions import ReferenceQuestions
from objectives.data.split_name import SplitName
from objectives.data.splits import chosen_sources


class WrittenSplit(QuestionSplit):
    """Questions of one split; the answer to each is the greedy one of the full model."""

    @cached_property
    def answers(self) -> list[Int[Tensor, " length"]]:
        """What the model writes in full precision, up to its end or `data.answer_tokens`.

        A plan that is on the model is taken off.
        """
        if isinstance(self._model.switch, PlanSwitch):
            self._model.switch.take_off()
        groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for place, prompt in enumerate(self._prompts):
            pixels = () if prompt.pixels is None else tuple(prompt.pixels.shape)
            groups.setdefault((len(prompt.tokens), pixels), []).append(place)
        found: dict[int, Tensor] = {}
        for places in groups.values():
            for part in torch.split(torch.tensor(places), self._spec.batch_size):
                with torch.no_grad():
                    written = self._model.generate(
                        self._batch(part.tolist()), self._spec.answer_tokens
                    )
                found |= {
                    place: torch.tensor(tokens)
                    for place, tokens in zip(part.tolist(), written, strict=True)
                }
        return [found[place] for place in range(len(self))]

    @cached_property
    def accepted(self) -> list[tuple[str, ...]]:
        """The text of every answer."""
        return [(self._model.decode(tokens.tolist()),) for tokens in self.answers]

    def _batch(self, places: Sequence[int]) -> QuestionBatch:
        """Questions of one shape, with no answer yet."""
        prompts = [self._with_pixels(place) for place in places]
        return QuestionBatch.of(prompts, torch.zeros(len(prompts), 1, dtype=torch.int64))


@dataclass(frozen=True)
class WrittenTask(QuestionTask):
    """Agreement with what the model in full precision writes.

    Attributes:
        measure: Whether tokens are compared by their probabilities, or by which is the highest.
    """

    measure: TaskMeasure


def load_written(
    spec: DataSpec, model: GenerativeModel, inspector: Inspector | None = None
) -> WrittenTask:
    """The pictures of a job with what is asked about them; answers are written when needed.

    Raises:
        MissingData: There is nothing at the path, or the samples are fewer than the splits ask
            for.
        InvalidSample: An image cannot be read.
        SpecError: The prompt has no image token.
    """
    if spec.source is DataSource.REFERENCE:
        if spec.prompt == DataSpec.model_fields["prompt"].default:
            spec = spec.model_copy(update={"prompt": REFERENCE_PROMPT})
    else:
        check_prompt(spec, model)
    inspector = inspector or Inspector()
    sources: dict[SplitName, tuple[QuestionSource, Sequence[int]]] = chosen_sources(
        spec, inspector, ReferenceQuestions, PictureSource
    )
    splits = {
        name: WrittenSplit(name, model, source, indices, spec, inspector.images)
        for name, (source, indices) in sources.items()
    }
    measure = TEXT_AGREEMENT.measure(spec.measure)
    return WrittenTask(model, splits, None, spec.answer_tokens, measure)

"""P4Q for a generative model: a soft prompt at the start, an adapter after the projector.

The vision tower and the projector run once for a plan; a step runs the decoder only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitfront.plan import Recovery
from bitfront.spec import QuantizerSpec
from bitfront.vlm import GenerativeModel, QuestionBatch
from objectives.recovery.adapter import Adapter, AdapterShape, StoredAdapter, stored_adapter
from objectives.recovery.distillation import p4q_loss
from objectives.recovery.prompt import Context, stored_context
from objectives.recovery.training import Training


def by_question(
    rows: Float[Tensor, "rows *shape"], questions: int
) -> Float[Tensor, "n rows_each *shape"]:
    """Rows that belong to questions in turn, equally many to each, with a dimension for them."""
    return rows.view(questions, -1, *rows.shape[1:])


@dataclass(frozen=True, slots=True)
class TaughtQuestions:
    """Tuning questions of one shape, with all that a step needs of them.

    Attributes:
        questions: Without their pixels.
        image_features: What the quantized projector gives for their images; None without.
        teacher: `(n, answer, vocabulary)` logits of full precision at the answers' tokens.
    """

    questions: QuestionBatch
    image_features: Float[Tensor, "tiles tokens width"] | None
    teacher: Float[Tensor, "n answer vocabulary"]

    def pick(self, rows: Int[Tensor, " m"]) -> "TaughtQuestions":
        """Some of the questions."""
        features = self.image_features
        if features is not None:
            own = by_question(features, len(self.questions))
            features = own[rows.to(features.device)].flatten(0, 1)
        questions = self.questions.pick(rows.cpu())
        return TaughtQuestions(questions, features, self.teacher[rows.to(self.teacher.device)])


class AnswerTraining(Training):
    """The training of a generative model's recovery, on projected features computed once."""

    samples_a_step = 32
    prompt_rate = 3e-3

    def __init__(
        self,
        model: GenerativeModel,
        recovery: Recovery,
        quantizer: QuantizerSpec,
        batches: Sequence[TaughtQuestions],
        seed: int,
    ) -> None:
        """Starts the training.

        Args:
            model: The model, with the plan on.
            recovery: The settings; those about classes do not matter.
            quantizer: How the adapter is quantized.
            batches: The tuning questions.
            seed: Of the first vectors and weights, and of the order of the samples.
        """
        with torch.inference_mode(mode=False):
            self._model = model
            self._batches = batches
            self._places = [
                (batch, row)
                for batch, taught in enumerate(batches)
                for row in range(len(taught.questions))
            ]
            generator = torch.Generator().manual_seed(seed)
            context, adapter = None, None
            if recovery.context_length:
                # To a decoder a vector near zero is hardly there: it starts where there is none.
                nothing = torch.zeros(1, model.text_width, device=model.device)
                context = Context(nothing, recovery.context_length, 0, generator)
            if recovery.reduction:
                width = model.feature_width
                shape = AdapterShape.of(recovery, width, quantizer, is_residual=True)
                adapter = Adapter(shape, generator).to(model.device)
            samples = len(self._places)
            super().__init__(recovery, context, adapter, samples, generator, model.device)

    def losses(self, samples: Int[Tensor, " n"]) -> Iterator[Float[Tensor, ""]]:
        """The mean loss over the answers' tokens, in one part for each shape of questions."""
        chosen: dict[int, list[int]] = {}
        for sample in samples.tolist():
            batch, row = self._places[sample]
            chosen.setdefault(batch, []).append(row)
        picked = [self._batches[batch].pick(torch.tensor(rows)) for batch, rows in chosen.items()]
        tokens = sum(taught.questions.answers.numel() for taught in picked)
        for taught in picked:
            student = self._logits(taught).flatten(0, 1).float()
            teacher = taught.teacher.to(student.device).flatten(0, 1).float()
            answers = taught.questions.answers.to(student.device).flatten()
            share = answers.numel() / tokens
            yield share * p4q_loss(student, teacher, answers, self.recovery.distillation)

    def quantize_adapter(self) -> None:
        """Fake-quantize from now on, with the input formats of all projected features."""
        assert self.adapter is not None
        known = [t.image_features for t in self._batches if t.image_features is not None]
        rows = [features.flatten(0, -2).float() for features in known]
        self.adapter.quantize(torch.cat(rows).to(self._device))

    def _logits(self, taught: TaughtQuestions) -> Float[Tensor, "n answer vocabulary"]:
        features = taught.image_features
        if features is not None:
            features = features.detach().clone().to(self._device)
            if self.adapter is not None:
                features = self.adapter(features.float()).to(features.dtype)
        context = None if self.context is None else self.context.context
        return self._model.answer_logits(taught.questions, features=features, context=context)


class AnswerRecovered:
    """A finished recovery, as a checkpoint holds it: what is measured is what is stored.

    Attributes:
        context: `(length, width)`; None without a prompt.
    """

    def __init__(
        self, context: Float[Tensor, "length width"] | None, adapter: StoredAdapter | None
    ) -> None:
        self.context = context
        self._adapter = adapter

    @classmethod
    def load(
        cls,
        stored: Mapping[str, Tensor],
        recovery: Recovery,
        quantizer: QuantizerSpec,
        model: GenerativeModel,
    ) -> Self:
        """The recovery that `stored` describes.

        Raises:
            InvalidModel: A tensor is missing, or does not fit the recovery.
        """
        placed = {name: tensor.to(model.device) for name, tensor in stored.items()}
        context = stored_context(placed) if recovery.context_length else None
        width = model.feature_width
        adapter = stored_adapter(placed, recovery, width, quantizer, is_residual=True)
        return cls(context, adapter)

    def adapt(self, features: Float[Tensor, "*n width"]) -> Float[Tensor, "*n width"]:
        """The projected features after the adapter; unchanged where there is none."""
        if self._adapter is None:
            return features
        with torch.no_grad():
            return self._adapter(features.float()).to(features.dtype)
